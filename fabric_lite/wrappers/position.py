"""Where in an epoch a dataloader is, and how it goes on from there in another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
    """

    draws: dict[str, Any] | None
    position: int = 0


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
        "generators": [generator.get_state() for generator in _generators(dataloader)],
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
    generators, samplers = _generators(dataloader), _stateful_samplers(dataloader)
    for kind, parts, states in (
        ("random generators", generators, draws["generators"]),
        ("samplers with a `state_dict`", samplers, draws["samplers"]),
    ):
        if len(parts) != len(states):
            raise ValueError(
                f"The state of a dataloader is for {len(states)} {kind}, but this `{type(dataloader).__name__}` has"
                f" {len(parts)}. Make it as it was made when the state was saved."
            )
    for generator, state in zip(generators, draws["generators"], strict=True):
        generator.set_state(state)
    for sampler, state in zip(samplers, draws["samplers"], strict=True):
        sampler.load_state_dict(state)


def continued(dataloader: DataLoader[Any], epoch: Epoch, replay: bool) -> Iterator[Any]:
    """Go through the rest of an epoch. The global generators are left as they are.

    Args:
        dataloader: The dataloader.
        epoch: The epoch. The sampler skips the batches that it had; they are loaded only if there is no sampler.
        replay: Whether to load them in any case, as workers that draw random numbers for each sample need it.

    Returns:
        An iterator over the remaining batches.
    """
    now = _collect_rng_states(include_cuda=False)
    draws = epoch.draws
    if draws is None:
        batches = iter(dataloader)
        _set_rng_states(now)
        return batches

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
        _set_rng_states(now)


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
        if self.left and self.rewind is not None:
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


def _stateful_samplers(dataloader: DataLoader[Any]) -> list[Any]:
    return [
        sampler
        for sampler in _samplers_of(dataloader, *_SHARED)
        if hasattr(sampler, "state_dict") and hasattr(sampler, "load_state_dict")
    ]
