"""`EMA`: a moving average of the weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fabric_lite.permissions import Callback, Read, StateAccess, Write


class EMA(Callback):
    """Keeps an exponential moving average of the weights of ``model`` (of each, if there are several).

    It is torch's `AveragedModel`: the first training step copies the weights, each later one makes the average
    ``decay * average + (1 - decay) * weights``. The averaged models are in `averaged`, and in ``cbstate.ema`` where the
    loop has a ``cbstate``.

    Writes ``cbstate.ema``; reads ``model``, and writes it with ``evaluate=True``.

    Args:
        decay: How much of the average stays, from 0 to 1.
        evaluate: Whether epochs of validation run with the averaged weights.
        use_buffers: Whether buffers are averaged, too; else those of the average are copies of the model's.

    Attributes:
        averaged: The averaged models by name, under ``"model"`` if there is one.

    Raises:
        ValueError: If the decay is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999, *, evaluate: bool = False, use_buffers: bool = False) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"`EMA(decay={decay!r})`: pass a number from 0 to 1, such as 0.999.")
        self.decay = decay
        self.evaluate = evaluate
        self.use_buffers = use_buffers
        self.averaged: dict[str, Any] = {}
        # weak, so that a callback that is kept does not keep the training's models
        self._models: dict[str, weakref.ref[nn.Module]] = {}
        self._loaded: Mapping[str, Any] | None = None
        self._raw: list[tuple[Tensor, Tensor]] = []

    def stateaccess(self) -> StateAccess:
        """See the class."""
        return {"model": Write() if self.evaluate else Read(), "cbstate.ema": Write()}

    def init(self, learner: Any) -> None:
        """Make the averaged models, once.

        Args:
            learner: The learner.
        """
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        model = learner.model
        models = dict(model) if isinstance(model, Mapping) else {"model": model}
        # of what was set up, the module inside: its parameters are the same ones
        inner = {name: getattr(each, "module", each) for name, each in models.items()}
        if {name: reference() for name, reference in self._models.items()} != inner:
            self._models = {name: weakref.ref(each) for name, each in inner.items()}
            average = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
            self.averaged = {
                name: AveragedModel(each, multi_avg_fn=average, use_buffers=self.use_buffers)
                for name, each in inner.items()
            }
        if self._loaded is not None:
            self.load_state_dict(self._loaded)
        cbstate = getattr(learner, "cbstate", None)
        if cbstate is not None:
            cbstate.ema = self.averaged

    def on_train_step_end(self, learner: Any) -> None:
        """Take the new weights into the average.

        Args:
            learner: The learner.
        """
        for model, averaged in self._pairs():
            averaged.update_parameters(model)

    def on_validation_epoch_begin(self, learner: Any) -> None:
        """Put the averaged weights in, if they are to be evaluated.

        Args:
            learner: The learner.
        """
        if self.evaluate:
            self._put_in()

    def on_validation_epoch_end(self, learner: Any) -> None:
        """Put the weights of the training back.

        Args:
            learner: The learner.
        """
        if self.evaluate:
            self._put_back()

    # an epoch that was left by an exception has no end
    on_train_epoch_begin = on_fit_end = on_exception = on_validation_epoch_end

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Under it, the models have the averaged weights, unless there was no training step yet.

        Optimizers may be used again after it, not under it.
        """
        outermost = not self._raw
        self._put_in()
        try:
            yield
        finally:
            if outermost:
                self._put_back()

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        if not self.averaged:
            return dict(self._loaded or {})
        return {name: averaged.state_dict() for name, averaged in self.averaged.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with saved averages; before there is a model, when it comes.

        Args:
            state: From `state_dict`.
        """
        self._loaded = None if self.averaged else state
        for name, averaged in self.averaged.items():
            averaged.load_state_dict(state[name])

    def _pairs(self) -> Iterator[tuple[nn.Module, Any]]:
        for name, averaged in self.averaged.items():
            model = self._models[name]()
            if model is not None:
                yield model, averaged

    @torch.no_grad()
    def _put_in(self) -> None:
        """Exchange the values in place, so that optimizers keep their parameters. A second time does nothing."""
        if self._raw:
            return
        for model, averaged in self._pairs():
            if averaged.n_averaged == 0:
                continue
            theirs: list[Tensor] = list(model.parameters())
            ours: list[Tensor] = list(averaged.module.parameters())
            if self.use_buffers:
                theirs, ours = [*theirs, *model.buffers()], [*ours, *averaged.module.buffers()]
            for target, value in zip(theirs, ours, strict=True):
                self._raw.append((target, target.detach().clone()))
                target.copy_(value)

    @torch.no_grad()
    def _put_back(self) -> None:
        while self._raw:
            target, value = self._raw.pop()
            target.copy_(value)
