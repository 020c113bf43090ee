"""One training step on trial: what `SanityCheck` does with a model, and how it is undone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fabric_lite.events import AbstractTrainingPhase, Phase
from fabric_lite.utilities.apply_func import apply_to_tensors
from fabric_lite.utilities.seed import _collect_rng_states, _set_rng_states

#: In the place of a batch that is not there.
NO_BATCH = object()


class Trial:
    """Runs a step and writes down what is wrong with it.

    Args:
        model: The model.
        lossfn: The loss function; None leaves it out.
        optimizer: The optimizer; None leaves it out.
        fabric: The Fabric; without it, there is one process.

    Attributes:
        problems: What keeps the training from working, each with what to write.
        warnings: What may be meant.
    """

    def __init__(self, model: Any, lossfn: Any, optimizer: Any, fabric: Any) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._model, self._lossfn, self._optimizer, self._fabric = model, lossfn, optimizer, fabric
        self._params = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def anywhere(self, decision: bool) -> bool:
        """Whether any process says yes.

        Args:
            decision: What this one says.
        """
        if getattr(self._fabric, "world_size", 1) == 1:
            return decision
        return bool(self._fabric.strategy.reduce_boolean_decision(decision, all=False))

    def run(self, xs: Any, ys: Any) -> None:
        """Forward, loss, backward, with everything put back at the end.

        Args:
            xs: Inputs.
            ys: Targets.
        """
        if self._fabric is not None:
            xs, ys = self._fabric.to_device((xs, ys))
        with _undone(self._model), torch.enable_grad():
            preds = self._forward(xs)
            loss = self._loss(preds, ys) if preds is not None and self._lossfn is not None else None
            # A backward is a collective: all processes, or none.
            if not self.anywhere(loss is None) and loss is not None:
                self._backward(loss)

    def look_at_optimizer(self) -> None:
        """Whether the optimizer has the parameters of the model."""
        groups = getattr(self._optimizer, "param_groups", None)
        if groups is None:
            return
        held = {id(parameter) for group in groups for parameter in group["params"]}
        left_out = [name for name, parameter in self._params.items() if id(parameter) not in held]
        if self._params and len(left_out) == len(self._params):
            self.problems.append(
                "The optimizer has none of the model's parameters, so it trains something else. Make it from this"
                f" model: `torch.optim.{_class_of(self._optimizer)}(model.parameters(), ...)`."
            )
        elif left_out:
            self.warnings.append(
                f"the optimizer has not got {_listed(left_out)}, which stay as they are. If that is meant, say"
                " `parameter.requires_grad_(False)`; else make it from `model.parameters()`."
            )

    def _forward(self, xs: Any) -> Any:
        if not self._params:
            self.problems.append(
                "The model has no parameter that requires a gradient, so there is nothing to train. Is everything"
                " frozen? `parameter.requires_grad_(True)` thaws one."
            )
        try:
            preds = self._model(xs)
        except Exception as error:
            self.problems.append(
                f"The model fails on a batch of inputs, {_described(xs)}: {type(error).__name__}: {error}. Change the"
                " model or the dataset until `model(xs)` works."
            )
            return None
        if preds is None:
            self.problems.append("The model returns None. Its `forward` needs a `return`.")
        if _has_nan(preds):
            self.problems.append(
                "The output of the model has NaN in it before any training."
                + (
                    " So have the inputs: clean the data, `torch.isnan(xs)` finds where."
                    if _has_nan(xs)
                    else " The inputs have none: look at how the model is initialised, and for divisions by zero and"
                    " logarithms in its `forward`."
                )
            )
        return preds

    def _loss(self, preds: Any, ys: Any) -> Tensor | None:
        """The loss, if a backward can begin there."""
        self._look_at_shapes(preds, ys)
        name = getattr(self._lossfn, "__name__", type(self._lossfn).__name__)
        what = f"predictions, {_described(preds)}, and targets, {_described(ys)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the training itself will give them
                loss = self._lossfn(preds, ys)
        except Exception as error:
            self.problems.append(
                f"The loss function `{name}` fails on {what}: {type(error).__name__}: {error}. It is called as"
                " `lossfn(preds, ys)`; change it, the model's output or the targets until they fit."
            )
            return None
        if not isinstance(loss, Tensor):
            self.problems.append(
                f"The loss function `{name}` returns {_described(loss)}, not a tensor. Return the tensor itself:"
                " without `.item()`, `float(...)` or NumPy."
            )
        elif loss.numel() != 1:
            self.problems.append(
                f"The loss function `{name}` returns {_described(loss)}, and it has to be one number. Reduce it, for"
                ' example with `.mean()` or `reduction="mean"`.'
            )
        elif not loss.requires_grad:
            if self._params:
                self.problems.append(
                    f"The loss that `{name}` returns has no gradient. Somewhere on the way from the model it is cut"
                    " off, by `.detach()`, `.argmax()`, `.item()`, `torch.no_grad()` or a `torch.tensor(...)`."
                )
        else:
            return loss
        return None

    def _look_at_shapes(self, preds: Any, ys: Any) -> None:
        """Warn of shapes that ``preds - ys`` would blow up, such as (N, 1) and (N,)."""
        if not (isinstance(preds, Tensor) and isinstance(ys, Tensor)) or preds.shape == ys.shape:
            return
        if not (preds.is_floating_point() and ys.is_floating_point()):
            return
        try:
            shape: torch.Size = torch.broadcast_shapes(preds.shape, ys.shape)  # type: ignore[no-untyped-call]
        except RuntimeError:  # they do not go together at all: the loss function will say so
            return
        self.warnings.append(
            f"predictions have the shape {tuple(preds.shape)} and targets {tuple(ys.shape)}. A loss such as `mse_loss`"
            f" compares them as {tuple(shape)}, each with many others, and trains to something meaningless. Make them"
            " alike, as with `preds.squeeze(-1)` or `ys.unsqueeze(-1)`."
        )

    def _backward(self, loss: Tensor) -> None:
        try:
            self._fabric.backward(loss) if self._fabric is not None else loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            self.problems.append(
                f"The backward fails: {type(error).__name__}: {error}. If the model changes a tensor in place, let it"
                " make a new one."
            )
            return
        without = [name for name, parameter in self._params.items() if parameter.grad is None]
        if len(without) == len(self._params):
            self.problems.append(
                "No gradient reaches the parameters of the model: the loss depends on something else. Compute it from"
                " what `model(xs)` returns, with no `.detach()` in between."
            )
        elif without:
            self.warnings.append(
                f"no gradient reaches {_listed(without)}: the output does not depend on them. Take them out, or use"
                " them in `forward`."
            )


def training_data(learner: Any) -> Any:
    """What the learner trains on; None if there is nothing.

    Args:
        learner: The learner.
    """
    data = getattr(learner, "data", None)
    if isinstance(data, Mapping):
        names = {phase.name if isinstance(phase, Phase) else phase: phase for phase in data}
        return data[names[AbstractTrainingPhase.name]] if AbstractTrainingPhase.name in names else None
    if isinstance(data, tuple):
        return data[0] if data else None
    return data


def first_batch(data: Any) -> Any:
    """The first batch, with generators and positions put back; `NO_BATCH` if there is none.

    Args:
        data: A dataloader, or another iterable that can be gone through again.
    """
    samplers = (data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None))
    found = (getattr(sampler, "generator", None) for sampler in samplers)
    generators = [(each, each.get_state()) for each in found if isinstance(each, torch.Generator)]
    with _same_random_numbers():
        try:
            # A dataloader counts how often it was gone through: let it be that of a copy.
            source = copy.copy(data) if hasattr(data, "batch_sampler") else data
            return next(iter(source), NO_BATCH)
        finally:
            for generator, state in generators:
                generator.set_state(state)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    states = _collect_rng_states()
    try:
        yield
    finally:
        _set_rng_states(states)


@contextmanager
def _undone(model: Any) -> Iterator[None]:
    """Under it, the model trains; after it, gradients, buffers, modes and generators are as they were."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    for parameter, _ in gradients:
        parameter.grad = None
    model.train()
    try:
        with _same_random_numbers():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, mode in modes:
            module.training = mode


def _has_nan(data: Any) -> bool:
    found: list[bool] = []

    def look(tensor: Tensor) -> Tensor:
        found.append(tensor.is_floating_point() and bool(torch.isnan(tensor.detach()).any()))
        return tensor

    apply_to_tensors(data, look)
    return any(found)


def _described(value: Any) -> str:
    """A value in a few words: shape and dtype, or its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    return f"a value of type {type(value).__name__}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _class_of(optimizer: Any) -> str:
    """The name of the class of an optimizer, which may be wrapped."""
    return type(getattr(optimizer, "optimizer", optimizer)).__name__
