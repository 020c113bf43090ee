"""Carrying over to another thread what torch keeps for each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from fabric_lite.utilities.contexts import entered_together


def carry_torch_state() -> AbstractContextManager[None]:
    """Take note of the modes of this thread: gradients, inference, autocast.

    Returns:
        A context manager. Under it, they hold in another thread, too.
    """
    accelerator = torch.accelerator.current_accelerator()
    contexts: list[AbstractContextManager[Any]] = [
        torch.inference_mode(torch.is_inference_mode_enabled()),
        torch.enable_grad() if torch.is_grad_enabled() else torch.no_grad(),
    ]
    for kind in {"cpu", "cuda" if accelerator is None else accelerator.type}:
        if torch.is_autocast_enabled(kind):
            contexts.append(
                torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=torch.is_autocast_cache_enabled())
            )
    return entered_together(*contexts)
