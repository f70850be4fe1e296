"""Curves of a run from its `metrics.jsonl`, as matplotlib figures without pyplot's global state.

Every loss term has axes of its own: on shared ones the largest hides the rest. A thin line is what was logged; a thick
one is its running mean, whose width stands in the figure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLUMNS = 3
_BLUE, _GREY = "#2b5f9e", "#9db4d0"


def loss_curves(metrics: Sequence[Mapping[str, object]]) -> Figure | None:
    """The losses over the steps: the total and each term, each on its own axes; None where none is logged."""
    return _grid(metrics, _names(metrics, "loss/"), "loss/")


def learning_rate_curves(metrics: Sequence[Mapping[str, object]]) -> Figure | None:
    """The learning rate of each part over the steps; None where none is logged."""
    names = _names(metrics, "lr/")
    if not names:
        return None
    figure = _new_figure(7.0, 2.8)
    axes = figure.add_subplot()
    for name in names:
        steps, values = series(metrics, name)
        axes.plot(steps, values, label=name.removeprefix("lr/"), linewidth=1.4)
    _style(axes, "learning rate by part")
    axes.legend(fontsize=7, frameon=False)
    return figure


def time_and_memory_curves(metrics: Sequence[Mapping[str, object]]) -> Figure | None:
    """Seconds per step, waiting for data, samples per second, peak memory, gradient norm; None where none is logged."""
    wanted = ("time/step_s", "time/data_s", "throughput/samples_per_s", "memory/peak_gib", "grad_norm")
    return _grid(metrics, [name for name in wanted if series(metrics, name)[0].size], "")


def series(
    metrics: Sequence[Mapping[str, object]], name: str
) -> tuple[Float64[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
    """Steps and values of one metric, where it was logged; a value that was not finite is left out."""
    points: list[tuple[float, float]] = []
    for line in metrics:
        step, value = line.get("step"), line.get(name)
        if isinstance(step, int | float) and isinstance(value, int | float):
            points.append((float(step), float(value)))
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def running_mean(values: Float64[np.ndarray, " points"], width: int) -> Float64[np.ndarray, " points"]:
    """The mean of the last `width` values at each point; of those there are at the beginning."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def save_figure(figure: Figure, path: Path, *, dpi: int = 110) -> None:
    """Write a figure as PNG; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=dpi)


def _names(metrics: Sequence[Mapping[str, object]], prefix: str) -> list[str]:
    names = {name for line in metrics for name in line if name.startswith(prefix)}
    return sorted(names, key=lambda name: (name != "loss/total", name))


def _grid(metrics: Sequence[Mapping[str, object]], names: Sequence[str], prefix: str) -> Figure | None:
    if not names:
        return None
    num_rows = -(-len(names) // _COLUMNS)
    figure = _new_figure(3.1 * min(len(names), _COLUMNS), 2.2 * num_rows)
    for index, name in enumerate(names):
        axes = figure.add_subplot(num_rows, min(len(names), _COLUMNS), index + 1)
        steps, values = series(metrics, name)
        _draw(axes, steps, values, name.removeprefix(prefix))
    return figure


def _draw(
    axes: Axes, steps: Float64[np.ndarray, " points"], values: Float64[np.ndarray, " points"], title: str
) -> None:
    width = max(1, len(values) // 20)
    if width > 1:
        axes.plot(steps, values, color=_GREY, linewidth=0.8)
        axes.plot(steps, running_mean(values, width), color=_BLUE, linewidth=1.6)
        title = f"{title} (mean of {width})"
    else:
        axes.plot(steps, values, color=_BLUE, linewidth=1.4, marker="." if len(values) < 30 else "")
    _style(axes, title)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8, loc="left", parse_math=False)
    axes.set_xlabel("step", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
