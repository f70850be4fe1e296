"""Pictures of masks: translucent colours with an outline and a label, prompts, the target beside the prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion, distance_transform_edt

PICTURE_DPI = 80
OPACITY = 0.45
COLOURS = np.array([*mpl.color_sequences["tab10"], *mpl.color_sequences["Set2"]])


@dataclass(frozen=True, eq=False)
class Panel:
    """One image with masks on it.

    Attributes:
        title: What it shows.
        image: The image.
        masks: What is drawn on it, the last on top.
        labels: A text for each mask; "" writes none.
        keys: What a mask's colour stands for: masks with the same key have the same colour in all panels.
    """

    title: str
    image: UInt8[np.ndarray, "height width 3"]
    masks: Bool[np.ndarray, "masks height width"]
    labels: tuple[str, ...]
    keys: tuple[str, ...]


def draw_panels(panels: Sequence[Panel], *, title: str = "") -> Figure:
    """Panels beside each other.

    Args:
        panels: The panels, from the left.
        title: A line above all of them; a long one is cut.
    """
    keys = list(dict.fromkeys(key for panel in panels for key in panel.keys))
    colours = {key: COLOURS[place % len(COLOURS)] for place, key in enumerate(keys)}
    ratio = max(panel.image.shape[0] / panel.image.shape[1] for panel in panels)
    figure = Figure(figsize=(3.6 * len(panels), min(3.6 * ratio, 9) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        # A dollar sign in what somebody wrote opens no formula.
        figure.suptitle(_printable(shorten(title, 60 * len(panels))), fontsize=10, parse_math=False)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.set_title(panel.title, fontsize=9, parse_math=False)
        axes.set_axis_off()
        axes.imshow(
            paint_masks(panel.image, panel.masks, np.array([colours[key] for key in panel.keys]).reshape(-1, 3))
        )
        for mask, label in zip(panel.masks, panel.labels, strict=True):
            if label and mask.any():
                _write_label(axes, mask, label)
    return figure


def paint_masks(
    image: UInt8[np.ndarray, "height width 3"],
    masks: Bool[np.ndarray, "masks height width"],
    colours: np.ndarray,
    *,
    opacity: float = OPACITY,
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with translucent masks and their outlines.

    Args:
        image: The image; it is not changed.
        masks: What is painted, the last on top.
        colours: A colour per mask, in [0, 1].
        opacity: Of the masks; outlines are opaque.
    """
    painted = image.astype(np.float32)
    for mask, colour in zip(masks, colours, strict=True):
        painted[mask] = (1 - opacity) * painted[mask] + opacity * 255 * colour
    for mask, colour in zip(masks, colours, strict=True):
        painted[mask & ~binary_erosion(mask)] = 255 * colour
    return painted.round().astype(np.uint8)


def _write_label(axes: Axes, mask: Bool[np.ndarray, "height width"], label: str) -> None:
    """Write a label where the mask is widest: the centre of a ring lies outside of it."""
    # The padding makes the image's border count as the mask's.
    depth = np.asarray(distance_transform_edt(np.pad(mask, 1)))
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    axes.text(
        int(column) - 1,
        int(row) - 1,
        _printable(shorten(label, 24)),
        ha="center",
        va="center",
        fontsize=7,
        color="white",
        parse_math=False,
        bbox={"facecolor": "black", "alpha": 0.6, "edgecolor": "none", "boxstyle": "round,pad=0.15"},
    )


def _printable(line: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
