"""Where in an epoch a dataloader is, and how it goes on from there in another process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from fabric_lite.utilities.data import _samplers_of, has_iterable_dataset
from fabric_lite.utilities.seed import _collect_rng_states, _set_rng_states

_SHARED = ("_sampler",)  # where a `DistributedSamplerWrapper` has the sampler that it takes a share of


@dataclass
class Epoch:
    """An epoch that is under way.

    Attributes:
        draws: What its order was drawn from; None if the dataloader keeps that itself.
        position: How many batches there were.
        follows_break: Whether the one before was left in its middle.
    """

    draws: dict[str, Any] | None
    position: int = 0
    follows_break: bool = False


def draws_of(dataloader: DataLoader[Any]) -> dict[str, Any]:
    """What the order of the coming epoch will be drawn from.

    Args:
        dataloader: The dataloader.

    Returns:
        The states of the global generators on the CPU, of the generators of the dataloader and its samplers, and of the
        samplers that have a state; and whether its workers are there already, and need no seed.
    """
    return {
        "seeded": getattr(dataloader, "_iterator", None) is not None,
        "rng": _collect_rng_states(include_cuda=False),
        "generators": _states_of(dataloader),
        "samplers": [sampler.state_dict() for sampler in _stateful_samplers(dataloader)],
    }


def set_draws(dataloader: DataLoader[Any], draws: dict[str, Any]) -> None:
    """Give the generators and samplers of a dataloader their state back; the global generators keep theirs.

    Args:
        dataloader: The dataloader.
        draws: From `draws_of`, of such a dataloader.

    Raises:
        ValueError: If the dataloader has other generators or samplers.
    """
    samplers = _stateful_samplers(dataloader)
    _check_number(dataloader, "samplers with a `state_dict`", samplers, draws["samplers"])
    _set_generators(dataloader, draws["generators"])
    for sampler, state in zip(samplers, draws["samplers"], strict=True):
        sampler.load_state_dict(state)


def own_state(dataloader: DataLoader[Any], fresh: bool) -> dict[str, Any]:
    """What a dataloader says of itself that has a state, and its generators. It is left as it was.

    Before an epoch, a `StatefulDataLoader` makes its iterator to tell its state, and draws a seed. It is to do so when
    the epoch begins, for what the loop draws in between depends on it.

    Args:
        dataloader: The dataloader.
        fresh: Whether no epoch has begun yet: then the generators are all that a `StatefulDataLoader` has to keep.
    """
    now, states = _collect_rng_states(include_cuda=False), _states_of(dataloader)
    had_none = getattr(dataloader, "_iterator", None) is None
    own = dataloader.state_dict()  # type: ignore[attr-defined]
    if had_none and _is_torchdata(dataloader):
        own = {} if fresh else own
        dataloader.load_state_dict(own)  # type: ignore[attr-defined]
        _set_generators(dataloader, states)
        _set_rng_states(now)
    return {"own": own, "generators": states}


def set_own_state(dataloader: DataLoader[Any], state: dict[str, Any]) -> None:
    """Give a dataloader its own state back, and those of its generators.

    Args:
        dataloader: The dataloader.
        state: From `own_state`, of such a dataloader.

    Raises:
        ValueError: If the dataloader has other generators.
    """
    _check_number(dataloader, "random generators", _generators(dataloader), state["generators"])
    dataloader.load_state_dict(state["own"])  # type: ignore[attr-defined]
    _set_generators(dataloader, state["generators"])


def resumed(dataloader: DataLoader[Any], state: dict[str, Any]) -> Epoch | None:
    """The epoch to go on with, if it has to be begun otherwise than by `iter` alone.

    Args:
        dataloader: The dataloader.
        state: That was given back to it.
    """
    draws = state.get("draws")
    special = state["position"] or (draws["seeded"] if draws else state["epoch"] and _is_torchdata(dataloader))
    return Epoch(draws, state["position"], state.get("broken", False)) if special else None


def continued(dataloader: DataLoader[Any], epoch: Epoch, replay: bool) -> Iterator[Any]:
    """Go through the rest of an epoch. The global generators are left as they are, unless it only begins.

    Args:
        dataloader: The dataloader.
        epoch: The epoch. The sampler skips the batches that it had; they are loaded only if there is no sampler.
        replay: Whether to load them in any case, as workers that draw random numbers for each sample need it.

    Returns:
        An iterator over the remaining batches.
    """
    draws = epoch.draws
    if draws is None:
        return _continued_by_itself(dataloader, epoch)
    now = _collect_rng_states(include_cuda=False)

    def rewind() -> None:
        set_draws(dataloader, draws)
        _set_rng_states(draws["rng"])

    rewind()
    try:
        if replay or has_iterable_dataset(dataloader):
            batches = iter(dataloader)
            for _ in range(epoch.position):
                next(batches, None)
            return batches
        name = "sampler" if dataloader.batch_sampler is None else "batch_sampler"
        sampler = getattr(dataloader, name)
        skipping = _Skipping(sampler, epoch.position, rewind if draws["seeded"] else None)
        object.__setattr__(dataloader, name, skipping)  # that of `DataLoader` refuses another sampler
        try:
            batches = iter(dataloader)
        finally:
            object.__setattr__(dataloader, name, sampler)
        skipping.skip()
        return batches
    finally:
        if epoch.position:
            _set_rng_states(now)


def _continued_by_itself(dataloader: DataLoader[Any], epoch: Epoch) -> Iterator[Any]:
    """Go through the rest of an epoch of a dataloader that has a state."""
    now, states = _collect_rng_states(include_cuda=False), _states_of(dataloader)
    if epoch.position:
        batches = iter(dataloader)
    else:
        # To begin an epoch, a `StatefulDataLoader` has to know of the one before. It makes an iterator of that first,
        # for which it draws what it does not draw where nothing is resumed.
        dataloader.state_dict()  # type: ignore[attr-defined]
    _set_generators(dataloader, states)
    _set_rng_states(now)
    if epoch.position:
        return batches
    batches = iter(dataloader)
    return iter(dataloader) if epoch.follows_break else batches


class _Skipping:
    """A sampler without its first elements.

    They are drawn at the first `next`, and not by `iter`, because that is when a sampler that is a generator begins to
    draw: after the dataloader has drawn the seed of its workers. If there was no such seed, what was drawn for it is
    taken back. From then on it is the sampler as it was: workers that stay keep this object.
    """

    def __init__(self, sampler: Any, number: int, rewind: Callable[[], None] | None) -> None:
        self.sampler = sampler
        self.left = number
        self.rewind = rewind

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        if self.rewind is not None:
            self.rewind()
        self.elements = iter(self.sampler)
        return self

    def __next__(self) -> Any:
        self.skip()
        return next(self.elements)

    def skip(self) -> None:
        """Draw the elements that are left out, if it has not been done."""
        if self.rewind is not None:
            self.rewind()
            self.rewind = None
        while self.left:
            self.left -= 1
            next(self.elements, None)


def _generators(dataloader: DataLoader[Any]) -> list[torch.Generator]:
    """The generators of a dataloader and its samplers, each once."""
    owners = (dataloader, *_samplers_of(dataloader, *_SHARED))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _states_of(dataloader: DataLoader[Any]) -> list[torch.Tensor]:
    return [generator.get_state() for generator in _generators(dataloader)]


def _set_generators(dataloader: DataLoader[Any], states: Sequence[torch.Tensor]) -> None:
    generators = _generators(dataloader)
    _check_number(dataloader, "random generators", generators, states)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _check_number(dataloader: DataLoader[Any], kind: str, parts: Sequence[Any], states: Sequence[Any]) -> None:
    if len(parts) != len(states):
        raise ValueError(
            f"The state of a dataloader is for {len(states)} {kind}, but this `{type(dataloader).__name__}` has"
            f" {len(parts)}. Make it as it was made when the state was saved."
        )


def _is_torchdata(dataloader: DataLoader[Any]) -> bool:
    module = sys.modules.get("torchdata.stateful_dataloader")
    return module is not None and isinstance(dataloader, module.StatefulDataLoader)


def _stateful_samplers(dataloader: DataLoader[Any]) -> list[Any]:
    return [
        sampler
        for sampler in _samplers_of(dataloader, *_SHARED)
        if hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict")
    ]
