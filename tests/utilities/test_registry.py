from __future__ import annotations

from typing import Any

import pytest

from fabric_lite.utilities.registry import _Registry


class Thing:
    def __init__(self, size: int = 0) -> None:
        self.size = size


@pytest.fixture
def registry() -> _Registry:
    registry = _Registry()
    registry.register("small", Thing, description="A small thing", size=1)
    return registry


def test_makes_objects_by_name(registry: _Registry) -> None:
    thing = registry.get("small")
    assert isinstance(thing, Thing)
    assert thing.size == 1
    assert registry.get("small") is not thing
    assert registry["small"].description == "A small thing"


def test_registers_as_a_decorator(registry: _Registry) -> None:
    @registry.register("other")
    class Other:
        pass

    assert isinstance(registry.get("other"), Other)
    assert registry.available() == ["other", "small"]


def test_a_name_is_taken_only_once(registry: _Registry) -> None:
    with pytest.raises(
        ValueError, match=r"'small' is already registered, for Thing\..*`register\('small', …, override=True\)`"
    ):
        registry.register("small", Thing)
    registry.register("small", Thing, override=True, size=2)
    assert registry.get("small").size == 2


def test_the_name_is_a_string(registry: _Registry) -> None:
    name: Any = 3
    with pytest.raises(TypeError, match=r"must be a str, got 3\. Write `register\('name', …\)`"):
        registry.register(name, Thing)


def test_an_unknown_name(registry: _Registry) -> None:
    with pytest.raises(KeyError, match=r"Nothing is registered as 'large'\. Available: small\."):
        registry.get("large")
    assert registry.get("large", default=5) == 5
    with pytest.raises(KeyError, match=r"Nothing is registered as 'large'\. Available: small\."):
        registry.remove("large")
    registry.remove("small")
    with pytest.raises(KeyError, match="Available: nothing"):
        registry.get("small")
