"""Where the sampling points of an aligner start."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def star_offsets(num_heads: int, num_levels: int, num_points: int) -> Float[Tensor, " numbers"]:
    """Sampling offsets of Deformable DETR at the start: a direction per head, each point a cell further.

    Args:
        num_heads: Directions around the circle.
        num_levels: Levels; the offsets are the same on each, in cells of the level.
        num_points: Points; the largest component of the k-th is k + 1 cells.

    Returns:
        The bias of the offset layer, laid out as (heads, levels, points, x and y).
    """
    angles = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)[:, None]
    return (directions[:, None, None] * steps).expand(num_heads, num_levels, num_points, 2).flatten()
