"""Figures of a run: its losses beside what copying costs, errors by frame, and the mask of the predictor."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from region_training.curves import running_mean, series
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.mask_pictures import MAX_SIDE
from video_autoregressive.masks import FrameLevelMaskGenerator

from lmms.frame_errors import FrameErrors

_COLOURS = ("#2b5f9e", "#d08a3c")
_PANELS = (
    ("main_loss",),
    ("autoregressive_loss",),
    ("autoregressive_loss_raw", "ar_copy_loss"),
    ("ar_skill",),
)
LOWEST_SKILL = -1.0
"""Where the axis of the skill begins at the lowest."""


def draw_losses(metrics: Sequence[Mapping[str, object]]) -> Figure | None:
    """The losses over the steps under the names of the log, raw loss and copying on one axes; None without any."""
    panels = [names for names in _PANELS if any(series(metrics, name)[0].size for name in names)]
    if not panels:
        return None
    figure = _new_figure(3.4 * min(len(panels), 2), 2.4 * -(-len(panels) // 2))
    for index, names in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // 2), min(len(panels), 2), index + 1)
        for name, colour in zip(names, _COLOURS, strict=False):
            steps, values = series(metrics, name)
            axes.plot(steps, running_mean(values, max(1, len(values) // 20)), color=colour, label=name, linewidth=1.4)
        if "ar_skill" in names:
            axes.axhline(0, color="0.6", linewidth=0.8, linestyle="--")
            # The first steps are worse than copying by far, and would flatten all that follows.
            axes.set_ylim(bottom=max(axes.get_ylim()[0], LOWEST_SKILL))
        _style(axes, " and ".join(names), "step")
        if len(names) > 1:
            axes.legend(fontsize=7, frameon=False)
    return figure


def draw_frame_errors(errors: FrameErrors) -> Figure:
    """Mean error of predicting each frame of a clip, and of copying the one before."""
    figure = _new_figure(6.0, 2.8)
    axes = figure.add_subplot()
    for values, label, colour in zip((errors.predicted, errors.copied), ("predicted", "copied"), _COLOURS, strict=True):
        axes.plot(errors.positions, values, label=label, color=colour, marker=".", linewidth=1.4)
    _style(axes, "mean error per token", "position of the predicted frame in its clip")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, frameon=False)
    return figure


def draw_mask(config: AutoregressiveConfig, num_frames: int, num_patches: int, path: Path) -> Path:
    """Draw which patches a frame's prediction may look at.

    Args:
        config: `num_hist` and `use_frame_causal_mask`.
        num_frames: Frames of a clip.
        num_patches: Patches per frame; fewer are drawn where the mask would not fit its picture.
        path: PNG file to write.

    Returns:
        The file.
    """
    drawn = max(1, min(num_patches, MAX_SIDE // num_frames))
    if config.use_frame_causal_mask:
        mask = FrameLevelMaskGenerator.create_sliding_window_frame_mask(num_frames, drawn, window_size=config.num_hist)
        title = f"{num_frames} frames, each sees the last {config.num_hist} with itself"
    else:
        mask = torch.ones(num_frames * drawn, num_frames * drawn, dtype=torch.bool)
        title = f"{num_frames} frames, each sees all (use_frame_causal_mask is off)"
    return FrameLevelMaskGenerator.visualize_mask(mask, title, path, num_patches_per_frame=drawn)


def _style(axes: Axes, title: str, below: str) -> None:
    axes.set_title(title, fontsize=8, loc="left", parse_math=False)
    axes.set_xlabel(below, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
