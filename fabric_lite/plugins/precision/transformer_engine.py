"""8-bit floating point through NVIDIA's Transformer Engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import override

from fabric_lite.plugins.precision.true import TruePrecision
from fabric_lite.plugins.precision.utils import _ClassReplacementContextManager
from fabric_lite.utilities.rank_zero import rank_zero_warn

_log = logging.getLogger(__name__)


class TransformerEnginePrecision(TruePrecision):
    """Runs linear and normalisation layers in 8 bits, the rest in 16.

    See https://docs.nvidia.com/deeplearning/transformer-engine.

    Args:
        weights_dtype: Data type of the parameters.
        recipe: A ``DelayedScaling`` recipe, or a mapping of its arguments.
        replace_layers: Whether `torch.nn.Linear` and `torch.nn.LayerNorm` are replaced by those of Transformer
            Engine. By default, they are, unless the model has some of the latter.
        fallback_compute_dtype: Data type for what cannot run in 8 bits; by default that of the parameters.

    Raises:
        ModuleNotFoundError: If the package ``transformer_engine`` is not installed.
    """

    precision: Literal["transformer-engine", "transformer-engine-float16"] = "transformer-engine"

    def __init__(
        self,
        *,
        weights_dtype: torch.dtype,
        recipe: Mapping[str, Any] | Any | None = None,
        replace_layers: bool | None = None,
        fallback_compute_dtype: torch.dtype | None = None,
    ) -> None:
        if find_spec("transformer_engine") is None:
            raise ModuleNotFoundError(
                "`Fabric(precision='transformer-engine')` needs NVIDIA's Transformer Engine and a GPU that has 8-bit"
                " floating point. Install it with `pip install 'transformer_engine[pytorch]'`, or choose"
                " `precision='bf16-mixed'`."
            )
        from transformer_engine.common.recipe import DelayedScaling, Format

        super().__init__(weights_dtype)
        if weights_dtype is torch.float16:
            self.precision = "transformer-engine-float16"
        if recipe is None or isinstance(recipe, Mapping):
            options = dict(recipe or {})
            if "fp8_format" in options:
                options["fp8_format"] = getattr(Format, options["fp8_format"])
            recipe = DelayedScaling(**options)
        self.weights_dtype = weights_dtype
        self.recipe = recipe
        self.replace_layers = replace_layers
        self.fallback_compute_dtype = fallback_compute_dtype or weights_dtype

    @property
    @override
    def compute_dtype(self) -> torch.dtype:
        return torch.int8  # 8-bit arithmetic: the row of the chip's data sheet that applies

    @override
    def convert_module(self, module: nn.Module) -> nn.Module:
        has_some = any("transformer_engine.pytorch" in type(child).__module__ for child in module.modules())
        if not has_some and self.replace_layers is not False:
            _convert_layers(module)
        return super().convert_module(module)

    @override
    def module_init_context(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        if self.replace_layers:
            import transformer_engine.pytorch as te

            replacements = {"torch.nn.Linear": te.Linear, "torch.nn.LayerNorm": te.LayerNorm}
            stack.enter_context(_ClassReplacementContextManager(replacements))
        stack.enter_context(self.tensor_init_context())
        return stack

    @override
    def forward_context(self) -> AbstractContextManager[Any]:
        import transformer_engine.pytorch as te

        stack = ExitStack()
        stack.enter_context(self.tensor_init_context())
        stack.enter_context(torch.autocast("cuda", dtype=self.fallback_compute_dtype))
        stack.enter_context(te.fp8_autocast(enabled=True, fp8_recipe=self.recipe))
        return stack


def _convert_layers(module: nn.Module) -> None:
    """Replace the layers that Transformer Engine has, in place, keeping their weights."""
    import transformer_engine.pytorch as te

    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            if child.in_features % 8 or child.out_features % 16:
                rank_zero_warn(
                    f"The layer {name!r} ({child.in_features} x {child.out_features}) stays as it is: 8-bit arithmetic"
                    " needs a multiple of 8 inputs and of 16 outputs. Pad it to make it faster."
                )
                continue
            replacement = te.Linear(child.in_features, child.out_features, bias=child.bias is not None)
        elif isinstance(child, nn.LayerNorm):
            replacement = te.LayerNorm(child.normalized_shape[0], eps=child.eps)
        else:
            _convert_layers(child)
            continue
        replacement.weight.data = child.weight.data.clone()
        if child.bias is not None and replacement.bias is not None:
            replacement.bias.data = child.bias.data.clone()
        _log.debug("replaced the layer %r by Transformer Engine's", name)
        setattr(module, name, replacement)
