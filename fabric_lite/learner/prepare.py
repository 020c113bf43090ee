"""What a `Learner` makes of its arguments: models, optimizers and data, set up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fabric_lite.events import Phase, TrainingPhase, ValidationPhase
from fabric_lite.fabric import Fabric
from fabric_lite.permissions import State
from fabric_lite.wrappers import is_wrapped

OptimizerLike = Optimizer | Callable[[Any], Optimizer]


class Gradients(Mapping[str, Tensor]):
    """The gradients of parameters by name, read when they are asked for.

    Args:
        params: The parameters by name.
    """

    def __init__(self, params: Mapping[str, nn.Parameter]) -> None:
        self._params = params

    def __getitem__(self, name: str) -> Tensor:
        gradient = self._params[name].grad
        if gradient is None:
            raise KeyError(name)
        return gradient

    def __iter__(self) -> Iterator[str]:
        return (name for name, parameter in self._params.items() if parameter.grad is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def set_up(
    fabric: Fabric, model: nn.Module | Mapping[str, nn.Module], optimizer: OptimizerLike | Mapping[str, OptimizerLike]
) -> tuple[Any, Any, dict[str, nn.Parameter]]:
    """Set models and their optimizers up.

    Args:
        fabric: The Fabric.
        model: A model, or several by name.
        optimizer: An optimizer or a factory; for several models, one factory for all, or one of either by name.

    Returns:
        The model, the optimizer (for several models, a `State` of each) and the parameters by name.

    Raises:
        TypeError: If an optimizer is neither an optimizer nor a factory.
        ValueError: If the optimizers' names are not those of the models.
    """
    if not isinstance(model, Mapping):
        if isinstance(optimizer, Mapping):
            raise ValueError(
                f"`Learner(optimizer=...)` got optimizers for {', '.join(map(repr, optimizer))}, but one model. Pass"
                " one optimizer, or a mapping of models with these names."
            )
        wrapped, wrapped_optimizer = _set_up_one(fabric, model, optimizer)
        return wrapped, wrapped_optimizer, dict(wrapped.named_parameters())
    if isinstance(optimizer, Optimizer):
        raise TypeError(
            "`Learner(optimizer=...)` got one optimizer for several models. Pass a mapping of optimizers with the names"
            f" {', '.join(map(repr, model))}, or a factory."
        )
    if isinstance(optimizer, Mapping) and set(optimizer) != set(model):
        raise ValueError(
            f"`Learner(optimizer=...)` has the names {', '.join(map(repr, optimizer))}, and the models have"
            f" {', '.join(map(repr, model))}. Give each model its optimizer."
        )
    models, optimizers, params = State(), State(), {}
    for name, each in model.items():
        own = optimizer[name] if isinstance(optimizer, Mapping) else optimizer
        models[name], optimizers[name] = _set_up_one(fabric, each, own)
        params.update({f"{name}.{key}": parameter for key, parameter in models[name].named_parameters()})
    return models, optimizers, params


def _set_up_one(fabric: Fabric, model: nn.Module, optimizer: OptimizerLike) -> tuple[Any, Any]:
    """Set one model and its optimizer up, unless the caller has done so."""
    if isinstance(optimizer, Optimizer):
        if is_wrapped(model) and is_wrapped(optimizer):
            return model, optimizer
        if not is_wrapped(model) and not is_wrapped(optimizer):
            wrapped: tuple[Any, Any] = fabric.setup(model, optimizer)
            return wrapped
    model = model if is_wrapped(model) else fabric.setup_module(model)
    if not isinstance(optimizer, Optimizer):
        if not callable(optimizer):
            raise TypeError(
                f"`Learner(optimizer={optimizer!r})`: pass an optimizer, or a function that makes one from the"
                " parameters, such as `torch.optim.Adam`."
            )
        optimizer = optimizer(model.parameters())
    return model, optimizer if is_wrapped(optimizer) else fabric.setup_optimizers(optimizer)


def set_up_data(fabric: Fabric, data: Any) -> dict[Any, Any]:
    """Set data up, by the name of the phase that goes through it.

    Args:
        fabric: The Fabric.
        data: Nothing, training data, training and validation data, or a mapping from phases or their names.

    Returns:
        Dataloaders, set up, or other iterables of batches as they are, by name of the phase.

    Raises:
        ValueError: If there are more than two without a name.
    """
    if not isinstance(data, Mapping):
        names = (TrainingPhase.name, ValidationPhase.name)
        if not isinstance(data, tuple) or len(data) > len(names):
            raise ValueError(
                f"`Learner(data=...)` got {data!r}. Pass `()`, `(training,)`, `(training, validation)`, or a mapping"
                " from the names of phases to data."
            )
        data = dict(zip(names, data, strict=False))
    found: dict[Any, Any] = {}
    for phase, loader in data.items():
        fresh = isinstance(loader, DataLoader) and not is_wrapped(loader)
        found[phase.name if isinstance(phase, Phase) else phase] = fabric.setup_dataloaders(loader) if fresh else loader
    return found


def each_model(model: Any) -> Iterable[nn.Module]:
    """The models, of which there may be one or several by name."""
    return model.values() if isinstance(model, Mapping) else (model,)


def default_optimizer(params: Iterable[nn.Parameter]) -> Optimizer:
    """`torch.optim.Adam` with its defaults.

    Args:
        params: The parameters.
    """
    return torch.optim.Adam(params)
