"""Curves of metrics, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_metrics(
    metrics: Mapping[Any, Mapping[str, Sequence[tuple[float, float]]]],
    path: str | PathLike[str] | None = None,
    xlabel: str = "epoch",
) -> Figure:
    """Draw metrics: a panel for each, with a line for each phase.

    Args:
        metrics: For each phase, or its name, the points ``(step, value)`` of each metric.
        path: Of the image to write; its ending says in which format.
        xlabel: What the horizontal axes count.

    Returns:
        The figure. It does not belong to pyplot: nothing has to be closed.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
        ValueError: If there is nothing to draw.
    """
    lines = {(name, phase): points for phase, named in metrics.items() for name, points in named.items() if points}
    panels = list(dict.fromkeys(name for name, _ in lines))
    if not panels:
        raise ValueError("There are no values to draw yet. Plot after the first epoch, or choose other columns.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'Drawing metrics needs the package matplotlib: pip install "torch-fabric-lite[plot]".', name="matplotlib"
        ) from error
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place, title=name, xlabel=xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for (metric, phase), points in lines.items():
            if metric == name:
                xs, ys = zip(*points, strict=True)
                # A line of one point would not be seen.
                axes.plot(xs, ys, label=str(getattr(phase, "name", phase)), marker="o" if len(xs) < 20 else None)
        axes.grid(alpha=0.3)
        axes.legend()
    if path is not None:
        figure.savefig(path)
    return figure
