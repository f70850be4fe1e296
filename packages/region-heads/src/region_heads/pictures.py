"""Pictures of what each head got right: matplotlib figures without global state, so they work in any thread.

Needs the extra `pictures` (matplotlib). Every function returns a `Figure`; `save_png` writes one.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from region_heads.labels import SIDES
from region_heads.metrics import RegionMetrics
from region_heads.tasks import TaskType


def draw_distances(metrics: RegionMetrics) -> Figure:
    """Predicted against true metres, with the band of ten per cent in which an answer succeeds."""
    answered = [item for item in metrics.answers if item.task is TaskType.DISTANCE and item.answer is not None]
    figure, axes = _new_axes("Distance: predicted against true")
    limit = 1.05 * max([1.0, *(max(item.truth, item.answer or 0.0) for item in answered)])
    line = np.array([0.0, limit])
    axes.fill_between(line, 0.9 * line, 1.1 * line, alpha=0.25, color="tab:green", label="within 10 %")
    axes.plot(line, line, color="tab:green", linewidth=1)
    axes.scatter([item.truth for item in answered], [item.answer for item in answered], s=10, alpha=0.6)
    axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="true distance (m)", ylabel="predicted distance (m)")
    axes.set_aspect("equal")
    axes.legend(loc="upper left")
    return figure


def draw_confusion(metrics: RegionMetrics, task: TaskType) -> Figure:
    """Confusion matrix of a task with classes: counts written in cells coloured by the share of their row."""
    matrix = metrics.confusion(task)
    figure, axes = _new_axes(f"{task.label}: truth against answer")
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    names = list(SIDES) if task is TaskType.LEFT_RIGHT else [str(index) for index in range(len(matrix))]
    axes.set_xticks(range(len(matrix)), names)
    axes.set_yticks(range(len(matrix)), names)
    axes.set(xlabel="answer", ylabel="truth")
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    return figure


def draw_by_num_regions(metrics: RegionMetrics, task: TaskType) -> Figure:
    """Share of right answers per number of regions in the question, with the number of questions on each bar."""
    groups = metrics.by_num_regions(task)
    figure, axes = _new_axes(f"{task.label}: right answers by number of regions")
    axes.bar(list(groups), [share for share, _ in groups.values()], color="tab:blue")
    for size, (share, count) in groups.items():
        axes.text(size, share, f"n={count}", ha="center", va="bottom", fontsize=8)
    axes.set(ylim=(0, 1.1), xlabel="regions in the question", ylabel="share of right answers")
    if groups:
        axes.set_xticks(list(groups))
    return figure


def draw_all(metrics: RegionMetrics) -> dict[str, Figure]:
    """The figures of every task that occurred, by file name without ending."""
    present = {item.task for item in metrics.answers}
    figures: dict[str, Figure] = {}
    if TaskType.DISTANCE in present:
        figures["distance"] = draw_distances(metrics)
        figures["distance_by_num_regions"] = draw_by_num_regions(metrics, TaskType.DISTANCE)
    for task in (TaskType.LEFT_RIGHT, TaskType.COUNTING):
        if task in present:
            figures[f"{task.label}_confusion"] = draw_confusion(metrics, task)
    if TaskType.MULTIPLE_CHOICE in present:
        figures["multiple_choice_by_num_regions"] = draw_by_num_regions(metrics, TaskType.MULTIPLE_CHOICE)
    return figures


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return its path; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=100)
    return path


def _new_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes
