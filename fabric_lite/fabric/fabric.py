"""`Fabric`: it checks what it is given, and hands it to the strategy, the precision and the callbacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

from fabric_lite.accelerators import Accelerator
from fabric_lite.connector import _PLUGIN_INPUT, _PRECISION_INPUT, make_plan
from fabric_lite.fabric.checkpoints import _Checkpoints
from fabric_lite.hooks import Callbacks, Executor, Guard
from fabric_lite.strategies import Strategy
from fabric_lite.utilities.seed import seed_everything
from fabric_lite.utilities.threads import carry_torch_state

# Which callback creates an entry of `cbstate`, for the error that misses it.
_CREATORS = {
    "ema": "EMA",
    "gradientnorm": "GradientNorm",
    "history": "Recorder",
    "metricsepoch": "Metrics",
    "metricsstep": "Metrics",
    "timer": "Timer",
    "traces": "Traces",
}


class Fabric(_Checkpoints):
    """Runs a PyTorch training loop on any device, in any precision, on one process or many.

    Args:
        accelerator: The hardware: ``"cpu"``, ``"cuda"``, ``"mps"``, any other type that `torch.accelerator` knows,
            ``"gpu"`` for the one of this machine, ``"auto"`` for that or else the CPU; or an `Accelerator`.
        strategy: How the work is spread over devices and processes: a name or a `Strategy`.
        devices: How many devices on each machine (on the CPU: processes), a list of their indices, or ``"auto"``.
        num_nodes: Number of machines.
        precision: ``"32-true"`` (the default), ``"64-true"``, ``"16-true"``, ``"bf16-true"``, ``"16-mixed"``,
            ``"bf16-mixed"``, ``"transformer-engine"``.
        plugins: A `Precision`, a `CheckpointIO`, a `ClusterEnvironment`: one, or a list.
        callbacks: Any object, or a list of them: their methods are called by name with `call`. The list is copied.
        loggers: A `Logger` or any object with ``log_metrics(metrics=, step=)``, or a list of them.
        guard: How guarded callbacks are held to what they declare: ``"on"``, ``"strict"`` to notice tensors that they
            change in place, too, or ``"off"``.
        executor: Runs the callbacks of a hook; by default one after the other.

    For example:

        fabric = Fabric(accelerator="auto", precision="bf16-mixed")
        model, optimizer = fabric.setup(model, optimizer)
        loader = fabric.setup_dataloaders(loader)
        for x, y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()
            fabric.call("on_train_batch_end", loss=loss)
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        strategy: str | Strategy = "auto",
        devices: list[int] | str | int = "auto",
        num_nodes: int = 1,
        precision: _PRECISION_INPUT | None = None,
        plugins: _PLUGIN_INPUT | Iterable[_PLUGIN_INPUT] | None = None,
        callbacks: Any = None,
        loggers: Any = None,
        guard: Literal["on", "off", "strict"] = "on",
        executor: Executor | None = None,
    ) -> None:
        self._loggers = list(loggers) if isinstance(loggers, (list, tuple)) else [] if loggers is None else [loggers]
        if guard not in ("on", "off", "strict"):
            raise ValueError(f"`Fabric(guard={guard!r})`: choose 'on', 'off' or 'strict'.")
        make_guard = partial(_make_guard, guard)
        collection = Callbacks(callbacks, make_guard=make_guard, executor=executor, carry=carry_torch_state)
        super().__init__(make_plan(accelerator, strategy, devices, num_nodes, precision, plugins), collection)

    # -- callbacks and loggers -----------------------------------------------------------------------------------

    @property
    def _callbacks(self) -> Callbacks:
        return self._hooks

    @_callbacks.setter
    def _callbacks(self, callbacks: Any) -> None:
        self._hooks.set(callbacks)

    @property
    def loggers(self) -> list[Any]:
        """The loggers."""
        return self._loggers

    @property
    def logger(self) -> Any:
        """The first logger."""
        return self._loggers[0]

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Log one number.

        Args:
            name: Its name.
            value: A number, or a tensor with one element, from which no gradient is kept.
            step: Number of the step; by default each logger counts.
        """
        self.log_dict({name: value}, step=step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log several numbers.

        Args:
            metrics: Numbers, or tensors with one element, by name.
            step: Number of the step; by default each logger counts.
        """
        if self._loggers:
            from fabric_lite.loggers.logger import log_to_all

            log_to_all(self._loggers, metrics, step)

    @staticmethod
    def seed_everything(seed: int | None = None, workers: bool | None = None, verbose: bool = True) -> int:
        """Seed the random number generators of Python, NumPy and torch.

        Args:
            seed: The seed; by default that of the environment variable ``PL_GLOBAL_SEED``, or else 0.
            workers: Whether the workers of dataloaders are seeded, too; by default they are.
            verbose: Whether to log the seed.

        Returns:
            The seed.
        """
        return seed_everything(seed=seed, workers=True if workers is None else workers, verbose=verbose)


def _make_guard(mode: Literal["on", "off", "strict"]) -> Guard:
    """The guard of a collection, made when the first guarded callback comes."""
    from fabric_lite.permissions import Guard as PermissionGuard
    from fabric_lite.utilities.versions import tensor_versions

    return PermissionGuard(mode, creators=_CREATORS, mutation_check=tensor_versions)
