"""Whole training loops in plain PyTorch, fabric_lite, Lightning Fabric and Accelerate: how fast, in how much memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from timeit import Timer
from typing import Any, NamedTuple

import numpy
import torch
from timing import Row, in_turns, ratio
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

# No side is imported up here: a process that measures the memory of one holds none of the others.
HERE = Path(__file__).parent
PLOT = HERE / "comparison.svg"
PLAIN, OURS = "plain torch", "fabric_lite"
LEARNER = "fabric_lite, Learner"
PEERS = (PLAIN, "Lightning Fabric", "Accelerate")
GREY, COLOURS = "#777777", ("#2f6fb0", "#b8621b")
Epoch = Callable[[], list[float]]  # trains for an epoch, and returns the losses of its steps
Parts = tuple[nn.Module, torch.optim.Optimizer, Any]


class Workload(NamedTuple):
    """What is trained.

    Attributes:
        make_model: Makes the model.
        make_data: Makes the training data.
        batch_size: Samples in a batch.
        makings: How often all sides are made anew.
        epochs: How many each is timed for, then.
        bars: The least ratio of samples per second beside a peer.
    """

    make_model: Callable[[], nn.Module]
    make_data: Callable[[], Dataset[Any]]
    batch_size: int
    makings: int
    epochs: int
    bars: dict[str, float]


class Result(NamedTuple):
    """What was measured of one workload: for each side the samples per second, round by round, and bytes of memory."""

    workload: str
    rates: dict[str, list[float]]
    memory: dict[str, int]


def measure(quick: bool) -> list[Row]:
    """Compare whole loops with plain PyTorch, Lightning Fabric and Accelerate, all on one thread."""
    return [row for result in results(quick) for row in rows_of(result)]


@cache
def results(quick: bool) -> list[Result]:
    """What is measured, once for the table and the plot."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [Result(name, rates_of(name, quick), memory_of(name)) for name in WORKLOADS]
    finally:
        torch.set_num_threads(threads)


def rows_of(result: Result) -> list[Row]:
    """Ours beside each peer, and the Learner beside plain PyTorch."""
    rates, memory = result.rates, result.memory
    rows = []
    for ours, peer in [*((OURS, peer) for peer in PEERS), (LEARNER, PLAIN)]:
        figure = result.workload + ours.removeprefix(OURS)
        middle, shown = ratio(rates[ours], rates[peer])
        least = WORKLOADS[result.workload].bars.get(peer) if ours == OURS else None
        bar, held = ("", None) if least is None else (f"≥ {least:g}", middle >= least)
        rows.append(Row(f"{figure}: samples/s", show_rate(rates[ours]), peer, show_rate(rates[peer]), shown, bar, held))
        mine, its = (f"{memory[side] / 2**20:.0f} MiB" for side in (ours, peer))
        rows.append(Row(f"{figure}: peak memory", mine, peer, its, f"{memory[ours] / memory[peer]:.3g}", "", None))
    return rows


def show_rate(rates: list[float]) -> str:
    """The median and the most."""
    return f"{median(rates):,.0f} ({max(rates):,.0f})"


def write_plot() -> None:
    """Draw what a full run measured."""
    draw(results(False), PLOT)


def draw(results: list[Result], path: Path) -> None:
    """Draw each side beside plain PyTorch. The same values make the same file.

    Args:
        results: What was measured.
        path: The SVG to write, whose colours can be read on white and on black.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    sides = [side for side in SIDES if side != PLAIN]
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with rc_context({**dict.fromkeys(names, GREY), "svg.hashsalt": "comparison", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        speed, memory = figure.subplots(1, 2, sharey=True)
        for number, (workload, rates, sizes) in enumerate(results):
            places = [row + (number - (len(results) - 1) / 2) * 0.38 for row in range(len(sides))]
            for panel, values in (
                (speed, [ratio(rates[side], rates[PLAIN])[0] for side in sides]),
                (memory, [sizes[side] / sizes[PLAIN] for side in sides]),
            ):
                bars = panel.barh(places, values, height=0.34, color=COLOURS[number], label=workload)
                panel.bar_label(bars, fmt="%.2f", padding=-30, color="white")
        for panel, title in ((speed, "samples per second: more is better"), (memory, "peak memory: less is better")):
            panel.set_title(title, fontsize="medium")
            panel.set_xlabel(f"{PLAIN} = 1")
            panel.axvline(1, color=GREY, linewidth=1)
            panel.spines[["top", "right"]].set_visible(False)
        speed.set_yticks(range(len(sides)), sides)
        speed.invert_yaxis()
        figure.legend(*speed.get_legend_handles_labels(), loc="outside lower center", ncols=len(results), frameon=False)
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


# -- samples per second -----------------------------------------------------------------------------------------------


def rates_of(name: str, quick: bool) -> dict[str, list[float]]:
    """Samples per second of each side. A turn is an epoch, and the sides are made anew several times."""
    workload = WORKLOADS[name]
    samples = len(workload.make_data())
    order = list(SIDES)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(1 if quick else workload.makings):
        order.append(order.pop(0))
        losses: dict[str, list[float]] = {side: [] for side in order}
        sides = {
            side: Timer("losses.extend(epoch())", globals={"losses": losses[side], "epoch": SIDES[side](workload)})
            for side in order
        }
        for side, times in in_turns(sides, rounds=3 if quick else workload.epochs, seconds=1e-6).items():
            rates[side] += [samples / seconds for seconds in times]
        check_equal(name, losses)
    return rates


def check_equal(workload: str, losses: dict[str, list[float]]) -> None:
    """The proof that all sides do the same work: the losses of all steps are the same, bit by bit.

    Raises:
        RuntimeError: If a side has others than plain PyTorch.
    """
    expected = losses[PLAIN]
    for side, found in losses.items():
        if len(found) != len(expected):
            raise RuntimeError(f"{workload}: {side} made {len(found)} steps, but {PLAIN} {len(expected)}.")
        for step, (loss, its) in enumerate(zip(found, expected, strict=True), start=1):
            if loss != its:
                raise RuntimeError(
                    f"{workload}: the losses of {side} are not those of {PLAIN}: at step {step}, {loss!r}, not {its!r}."
                )


# -- memory -----------------------------------------------------------------------------------------------------------


def memory_of(name: str) -> dict[str, int]:
    """Bytes of memory that a new process holds at most when it trains nothing but one side."""
    code = "import sys, comparison; comparison.train_alone(*sys.argv[1:])"
    memory = {}
    for side in SIDES:
        command = [sys.executable, "-c", code, name, side]
        done = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
        memory[side] = int(done.stdout.splitlines()[-1])
    return memory


def train_alone(name: str, side: str) -> None:
    """Train for two epochs, and print how much memory this process held at most."""
    torch.set_num_threads(1)
    epoch = SIDES[side](WORKLOADS[name])
    for _ in range(2):
        epoch()
    status = Path("/proc/self/status")
    if status.exists():  # `getrusage` of Linux begins with the peak of the process that started this one
        print(next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


# -- what is trained --------------------------------------------------------------------------------------------------


def make_mlp() -> nn.Module:
    """For images of 8 x 8 pixels."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def make_digits() -> Dataset[Any]:
    """The digits of scikit-learn, read from its file: importing it would add 80 MiB to the memory of each side."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("The comparison trains on the digits of scikit-learn: pip install scikit-learn")
    table = numpy.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    rows = torch.from_numpy(table)
    return TensorDataset(rows[:, :-1].float() / 16, rows[:, -1].long())


def text_model() -> Any:
    """The module of the examples."""
    sys.path.insert(0, str(HERE.parent / "examples" / "distributed"))
    try:
        import text_model
    finally:
        del sys.path[0]
    return text_model


def make_text() -> Dataset[Any]:
    """The beginning of the help topics of Python, in pieces of 64 characters."""
    return Subset(text_model().Characters(training=True), range(64))


WORKLOADS = {
    "digits MLP": Workload(
        make_mlp, make_digits, batch_size=64, makings=6, epochs=16, bars={"Lightning Fabric": 1, "Accelerate": 1}
    ),
    "small transformer": Workload(
        lambda: text_model().Transformer(), make_text, batch_size=16, makings=3, epochs=24, bars={PLAIN: 0.97}
    ),
}

# -- who trains it ----------------------------------------------------------------------------------------------------


def make_parts(workload: Workload) -> Parts:
    """Model, optimizer and dataloader, the same for all. The order of the samples has a generator of its own."""
    torch.manual_seed(0)
    model = workload.make_model()
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(workload.make_data(), workload.batch_size, shuffle=True, generator=generator)
    return model, torch.optim.AdamW(model.parameters(), lr=0.001), loader


def loss_of(preds: Tensor, ys: Tensor) -> Tensor:
    """The loss of both models; that of the text has its targets in rows."""
    return cross_entropy(preds, ys.flatten())


def loop(model: nn.Module, optimizer: Any, loader: Iterable[Any], backward: Callable[[Tensor], Any]) -> Epoch:
    """The loop that all sides have."""

    def epoch() -> list[float]:
        losses = []
        for xs, ys in loader:
            optimizer.zero_grad()
            loss = loss_of(model(xs), ys)
            backward(loss)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    return epoch


def plain(workload: Workload) -> Epoch:
    """The loop that one writes without any of them."""
    return loop(*make_parts(workload), Tensor.backward)


def with_fabric(kind: Any, workload: Workload) -> Epoch:
    """The loop with our `Fabric` or Lightning's."""
    model, optimizer, loader = make_parts(workload)
    fabric = kind(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(model, optimizer)
    return loop(model, optimizer, fabric.setup_dataloaders(loader), fabric.backward)


def ours(workload: Workload) -> Epoch:
    """The loop with our Fabric."""
    from fabric_lite import Fabric

    return with_fabric(Fabric, workload)


def with_lightning(workload: Workload) -> Epoch:
    """The loop with Lightning's Fabric."""
    from lightning.fabric import Fabric

    return with_fabric(Fabric, workload)


def with_accelerate(workload: Workload) -> Epoch:
    """The loop with Accelerate."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # or else it keeps what the one made before was told
    accelerator = Accelerator(cpu=True)
    return loop(*accelerator.prepare(*make_parts(workload)), accelerator.backward)


def with_learner(workload: Workload) -> Epoch:
    """Our `Learner` in the place of the loop, with guarded callbacks that count, and measure loss and accuracy."""
    from fabric_lite import Fabric, Learner, TrainingPhase
    from fabric_lite.callbacks import Metrics, Recorder

    def accuracy(preds: Tensor, ys: Tensor) -> Tensor:
        return (preds.argmax(dim=1) == ys.flatten()).float().mean()

    model, optimizer, loader = make_parts(workload)
    learner = Learner(
        model, loss_of, data=(loader,), optimizer=optimizer, callbacks=[Recorder(), Metrics(accuracy)],
        fabric=Fabric(accelerator="cpu", devices=1), usedefaultcallbacks=False,
    )  # fmt: skip

    def epoch() -> list[float]:
        learner.run_epoch(TrainingPhase())
        return learner.cbstate.metricsstep[TrainingPhase()]["Loss"].latest(len(loader))

    return epoch


SIDES: dict[str, Callable[[Workload], Epoch]] = {
    OURS: ours,
    PLAIN: plain,
    "Lightning Fabric": with_lightning,
    "Accelerate": with_accelerate,
    LEARNER: with_learner,
}
