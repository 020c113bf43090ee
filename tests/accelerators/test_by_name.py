"""Hardware of one's own: by its registered name, or as an instance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fabric_lite.accelerators import ACCELERATOR_REGISTRY, CPUAccelerator
from fabric_lite.connector import make_plan


class Toaster(CPUAccelerator):
    """Hardware of one's own."""

    there = True

    @staticmethod
    def is_available() -> bool:
        return Toaster.there

    @staticmethod
    def name() -> str:
        return "toaster"


@pytest.fixture
def toaster() -> Iterator[str]:
    Toaster.register_accelerators(ACCELERATOR_REGISTRY)
    yield "toaster"
    ACCELERATOR_REGISTRY.remove("toaster")


def test_a_registered_one(toaster: str) -> None:
    plan = make_plan(accelerator=toaster)
    assert type(plan.accelerator) is Toaster
    with pytest.raises(ValueError, match=r"choose one of 'auto', 'gpu', .*'toaster'"):
        make_plan(accelerator="nonsense")


def test_a_registered_one_that_is_not_there(toaster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toaster, "there", False)
    with pytest.raises(RuntimeError, match=r"`Toaster`: this machine has no such device. Choose one of 'cpu'"):
        make_plan(accelerator=toaster)


def test_an_instance_need_not_be_registered() -> None:
    accelerator = Toaster()
    assert make_plan(accelerator=accelerator).accelerator is accelerator


@pytest.mark.parametrize("given", ["nonsense", "", None, 3, CPUAccelerator])
def test_what_nobody_knows(given: Any) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make_plan(accelerator=given)
    assert f"`Fabric(accelerator={given!r})`: choose one of 'auto', 'gpu', 'cpu', 'cuda'" in str(error.value)
    assert "`fabric_lite.accelerators.Accelerator`" in str(error.value)


def test_tpus() -> None:
    with pytest.raises(ValueError, match=r"accelerator='tpu'.*TPUs are not in fabric-lite, Lightning"):
        make_plan(accelerator="tpu")
