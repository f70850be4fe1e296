"""Spatial pooling of frame features on their grid of patches.

A vision tower returns `(frames, patches, dim)` in row-major order. LLaVA-NeXT copies them into channel-first maps,
pools and copies back; here a map is a view of the tokens, which the pooling kernels read as channels-last memory, with
the same numbers. Grids are (height, width), given and never guessed: 729 patches may be 27 x 27, and 577 are 24 x 24
with a class token, which has no place on a map.

Rounding follows LLaVA-NeXT: `average` and `max` drop the patches of an incomplete window, `bilinear` rounds up.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from video_autoregressive.config import PoolMode

Grid = tuple[int, int]


def pooled_grid(grid: Grid, stride: int, mode: PoolMode, ceil_mode: bool = False) -> Grid:
    """Grid of pooled features.

    Args:
        grid: (height, width) before.
        stride: Side of the square that becomes one patch.
        mode: `average` and `max` round down, `bilinear` rounds up.
        ceil_mode: Round up in every mode, the last windows being smaller.

    Raises:
        ValueError: No whole window fits the grid.
    """
    height, width = grid
    if min(stride, height, width) < 1:
        raise ValueError(f"got stride {stride} on a grid of {height} x {width}, expected 1 or more of each")
    if ceil_mode or mode == "bilinear":
        return -(-height // stride), -(-width // stride)
    if min(height, width) < stride:
        raise ValueError(
            f"no window of stride {stride} fits a grid of {height} x {width}; ceil_mode allows smaller ones"
        )
    return height // stride, width // stride


def spatial_pool(
    features: Float[Tensor, "frames patches dim"],
    grid: Grid,
    stride: int = 2,
    mode: PoolMode = "average",
    ceil_mode: bool = False,
) -> Float[Tensor, "frames pooled dim"]:
    """Pool every frame's patches in squares of `stride`.

    `bilinear` is the interpolation of LLaVA-OneVision, to the bit on a CPU. It reads at most four patches per result,
    so from stride 3 on it skips some: on 27 x 27 it reads 169 of 729 at stride 4 (that is subsampling, not pooling).

    Args:
        features: Patches row by row, without class or register tokens.
        grid: (height, width) of the patches.
        stride: Side of the square; 1 returns `features`.
        mode: How.
        ceil_mode: Keep incomplete windows at the right and the bottom; `average` divides by the patches in them.

    Returns:
        Patches row by row on `pooled_grid(grid, stride, mode, ceil_mode)`, in the dtype given.

    Raises:
        ValueError: The patches are not those of the grid.
    """
    pooled = pooled_grid(grid, stride, mode, ceil_mode)
    feature_map = _as_map(features, grid)
    if stride == 1:
        return features
    if mode == "bilinear":
        return _as_tokens(F.interpolate(feature_map, size=pooled, mode="bilinear"))
    if mode == "max":
        return _as_tokens(F.max_pool2d(feature_map, stride, ceil_mode=ceil_mode))
    return _as_tokens(F.avg_pool2d(feature_map, stride, ceil_mode=ceil_mode, count_include_pad=False))


def resample_to_grid(
    features: Float[Tensor, "frames patches dim"], grid: Grid, to_grid: Grid
) -> Float[Tensor, "frames resampled dim"]:
    """Average features over the areas of another grid's patches, so that every patch counts.

    Where one stride, rounded up, leads from `grid` to `to_grid`, the windows are those of
    `spatial_pool(..., "average", ceil_mode=True)`. Elsewhere they divide the frame evenly and a patch counts in each
    of them by the part that lies in it; a finer grid repeats patches.

    Args:
        features: Patches row by row, without class or register tokens.
        grid: Their (height, width).
        to_grid: The one wanted.

    Raises:
        ValueError: The patches are not those of the grid.
    """
    feature_map = _as_map(features, grid)
    for stride in range(1, max(grid) + 1):
        if pooled_grid(grid, stride, "average", ceil_mode=True) == to_grid:
            return spatial_pool(features, grid, stride, "average", ceil_mode=True)
    rows, columns = (_area_weights(*sizes).to(features) for sizes in zip(grid, to_grid, strict=True))
    return _as_tokens(torch.einsum("yh,fdhw,xw->fdyx", rows, feature_map, columns))


def _as_map(features: Float[Tensor, "frames patches dim"], grid: Grid) -> Float[Tensor, "frames dim height width"]:
    """View tokens as feature maps in channels-last memory; nothing is copied."""
    height, width = grid
    if features.shape[1] != height * width:
        raise ValueError(
            f"got {features.shape[1]} patches per frame, expected {height * width} for a grid of {height} x {width} "
            "(height x width); class and register tokens have to be dropped first"
        )
    return features.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _as_tokens(feature_map: Float[Tensor, "frames dim height width"]) -> Float[Tensor, "frames patches dim"]:
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def _area_weights(size: int, to_size: int) -> Float[Tensor, "to_size size"]:
    """Share of every old interval in each new one, when both divide the same length; rows sum to 1."""
    edges, to_edges = torch.arange(size + 1) * to_size, torch.arange(to_size + 1) * size  # exact, in integers
    upper = torch.minimum(to_edges[1:, None], edges[None, 1:])
    lower = torch.maximum(to_edges[:-1, None], edges[None, :-1])
    return (upper - lower).clamp(min=0).double() / size
