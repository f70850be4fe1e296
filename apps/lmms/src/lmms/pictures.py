"""Pictures of single questions: the frames that the model saw with their times, what was asked, what was answered."""

import math
from collections.abc import Sequence
from textwrap import fill

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PICTURE_DPI = 70
"""Enough for small frames; a report holds dozens of these pictures."""

FRAMES_PER_ROW = 8
_WIDTH_IN = 11.0
_LINE_IN = 0.22


def draw_frames(
    frames: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    *,
    title: str,
    errors: tuple[Sequence[float | None], Sequence[float | None]] | None = None,
) -> Figure:
    """Frames in order of time, row by row, with words above.

    Args:
        frames: Frames or pictures, in the order shown.
        captions: One below each, for instance its time.
        title: Question and answers, a line each; long lines are wrapped.
        errors: Per frame the error of its prediction and that of copying the frame before, drawn as bars below the
            frames; None where there is no prediction.

    Raises:
        ValueError: Frames, captions and errors differ in number.
    """
    given = [len(captions), *(len(values) for values in errors or ())]
    if any(count != len(frames) for count in given):
        raise ValueError(f"got {len(frames)} frames with {given} captions (and errors), expected one for each frame")
    lines = "\n".join(fill(_printable(line), 120) for line in title.split("\n"))
    columns = min(max(len(frames), 4), FRAMES_PER_ROW)
    num_rows = math.ceil(len(frames) / columns)
    shape = max((frame.shape[0] / frame.shape[1] for frame in frames), default=1.0)
    row_in = _WIDTH_IN / columns * shape + _LINE_IN
    bars_in = 1.8 if errors is not None else 0.0
    heights = [row_in] * num_rows + ([bars_in] if errors is not None else [])
    title_in = _LINE_IN * (lines.count("\n") + 2)
    figure = Figure(figsize=(_WIDTH_IN, title_in + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    # A dollar sign in what somebody wrote or a model said opens no formula.
    figure.suptitle(lines, fontsize=10, x=0.01, ha="left", parse_math=False)
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights) if heights else None
    for index, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        assert grid is not None
        axes = figure.add_subplot(grid[index // columns, index % columns])
        axes.imshow(frame, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(caption, fontsize=8, parse_math=False)
    if errors is not None and grid is not None:
        _draw_errors(figure.add_subplot(grid[num_rows, :]), captions, *errors)
    return figure


def _draw_errors(
    axes: Axes, captions: Sequence[str], errors: Sequence[float | None], copies: Sequence[float | None]
) -> None:
    places = np.arange(len(captions))
    for values, offset, label, colour in ((errors, -0.2, "predicted", "#2b5f9e"), (copies, 0.2, "copied", "#9db4d0")):
        heights = [math.nan if value is None else value for value in values]
        axes.bar(places + offset, heights, width=0.4, label=label, color=colour)
    axes.set_xlim(-0.6, len(captions) - 0.4)
    axes.set_xticks(places, captions, fontsize=7, parse_math=False)
    axes.tick_params(labelsize=7)
    axes.set_ylabel("error", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=2)


def _printable(line: str) -> str:
    """The line with a mark for each control character, which an untrained model may well say."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
