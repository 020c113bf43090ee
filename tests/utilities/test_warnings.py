from __future__ import annotations

import warnings

import pytest

from fabric_lite.utilities.warnings import PossibleUserWarning, disable_possible_user_warnings


def test_possible_user_warnings_can_be_disabled() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PossibleUserWarning, match="maybe"):
            warnings.warn("maybe", PossibleUserWarning, stacklevel=1)
        disable_possible_user_warnings("another.module")
        with pytest.raises(PossibleUserWarning, match="maybe"):
            warnings.warn("maybe", PossibleUserWarning, stacklevel=1)
        disable_possible_user_warnings()
        warnings.warn("maybe", PossibleUserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="surely"):
            warnings.warn("surely", UserWarning, stacklevel=1)
