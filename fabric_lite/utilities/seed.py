"""Seeding, saving and restoring the random number generators of Python, NumPy and torch."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from typing import Any

import torch

from fabric_lite.utilities.imports import _NUMPY_AVAILABLE
from fabric_lite.utilities.rank_zero import _get_rank, rank_prefixed_message, rank_zero_only, rank_zero_warn

log = logging.getLogger(__name__)

# NumPy's legacy generator takes 32 bits.
min_seed_value = 0
max_seed_value = 2**32 - 1

_64_BITS = 2**64 - 1


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed the global random number generators of Python, NumPy (if installed) and torch.

    The seed and `workers` also go into the environment variables ``PL_GLOBAL_SEED`` and ``PL_SEED_WORKERS``, where the
    processes that a launcher starts find them.

    Args:
        seed: The seed. Without it, the value of ``PL_GLOBAL_SEED`` is taken, or else 0.
        workers: Whether the worker processes of data loaders that are set up later get seeds of their own, by
            `pl_worker_init_function`.
        verbose: Whether to log the seed, and to warn if there was none.

    Returns:
        The seed that was used.

    Raises:
        ValueError: If the seed, or the value of ``PL_GLOBAL_SEED``, is not an integer from 0 to 2**32 - 1.
    """
    if seed is None:
        seed = _seed_from_environment(verbose)
    else:
        seed = _as_integer(seed, "The seed", "Write `seed_everything(42)`.")
    if not min_seed_value <= seed <= max_seed_value:
        raise ValueError(
            f"The seed {seed} is out of bounds: it must be from {min_seed_value} to {max_seed_value} (2**32 - 1)."
            " Write for example `seed_everything(seed % 2**32)`."
        )
    if verbose:
        log.info(rank_prefixed_message(f"Seed set to {seed}", _get_rank()))

    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    random.seed(seed)
    if _NUMPY_AVAILABLE:
        import numpy as np

        np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def reset_seed() -> None:
    """Seed again as the last `seed_everything` did; nothing happens if there was none."""
    if "PL_GLOBAL_SEED" in os.environ:
        seed_everything(workers=os.environ.get("PL_SEED_WORKERS", "0") != "0", verbose=False)


def pl_worker_init_function(worker_id: int, rank: int | None = None) -> None:
    """Seed the generators of a data loader's worker process, differently for each worker on each rank.

    For ``DataLoader(worker_init_fn=…)``; ``Fabric.setup_dataloaders`` adds it by itself after
    ``seed_everything(…, workers=True)``.

    Args:
        worker_id: The number of the worker within its loader.
        rank: The rank of the process that the loader belongs to; by default that of this process.
    """
    global_rank = rank if rank is not None else rank_zero_only.rank
    # The loader has already seeded this process with the sum of the two.
    base_seed = torch.initial_seed() - worker_id
    log.debug(f"Seeding worker {worker_id} of rank {global_rank} with base seed {base_seed}")
    torch_seed, python_high, python_low = _generate_seed_sequence(base_seed, worker_id, global_rank, count=3)
    torch.manual_seed(torch_seed)
    random.seed((python_high << 32) | python_low)
    if _NUMPY_AVAILABLE:
        import numpy as np

        np.random.seed(np.random.SeedSequence([base_seed, worker_id, global_rank]).generate_state(4))


def _seed_from_environment(verbose: bool) -> int:
    value = os.environ.get("PL_GLOBAL_SEED")
    if value is not None:
        return _as_integer(value, "The environment variable PL_GLOBAL_SEED", "Set it to an integer, or unset it.")
    if verbose:
        rank_zero_warn("There is no seed, neither as an argument nor in PL_GLOBAL_SEED: it is set to 0.")
    return 0


def _as_integer(value: Any, name: str, remedy: str) -> int:
    error = ValueError(f"{name} must be an integer, got {value!r}. {remedy}")
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as cause:
        raise error from cause
    if isinstance(value, float) and number != value:  # two seeds that differ must not end up as the same one
        raise error
    return number


def _generate_seed_sequence(base_seed: int, worker_id: int, global_rank: int, count: int) -> list[int]:
    """Several 64-bit seeds that look unrelated for any two workers.

    The three numbers are packed into one, whose bits the finalizer of MurmurHash3 mixes, so that small seeds do not
    leave most bits zero; then follows a linear congruential generator with Knuth's constants for MMIX.
    """
    state = (base_seed << 32) | (worker_id << 16) | global_rank
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        state ^= state >> 33
        state = (state * factor) & _64_BITS
    state ^= state >> 33
    seeds = []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1) & _64_BITS
        seeds.append(state)
    return seeds


class RNGState:
    """The global random number generators of Python, NumPy, torch and torch's accelerator, as an object with a state.

    Save it with the rest of a training, ``fabric.save(path, {"model": model, ..., "rng": RNGState()})``, and a run that
    loads it draws the numbers that the saved one would have drawn next. Each process has its own.
    """

    differs_by_rank = True

    def state_dict(self) -> dict[str, Any]:
        """The states of the generators, in plain types that a ``weights_only`` load accepts."""
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        states = _collect_rng_states(include_cuda=False)
        if accelerator is not None:
            states["device"] = (accelerator.type, torch.get_device_module(accelerator).get_rng_state())
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the generators to a saved state.

        Args:
            state: From `state_dict`. Generators that it does not have stay as they are; that of another kind of
                accelerator is left out, with a warning.

        Raises:
            ValueError: If it has not the generators that every process has.
        """
        if not {"python", "torch"} <= set(state):
            raise ValueError(
                f"The state with {', '.join(map(repr, state)) or 'nothing in it'} is none of random number generators:"
                " it has no 'python' and 'torch'. Load what `RNGState().state_dict()` returned."
            )
        _set_rng_states({name: each for name, each in state.items() if name != "device"})
        if "device" not in state:
            return
        kind, states = state["device"]
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None or accelerator.type != kind:
            rank_zero_warn(
                f"The state of the random number generator of a {kind!r} device cannot be restored on"
                f" {'the CPU' if accelerator is None else accelerator.type!r}: what is drawn on the device differs."
            )
        else:
            torch.get_device_module(accelerator).set_rng_state(states)


def _collect_rng_states(include_cuda: bool = True) -> dict[str, Any]:
    """The states of the global generators, in plain types that a ``weights_only`` load accepts."""
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if _NUMPY_AVAILABLE:
        import numpy as np

        algorithm, keys, *rest = np.random.get_state(legacy=True)
        states["numpy"] = (algorithm, np.asarray(keys).tolist(), *rest)
    if include_cuda:
        states["torch.cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states


def _set_rng_states(rng_state_dict: dict[str, Any]) -> None:
    """Restore what `_collect_rng_states` returned."""
    torch.set_rng_state(rng_state_dict["torch"])
    if "torch.cuda" in rng_state_dict:
        torch.cuda.set_rng_state_all(rng_state_dict["torch.cuda"])
    if _NUMPY_AVAILABLE and "numpy" in rng_state_dict:
        import numpy as np

        np.random.set_state(rng_state_dict["numpy"])
    version, state, gauss = rng_state_dict["python"]
    random.setstate((version, tuple(state), gauss))
