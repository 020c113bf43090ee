"""Taking `torch.compile` off a module, and putting it back on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn


def unwrap_compiled(obj: Any) -> tuple[Any, Callable[[nn.Module], nn.Module] | None]:
    """Take `torch.compile` off a module.

    Args:
        obj: Anything.

    Returns:
        The module inside and what compiles another one with the same settings; or the object itself and None.
    """
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # half a second to import, and needless where nothing compiled
    if dynamo is None or not isinstance(obj, dynamo.OptimizedModule):
        return obj, None
    return obj._orig_mod, obj.dynamo_ctx
