"""A module that was set up."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from typing_extensions import Self, override

from fabric_lite.strategies import Strategy
from fabric_lite.strategies.backward_gate import define_compiled_check, guard_backward
from fabric_lite.utilities.compiled import unwrap_compiled
from fabric_lite.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin

_STEP_METHODS = ("training_step", "validation_step", "test_step", "predict_step")

# What `_FabricModule` shares with the module that was set up: to the methods of `nn.Module`, the parameters, buffers
# and submodules of that module are its own, under the same names.
_REGISTRIES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class _FabricModule(_DeviceDtypeModuleMixin):
    """A module whose forward runs in the precision and through the strategy of a `Fabric`.

    Attributes that it does not have itself are read from, and written to, the module that was set up.

    Args:
        forward_module: What the strategy made of the module.
        strategy: The strategy.
        original_module: The module as the user passed it.
    """

    _original_module: nn.Module | None = None  # until it is there

    def __init__(self, forward_module: nn.Module, strategy: Strategy, original_module: nn.Module | None = None) -> None:
        super().__init__()
        original = forward_module if original_module is None else original_module
        self.__dict__.update({name: original.__dict__[name] for name in _REGISTRIES})
        self.__dict__.update(
            _forward_module=forward_module,
            _strategy=strategy,
            _forward_methods=set(_STEP_METHODS),
            _requires_fabric_backward=strategy.requires_fabric_backward,
            _original_module=original,
        )
        del self.__dict__["training"]
        if self._requires_fabric_backward:
            define_compiled_check()

    @property
    def module(self) -> nn.Module:
        """The module that was set up."""
        return self.__dict__["_original_module"]  # type: ignore[no-any-return]

    @property
    def training(self) -> bool:
        """Whether the module is in training mode."""
        return self.module.training if self._original_module is not None else True

    @training.setter
    def training(self, mode: bool) -> None:
        if self._original_module is not None:
            self.module.training = mode
        else:  # `nn.Module.__init__` sets it before there is a module
            self.__dict__["training"] = mode

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module in the precision of this run."""
        if not self._requires_fabric_backward and self._strategy.has_plain_precision:
            return self._forward_module(*args, **kwargs)  # nothing to convert: most runs, in every step
        return self._run(self._forward_module, args, kwargs)

    def _run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        precision = self._strategy.precision
        args, kwargs = precision.convert_input((args, kwargs))
        with precision.forward_context():
            output = function(*args, **kwargs)
        output = precision.convert_output(output)
        return guard_backward(output) if self._requires_fabric_backward else output

    @override
    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`."""
        self._forward_module.train(mode)
        return self

    @override
    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """See `torch.nn.Module.named_modules`: the modules are those of the module that was set up, itself first."""
        return self.module.named_modules(*args, **kwargs)  # type: ignore[no-any-return]

    @override
    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """See `torch.nn.Module.apply`."""
        self.module.apply(fn)
        return self

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._forward_module._apply(fn, recurse)
        return self

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state of the module that was set up."""
        return self.module.state_dict(*args, **kwargs)

    @override
    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], strict: bool = True, **kwargs: Any
    ) -> _IncompatibleKeys:
        """Give the module that was set up its state back."""
        return self.module.load_state_dict(state_dict, strict=strict, **kwargs)  # type: ignore[no-any-return]

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.module._load_from_state_dict(*args, **kwargs)  # as a part of another module

    def mark_forward_method(self, method: MethodType | str) -> None:
        """Treat a method like the forward: in the precision, and through the strategy, of this run.

        Args:
            method: The method or its name.

        Raises:
            TypeError: If it is neither.
            ValueError: If it is the forward itself.
            AttributeError: If the module has no such method.
        """
        bare = inspect.unwrap(method) if callable(method) else method
        if not isinstance(bare, (MethodType, str)):
            raise TypeError(f"`mark_forward_method` takes a method or its name, but got {method!r}.")
        name = bare if isinstance(bare, str) else bare.__name__
        if name == "forward":
            raise ValueError("`forward` is a forward method already. Mark the other methods that call the module.")
        if not inspect.ismethod(getattr(self.module, name, None)):
            raise AttributeError(
                f"`mark_forward_method({name!r})`: `{type(self.module).__name__}` has no method of that name."
            )
        if name not in self._forward_methods:
            self._forward_methods.add(name)
            self._strategy.register_forward_method(self.module, name)

    @override
    def __getattr__(self, name: str) -> Any:
        original = self.__dict__.get("_original_module")
        if original is None:  # while it is being made or copied
            return super().__getattr__(name)
        attribute = getattr(original, name)
        if not inspect.ismethod(attribute):
            return attribute
        if name in self._forward_methods:
            return self._as_forward(attribute)
        return self._watched(attribute) if self._is_wrapped() else attribute

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if self._original_module is None or name in self.__dict__ or hasattr(_FabricModule, name):
            super().__setattr__(name, value)
        else:
            setattr(self.module, name, value)

    @override
    def __delattr__(self, name: str) -> None:
        if name in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.module, name)

    def _is_wrapped(self) -> bool:
        """Whether the strategy put a wrapper of its own around the module."""
        return unwrap_compiled(self._forward_module)[0] is not unwrap_compiled(self.module)[0]

    def _as_forward(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the module, to be called as its forward is."""

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_wrapped():
                return self._run(method, args, kwargs)
            with _stand_in_for_forward(self.module, method):
                return self._run(self._forward_module, args, kwargs)

        return call

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A method that may not call the module: that would bypass what the strategy wrapped it in."""
        owner, name = type(self.module).__name__, getattr(method, "__name__", repr(method))

        def refuse(*_: Any) -> None:
            raise RuntimeError(
                f"`{owner}.{name}()` calls the module past its wrapper, so the strategy"
                f" `{type(self._strategy).__name__}` would miss it. After `fabric.setup()`, write"
                f" `model.mark_forward_method({name!r})`."
            )

        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            handles = [module.register_forward_pre_hook(refuse) for module in self.module.modules()]
            try:
                return method(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()

        return call

    @override
    def _get_name(self) -> str:
        return f"Fabric{type(self.module).__name__}"

    def __deepcopy__(self, memo: dict[int, Any]) -> _FabricModule:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo.setdefault(id(self._strategy), self._strategy)  # belongs to the process, not to the module
        copied.__dict__.update(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return copied


@contextmanager
def _stand_in_for_forward(module: nn.Module, method: Callable[..., Any]) -> Iterator[None]:
    """The next time that the forward of a module is called, a method of it runs, and may call the real forward."""
    before = module.__dict__.get("forward")

    def restore() -> None:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        restore()
        return method(*args, **kwargs)

    module.__dict__["forward"] = stand_in
    try:
        yield
    finally:
        restore()
