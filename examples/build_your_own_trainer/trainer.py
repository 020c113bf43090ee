"""A trainer to copy and to change. Read `fit` first, then `train_epoch`, `train_batch` and `validate`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import length_hint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from fabric_lite import CancelFittingException, Event, Fabric, Phase, State, TrainingPhase, ValidationPhase
from fabric_lite.callbacks import ProgressPrinter, Recorder
from fabric_lite.checkpoint.latest import find_latest
from fabric_lite.permissions import unwrap
from fabric_lite.utilities.apply_func import apply_to_tensors
from fabric_lite.utilities.seed import RNGState

# Arguments that are counts, and what each may be instead.
COUNTS = {"max_epochs": None, "max_steps": None, "limit_train_batches": math.inf, "limit_val_batches": math.inf}
COUNTS |= dict.fromkeys(("grad_accum_steps", "validation_frequency", "checkpoint_frequency"), 1)

LIGHTNING = ("lightning.", "pytorch_lightning.")  # its own hooks do nothing, or look for its own trainer
Loader = DataLoader[Any]


@dataclass(eq=False, repr=False)
class Trainer:
    """Trains a model that has ``training_step``, ``configure_optimizers`` and, for validation, ``validation_step``.

    The processes of the run start when it is made. Callbacks and the model are called at the hooks that the README
    lists, and can ask for this object as ``learner``.
    """

    accelerator: Any = "auto"  # this and the next five are those of `Fabric`
    strategy: Any = "auto"
    devices: list[int] | str | int = "auto"
    precision: Any = None  # 32-true
    plugins: Any = None
    callbacks: Any = None
    loggers: Any = None  # they get the means of each epoch, and what model and callbacks log
    max_epochs: int | None = 1000  # in total
    max_steps: int | None = None  # of the optimizer, in total
    grad_accum_steps: int = 1  # how many batches make up one step of the optimizer; the last of an epoch may have less
    limit_train_batches: float = math.inf  # in an epoch
    limit_val_batches: float = math.inf
    validation_frequency: int = 1  # after each so manieth epoch
    use_distributed_sampler: bool = True
    checkpoint_dir: str | Path = "checkpoints"
    checkpoint_frequency: int = 1  # after each so manieth epoch; a training that stops is saved in any case

    differs_by_rank = True  # `state_dict` does: in the middle of an epoch, each process has sums of its own

    def __post_init__(self) -> None:
        for name, other in COUNTS.items():
            value = getattr(self, name)
            if value != other and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"`Trainer({name}={value!r})`: pass a whole number from 1 on, or {other}.")
        self.step, self.cbstate = State(), State()  # of the running step, and what callbacks share
        self.metrics = State()  # the latest number of each name; at the end of an epoch, its mean over the epoch
        self.phase: Phase | None = None
        given = as_list(self.callbacks)
        given += [new() for new in (Recorder, ProgressPrinter) if not any(isinstance(unwrap(c), new) for c in given)]
        loggers = [*as_list(self.loggers), SimpleNamespace(log_metrics=self.note, accepts_tensors=True)]
        self.fabric = Fabric(
            accelerator=self.accelerator, strategy=self.strategy, devices=self.devices, precision=self.precision,
            plugins=self.plugins, callbacks=given, loggers=loggers,
        )  # fmt: skip
        self.callbacks = self.fabric.callbacks
        self.fabric.launch()

    def fit(
        self, model: Any, train_loader: Loader, val_loader: Loader | None = None, ckpt_path: str | Path | None = None
    ) -> None:
        """Train a model, and validate it if there is data for that.

        ``ckpt_path`` is a checkpoint to go on from: a path, ``"latest"`` for the newest one in ``checkpoint_dir``, or
        another folder for the newest one in that. If there is none there yet, training begins at the beginning.
        """
        self.set_up(model, train_loader, val_loader)
        self.stop_reason: str | None = None
        with ExitStack() as stack:
            stack.enter_context(self.fabric.callbacks.add(self.hooks))
            if not hasattr(model, "log"):  # which a LightningModule has
                model.log = lambda name, value, **options: self.note({name: value})
                stack.callback(delattr, model, "log")
            try:
                self.call("on_fit_begin")
                if ckpt_path is not None and not str(ckpt_path).endswith(".ckpt"):
                    folder = self.checkpoint_dir if ckpt_path == "latest" else ckpt_path
                    ckpt_path = self.fabric.broadcast(find_latest(folder) if self.fabric.is_global_zero else None)
                if ckpt_path is not None:
                    self.load(ckpt_path)
                self.agree()
                while not self.is_done() and self.train_epoch():
                    if "validation" in self.data and (self.current_epoch + 1) % self.validation_frequency == 0:
                        self.validate()
                    self.finish_epoch()
            except CancelFittingException as reason:
                self.stop_reason = str(reason)
            except BaseException as error:
                self.phase = None
                self.call("on_exception", exception=error)
                raise
            self.phase = None
            self.call("on_fit_end")

    def set_up(self, model: Any, train_loader: Loader, val_loader: Loader | None) -> None:
        """Put model, optimizer and data where they belong, and begin to count."""
        set_up = partial(self.fabric.setup_dataloaders, use_distributed_sampler=self.use_distributed_sampler)
        self.data = {"train": set_up(train_loader)} | ({} if val_loader is None else {"validation": set_up(val_loader)})
        self.model: Any = self.fabric.setup_module(model)
        # After the model: FSDP2 exchanges its parameters for shards, and those are what the optimizer has to hold.
        optimizer, self.schedule = parse_optimizers(model)
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        hooks = {name: getattr(model, name) for name in dir(model) if name.startswith("on_")}
        own = {name: hook for name, hook in hooks.items() if not getattr(hook, "__module__", "").startswith(LIGHTNING)}
        self.hooks = type(type(model).__name__, (SimpleNamespace,), {})(**own)
        self.current_epoch = self.batch_idx = self.global_step = 0
        self.should_stop = self.should_save = False  # set in any process, they count for all, after the step
        self.sums: dict[str, tuple[Any, int]] = {}

    def call(self, *hooks: str, **arguments: Any) -> None:
        """Call hooks on callbacks and model: each method gets those of the arguments that it names, and ``learner``."""
        for hook in hooks:
            phase = {"phase": self.phase} if hook in tuple(Event) else {}  # others have it in their name
            try:
                self.fabric.call(hook, learner=self, **phase, **arguments)
            except CancelFittingException as reason:
                if not hook.endswith(("step_end", "batch_end", "epoch_end")):  # where it can be saved
                    raise
                self.should_stop, self.stop_reason = True, str(reason)

    def train_epoch(self) -> bool:
        """Train to the end of the epoch, from where it was left, and return whether that was reached."""
        self.phase = TrainingPhase()
        self.call("on_epoch_begin", "on_train_epoch_start")
        if self.batch_idx:
            self.load(self.loaded)  # once more: callbacks have begun an epoch that they were in the middle of
        total = min(self.limit_train_batches, length_hint(self.data["train"]) or math.inf)
        stepped = True
        for batch in self.data["train"]:
            stepped = self.train_batch(batch, total)
            if self.batch_idx >= total:
                break
            if stepped:  # and only then, so that no checkpoint has to hold gradients
                self.agree()
                if self.should_save or self.is_done():
                    self.save("unfinished-epoch")
                if self.is_done():
                    self.end_phase()
                    return False
        if not stepped:
            self.optimizer_step()  # for the batches that are left over, where nobody knew which would be the last
        self.end_phase()
        return True

    def train_batch(self, batch: Any, total: float) -> bool:
        """Train on a batch, and return whether the optimizer has made a step."""
        index = self.batch_idx
        first = index - index % self.grad_accum_steps
        size = min(self.grad_accum_steps, total - first)  # how many batches make up this step
        stepping = index + 1 == first + size
        self.step = State(batch=batch, batch_idx=index)
        self.call("on_step_begin", "on_train_batch_start", batch=batch, batch_idx=index)
        may_be_last = not length_hint(self.data["train"])  # has no length
        with self.fabric.no_backward_sync(self.model, enabled=not stepping and not may_be_last):
            outputs = self.model.training_step(batch, index)
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if not isinstance(loss, Tensor):
                name = f"{type(self.model.module).__name__}.training_step"
                raise TypeError(f"`{name}` returned {outputs!r}. Return the loss, or a mapping with the key 'loss'.")
            self.step.loss = loss
            self.call("on_backward_begin", "on_before_backward", loss=loss)
            self.fabric.backward(loss / size)
            self.call("on_backward_end", "on_after_backward")
        outputs = self.take(outputs, "train")
        if stepping:
            self.optimizer_step()
        self.batch_idx += 1
        self.call("on_step_end", "on_train_batch_end", outputs=outputs, batch=batch, batch_idx=index)
        return stepping

    def optimizer_step(self) -> None:
        """Update the parameters."""
        self.call("on_before_optimizer_step", optimizer=self.optimizer)
        self.optimizer.step()
        self.call("on_before_zero_grad", optimizer=self.optimizer)
        self.optimizer.zero_grad()
        self.global_step += 1
        self.step_scheduler("step", self.global_step)

    def step_scheduler(self, interval: str, count: int) -> None:
        """Let the scheduler make a step, if it makes one after so many steps or epochs."""
        schedule = self.schedule
        if schedule is None or schedule["interval"] != interval or count % schedule["frequency"]:
            return
        scheduler, monitor, value = schedule["scheduler"], schedule["monitor"], None
        if monitor is not None:
            if monitor not in self.metrics:
                there = ", ".join(self.metrics)
                raise KeyError(
                    f"The scheduler monitors {monitor!r}. Choose one of what the steps return and log: {there}."
                )
            # In the middle of an epoch each process has its own value, and the learning rates must not part.
            value = float(self.fabric.all_reduce(float(self.metrics[monitor])))
        if hasattr(self.model, "lr_scheduler_step"):
            self.model.lr_scheduler_step(scheduler, value)
        else:
            scheduler.step(*[] if value is None else [value])

    def finish_epoch(self) -> None:
        """Count the epoch, and save it."""
        self.step_scheduler("epoch", self.current_epoch + 1)
        self.current_epoch, self.batch_idx = self.current_epoch + 1, 0
        self.agree()
        if self.should_save or self.is_done() or self.current_epoch % self.checkpoint_frequency == 0:
            self.save(f"epoch-{self.current_epoch:04d}")

    def agree(self) -> None:
        """Stop, or save, if any process wants to."""
        if self.fabric.world_size > 1:
            wishes = torch.tensor([self.should_stop, self.should_save], dtype=torch.int, device=self.fabric.device)
            self.should_stop, self.should_save = map(bool, self.fabric.all_reduce(wishes, reduce_op="max").tolist())

    def is_done(self) -> bool:
        """Whether it is time to stop."""
        counts = ((self.current_epoch, self.max_epochs), (self.global_step, self.max_steps))
        return self.should_stop or any(limit is not None and count >= limit for count, limit in counts)

    @torch.no_grad()
    def validate(self) -> None:
        """Go through the validation data."""
        self.phase = ValidationPhase()
        training = [module for module in self.model.modules() if module.training]
        if not hasattr(self.hooks, "on_validation_model_eval"):
            self.model.eval()
        self.call("on_validation_model_eval")
        self.call("on_epoch_begin", "on_validation_epoch_start")
        total = min(self.limit_val_batches, length_hint(self.data["validation"]) or math.inf)
        for index, batch in enumerate(self.data["validation"]):
            self.step = State(batch=batch, batch_idx=index)
            self.call("on_step_begin", "on_validation_batch_start", batch=batch, batch_idx=index)
            outputs = self.take(self.model.validation_step(batch, index), "val")
            self.call("on_step_end", "on_validation_batch_end", outputs=outputs, batch=batch, batch_idx=index)
            if index + 1 >= total:
                break
        self.end_phase()
        if not hasattr(self.hooks, "on_validation_model_train"):
            for module in training:  # those that were frozen stay frozen
                module.training = True
        self.call("on_validation_model_train")

    def take(self, outputs: Any, prefix: str) -> Any:
        """Take note of what the model's step returned, and return it without its graph, which takes memory."""
        outputs = apply_to_tensors(outputs, Tensor.detach)
        named = outputs if isinstance(outputs, Mapping) else {} if outputs is None else {"loss": outputs}
        self.step.update(named)
        numbers = [
            name for name, value in named.items() if isinstance(value, (int, float)) or getattr(value, "ndim", 1) == 0
        ]
        self.note({f"{prefix}_{name}": named[name] for name in numbers})
        return outputs

    def note(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Take note of numbers; as a logger, also of those that the `self.log` of a LightningModule logs."""
        for name, value in apply_to_tensors(dict(metrics), Tensor.detach).items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = total + value, count + 1
            self.metrics[name] = value

    def end_phase(self) -> None:
        """Log the means over the epoch and all processes, and call the hook."""
        parts = self.fabric.strategy.gather_objects(self.state_dict()["sums"])
        sums = {name: [part[name] for part in parts if name in part] for name in self.sums}
        means = {name: sum(s for s, _ in each) / sum(n for _, n in each) for name, each in sums.items()}
        self.fabric.log_dict(means, step=self.global_step)
        self.sums = {}
        self.call("on_epoch_end")  # in a phase, that is `on_train_epoch_end` or `on_validation_epoch_end`, too
        self.fabric.print(", ".join(f"{name} {value:.4f}" for name, value in means.items()))

    def save(self, name: str) -> None:
        """Write a checkpoint. All processes have to call it."""
        self.fabric.save(f"{str(self.checkpoint_dir).rstrip('/')}/{name}.ckpt", self.state())
        self.should_save = False

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint. All processes have to call it."""
        self.fabric.load(path, self.state())
        self.loaded = path
        self.batch_idx = self.data["train"].state_dict()["position"]
        # A process that was not there when it was saved learns it from the first.
        self.current_epoch, self.global_step = self.fabric.broadcast((self.current_epoch, self.global_step))

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on bit for bit."""
        own = {str(i): each for i, each in enumerate(self.callbacks) if getattr(each, "differs_by_rank", False)}
        return {
            "model": self.model, "optimizer": self.optimizer, "precision": self.fabric.strategy.precision,
            "callbacks": self.callbacks, "callbacks of each rank": own, "data": self.data,
            "trainer": self, "rng": RNGState(), **({"scheduler": self.schedule["scheduler"]} if self.schedule else {}),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """How far training has come. The position in the epoch is that of the dataloader."""
        metrics = {name: float(value) for name, value in self.metrics.items()}
        sums = {name: [float(total), count] for name, (total, count) in self.sums.items()}
        return {"epoch": self.current_epoch, "step": self.global_step, "metrics": metrics, "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.current_epoch, self.global_step = state["epoch"], state["step"]
        self.metrics.update(state["metrics"])
        self.sums = {name: (total, count) for name, (total, count) in state["sums"].items()}


def parse_optimizers(model: Any) -> tuple[Optimizer, dict[str, Any] | None]:
    """Read what ``configure_optimizers`` returns: an optimizer and, perhaps, a scheduler with or without options."""
    found, where = model.configure_optimizers(), f"`{type(model).__name__}.configure_optimizers`"
    by_name = found if isinstance(found, Mapping) else {}
    parts: list[Any] = [by_name.get("optimizer"), by_name.get("lr_scheduler")] if by_name else as_list(found)
    parts = [each for part in parts for each in as_list(part)]
    optimizer, given, *more = [*parts, None, None]
    if not isinstance(optimizer, Optimizer) or isinstance(given, Optimizer) or any(more):
        kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise TypeError(f"{where} returned {kinds}. Return one optimizer, or one optimizer and one scheduler.")
    if given is None:
        return optimizer, None
    config = {"interval": "epoch", "frequency": 1, **(given if isinstance(given, Mapping) else {"scheduler": given})}
    monitor = by_name.get("monitor", "val_loss") if isinstance(config["scheduler"], ReduceLROnPlateau) else None
    config.setdefault("monitor", monitor)
    if config["interval"] not in ("epoch", "step") or config["frequency"] < 1:
        wrong = f"'interval': {config['interval']!r} and 'frequency': {config['frequency']!r}"
        raise ValueError(f"{where} returned {wrong}. Choose 'epoch' or 'step', and a whole number from 1 on.")
    return optimizer, config


def as_list(given: Any) -> list[Any]:
    """One thing, a list of them, or None, as a new list."""
    return list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
