"""Pictures of single questions: the frame with its regions drawn, what was asked, what was answered."""

from collections.abc import Sequence
from textwrap import fill

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatialrgpt.configuration import IMAGE_TOKEN, MASK_TOKEN

PICTURE_DPI = 70
"""Enough for a small frame; a report holds dozens of these."""

COLOURS = mpl.color_sequences["tab10"]


def draw_regions(
    image: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "regions height width"],
    *,
    title: str,
    highlighted: Sequence[int] = (),
) -> Figure:
    """One frame with numbered regions.

    Args:
        image: The frame.
        masks: Its regions.
        title: Question and answers, a line each; long lines are wrapped.
        highlighted: Regions with a thick outline: the ones an answer is about.
    """
    height, width = image.shape[:2]
    lines = "\n".join(fill(_printable(line), 58) for line in title.split("\n"))
    figure = Figure(figsize=(5.5, 5.5 * height / width + 0.2 * (lines.count("\n") + 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(image)
    axes.set_axis_off()
    # A dollar sign in what somebody wrote or a model said opens no formula.
    axes.set_title(lines, fontsize=10, loc="left", parse_math=False)
    for index, mask in enumerate(masks):
        colour = COLOURS[index % len(COLOURS)]
        overlay = np.zeros((height, width, 4))
        overlay[mask] = (*colour, 0.35)
        axes.imshow(overlay)
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=2.5 if index in highlighted else 0.8)
        if mask.any():
            rows, columns = np.nonzero(mask)
            axes.text(
                columns.mean(),
                rows.mean(),
                str(index),
                ha="center",
                va="center",
                fontsize=11,
                color="white",
                bbox={"facecolor": colour, "edgecolor": "none", "boxstyle": "circle,pad=0.2"},
            )
    return figure


def number_mentions(question: str) -> str:
    """The question as a reader of the picture wants it: region numbers in place of the placeholders."""
    pieces = question.replace(IMAGE_TOKEN, "").strip().split(MASK_TOKEN)
    return pieces[0] + "".join(f"[{number}]{piece}" for number, piece in enumerate(pieces[1:]))


def _printable(line: str) -> str:
    """The line with a mark for each control character, which an untrained model may well say."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
