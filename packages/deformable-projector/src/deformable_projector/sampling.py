"""Multi-scale deformable attention without a compiled extension (Deformable DETR, Zhu et al. 2021, eq. 3).

Each query and head reads a few points of every level of a feature pyramid and sums them by weight. Points are (x, y) in
[0, 1] of a level's *whole* map, padding included: (0, 0) is the outer corner of the first cell, (1, 1) that of the last
(`align_corners=False`); what lies outside is zero. The core runs in float32 whatever autocast says (float64 stays):
coordinates in half precision are off by cells, and half-precision `grid_sample` on the CPU returns garbage.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .bags import sample_bags
from .config import SamplingBackend

BAGS_MIN_DIM = 32
"""With fewer numbers per head a row is too short to sum by itself, and `grid_sample` was faster at every size."""
BAGS_MIN_NUMBERS = 2**18
"""Values plus samples from which `bags` was faster on CPUs (benchmarks/deformable_attention.py); below, calls cost."""


def multi_scale_deformable_attention(
    value: Float[Tensor, "batch positions heads dim"],
    spatial_shapes: Sequence[tuple[int, int]] | Int[Tensor, "levels 2"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
    attention_weights: Float[Tensor, "batch queries heads levels points"],
    *,
    valid: Bool[Tensor, "batch positions"] | None = None,
    backend: SamplingBackend = "auto",
) -> Float[Tensor, "batch queries heads*dim"]:
    """Sum bilinear samples of all levels, weighted, per query and head.

    Args:
        value: Features of all levels, one level after the other, each row by row.
        spatial_shapes: (height, width) of each level, in the order in which `value` holds them.
        sampling_locations: Points as (x, y) in [0, 1] of each level's map; outside reads zeros.
        attention_weights: Weight of each point, as a rule a softmax over levels and points together.
        valid: False for positions that read zeros whatever their features are, and whose gradient is zero.
        backend: `reference` samples with `grid_sample`, `bags` sums rows; the numbers are the same up to rounding.
            `auto` takes the faster one for the device and size.

    Returns:
        One row per query, the heads one after the other, in the dtype of `value`. All three tensors get a gradient;
        `bags` can be differentiated once only.

    Raises:
        ValueError: The levels do not cover `value`, or their number is not that of the locations.
    """
    shapes = _as_shapes(spatial_shapes)
    _check_sizes(shapes, value, sampling_locations)
    dtype = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(value.device.type, enabled=False):
        wide = value.to(dtype), shapes, sampling_locations.to(dtype), attention_weights.to(dtype), valid
        chosen = choose_backend(value, sampling_locations) if backend == "auto" else backend
        sampled = sample_bags(*wide) if chosen == "bags" else sample_reference(*wide)
    return sampled.to(value.dtype)


def choose_backend(
    value: Float[Tensor, "batch positions heads dim"],
    sampling_locations: Float[Tensor, "batch queries heads levels points 2"],
) -> SamplingBackend:
    """The faster backend for a device and size; the place where a kernel for an accelerator joins.

    Args:
        value: Features, as for `multi_scale_deformable_attention`.
        sampling_locations: Points, likewise.
    """
    batch, positions, heads, dim = value.shape
    _, queries, _, levels, points, _ = sampling_locations.shape
    if value.device.type != "cpu" or dim < BAGS_MIN_DIM:
        return "reference"
    numbers = batch * heads * dim * (positions + queries * levels * points)
    return "bags" if numbers >= BAGS_MIN_NUMBERS else "reference"


def sample_reference(
    value: Float[Tensor, "batch positions heads dim"],
    shapes: list[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
    valid: Bool[Tensor, "batch positions"] | None = None,
) -> Float[Tensor, "batch queries heads*dim"]:
    """Sample by `grid_sample`; arguments as for `multi_scale_deformable_attention`, all of one float dtype."""
    if valid is not None:
        value = value.masked_fill(~valid[:, :, None, None], 0.0)
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    # From [0, 1] to grid_sample's [-1, 1], and heads beside the batch.
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    by_channel = value.permute(0, 2, 3, 1).flatten(0, 1)
    levels = by_channel.split([height * width for height, width in shapes], dim=2)
    samples = [
        F.grid_sample(
            level.reshape(batch * heads, dim, height, width).contiguous(),
            grid.contiguous(),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for level, (height, width), grid in zip(levels, shapes, grids, strict=True)
    ]
    shares = weights.permute(0, 2, 1, 3, 4).flatten(3).flatten(0, 1).unsqueeze(1)
    return (torch.cat(samples, dim=-1) * shares).sum(dim=-1).view(batch, heads * dim, queries).mT


def _as_shapes(spatial_shapes: Sequence[tuple[int, int]] | Tensor) -> list[tuple[int, int]]:
    listed = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    return [(int(height), int(width)) for height, width in listed]


def _check_sizes(shapes: list[tuple[int, int]], value: Tensor, locations: Tensor) -> None:
    cells = sum(height * width for height, width in shapes)
    if cells != value.shape[1] or any(min(shape) < 1 for shape in shapes):
        raise ValueError(
            f"spatial_shapes {shapes} hold {cells} positions, value has {value.shape[1]}; every level needs a cell"
        )
    if locations.shape[3] != len(shapes):
        raise ValueError(f"sampling_locations have {locations.shape[3]} levels, spatial_shapes {len(shapes)}: {shapes}")
