"""The package's warning categories."""

from __future__ import annotations

import warnings


class PossibleUserWarning(UserWarning):
    """A warning about something that is often, but not always, a mistake."""


def disable_possible_user_warnings(module: str = "") -> None:
    """Ignore the warnings of category `PossibleUserWarning`.

    Args:
        module: Regular expression for the modules in which they are ignored, as in `warnings.filterwarnings`.
            The default covers all modules.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)
