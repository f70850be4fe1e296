"""Pictures of attention masks, as an image and as text.

The image needs matplotlib (`pip install "video-autoregressive[pictures]"`) and no display; the text needs nothing and
fits a log.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

logger = logging.getLogger(__name__)

MAX_SIDE = 2048
"""Masks with longer sides are drawn smaller: a point is then the share of pairs that may attend."""

MAX_BOUNDARIES = 128
"""With more frames their boundaries would cover the picture, and are left out."""


def visualize_mask(
    mask: Bool[Tensor, "queries keys"],
    path: Path | str,
    *,
    title: str = "Frame Mask",
    num_patches_per_frame: int | Sequence[int] | None = None,
) -> Path:
    """Draw a mask, black where a query may attend to a key; without matplotlib it is written as text.

    Args:
        mask: True where attention is allowed.
        path: The PNG file to write, or the text file of that name with the suffix `.txt`; its folder is made.
        title: Printed above the picture.
        num_patches_per_frame: Draws the boundaries between frames, with one number for all frames or one per frame. In
            the text a character then stands for a pair of frames (`mask_text`), and else for a pair of patches.

    Returns:
        The path of the file that was written.

    Raises:
        ValueError: The patches per frame do not add up to the mask's sides.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return _write_text(mask, path.with_suffix(".txt"), num_patches_per_frame)
    boundaries = _boundaries(mask, num_patches_per_frame)
    shares = _shares(mask)
    figure = Figure(figsize=(10, 10), layout="tight")
    FigureCanvasAgg(figure)  # draws without a display, whatever backend the program has chosen
    axes = figure.add_subplot()
    num_queries, num_keys = mask.shape
    # Axes count patches also where fewer points are drawn.
    axes.imshow(
        shares.numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="nearest", extent=(0, num_keys, num_queries, 0)
    )
    if len(boundaries) <= MAX_BOUNDARIES:
        for boundary in boundaries:
            axes.axhline(boundary, color="tab:red", linewidth=0.6)
            axes.axvline(boundary, color="tab:red", linewidth=0.6)
    axes.set_title(title)
    axes.set_xlabel("keys: patches in order of time")
    axes.set_ylabel("queries: patches in order of time")
    figure.savefig(path, format="png")
    return path


def mask_text(
    mask: Bool[Tensor, "queries keys"],
    num_patches_per_frame: int | Sequence[int],
    allowed: str = "1",
    blocked: str = "0",
) -> str:
    """Write a mask as one character per pair of frames, a line per query frame.

    Args:
        mask: True where attention is allowed.
        num_patches_per_frame: One number for all frames, or one per frame.
        allowed: Stands where all patches of a frame may attend to all of another.
        blocked: Stands where none may. A pair that is allowed in part is `?`.

    Raises:
        ValueError: The patches per frame do not add up to the mask's sides.
    """
    ends = [*_boundaries(mask, num_patches_per_frame), len(mask)]
    starts = [0, *ends[:-1]]
    sums = F.pad(mask.cpu().to(torch.int64).cumsum(0).cumsum(1), (1, 0, 1, 0))
    first, last = torch.tensor(starts), torch.tensor(ends)
    counted = sums[last][:, last] - sums[last][:, first] - sums[first][:, last] + sums[first][:, first]
    areas = (last - first)[:, None] * (last - first)
    symbols = {True: allowed, False: blocked}
    return "\n".join(
        "".join("?" if 0 < count < area else symbols[count > 0] for count, area in zip(counts, sizes, strict=True))
        for counts, sizes in zip(counted.tolist(), areas.tolist(), strict=True)
    )


def _write_text(
    mask: Bool[Tensor, "queries keys"], path: Path, num_patches_per_frame: int | Sequence[int] | None
) -> Path:
    """Write a mask as text, and say why it is no picture."""
    if num_patches_per_frame is None:
        symbols = {0.0: "0", 1.0: "1"}
        text = "\n".join("".join(symbols.get(share, "?") for share in row) for row in _shares(mask).tolist())
    else:
        text = mask_text(mask, num_patches_per_frame)
    path.write_text(f"{text}\n", encoding="utf-8")
    logger.warning('wrote %s: a picture needs matplotlib (pip install "video-autoregressive[pictures]")', path)
    return path


def _shares(mask: Bool[Tensor, "queries keys"]) -> Float[Tensor, "rows columns"]:
    """The points of a picture: 1 where attention is allowed, and between 0 and 1 where one stands for several pairs."""
    shares = mask.detach().cpu().float()
    if max(mask.shape) > MAX_SIDE:
        height, width = (min(side, MAX_SIDE) for side in mask.shape)
        shares = F.adaptive_avg_pool2d(shares[None], (height, width))[0]
    return shares


def _boundaries(mask: Bool[Tensor, "queries keys"], num_patches_per_frame: int | Sequence[int] | None) -> list[int]:
    """Positions between one frame and the next."""
    if num_patches_per_frame is None:
        return []
    num_queries, num_keys = mask.shape
    if isinstance(num_patches_per_frame, int):
        whole = num_patches_per_frame > 0 and num_queries % num_patches_per_frame == 0
        ends = list(range(num_patches_per_frame, num_queries + 1, num_patches_per_frame)) if whole else [0]
    else:
        ends = torch.tensor(list(num_patches_per_frame), dtype=torch.int64).cumsum(0).tolist()
    if num_queries != num_keys or ends[-1:] != [num_queries]:
        raise ValueError(
            f"num_patches_per_frame: got {num_patches_per_frame!r}, which does not add up to a mask of "
            f"{num_queries} x {num_keys}"
        )
    return ends[:-1]
