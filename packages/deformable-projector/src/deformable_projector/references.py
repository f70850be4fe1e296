"""Where queries look: reference points from a grid, from similarity, or from its peaks.

Points are (x, y) in [0, 1] of the frame. With similarity a query looks at the mean place of what resembles it, weighted
by a softmax of cosines; with peaks it looks at several places at once and weighs them by the same softmax, so that the
choice of places is hard but the gradient still reaches queries and keys through the weights.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

SINE_TEMPERATURE = 10000.0
"""Ratio of the longest to the shortest wave of the sine embedding (DETR, Carion et al. 2020)."""


def grid_centres(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, "cells 2"]:
    """Centres of the cells of a grid as (x, y) in [0, 1], row by row.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        device: Where to put them.
    """
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def sine_embedding(points: Float[Tensor, "*shape 2"], dim: int) -> Float[Tensor, "*shape {dim}"]:
    """Sines and cosines of x, then of y, at `dim` / 4 wave lengths each (DETR's position embedding, with scale 2 pi).

    Args:
        points: (x, y), 1 being the side of the frame.
        dim: Numbers per point, a multiple of 4.
    """
    steps = torch.arange(dim // 4, device=points.device, dtype=points.dtype) / (dim // 4)
    angles = 2 * math.pi * points[..., None] / SINE_TEMPERATURE**steps
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def cosine_logits(
    queries: Float[Tensor, "batch queries dim"], keys: Float[Tensor, "batch cells dim"], temperature: float
) -> Float[Tensor, "batch queries cells"]:
    """Cosine of each query with each key, divided by the temperature.

    Args:
        queries: Projected queries.
        keys: Projected cells of a feature map.
        temperature: Above 0.
    """
    return F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT / temperature


def mean_places(
    logits: Float[Tensor, "batch queries height width"], valid: Bool[Tensor, "batch height width"] | None
) -> Float[Tensor, "batch queries 2"]:
    """Mean of the cells' centres under a softmax (soft-argmax), differentiable in the logits.

    Args:
        logits: Similarity of each query with each cell.
        valid: True for cells that count; an image without any counts whole.
    """
    shares = _masked(logits, valid).flatten(2).softmax(dim=-1)
    return shares @ grid_centres(*logits.shape[2:], device=logits.device).to(shares.dtype)


def peak_places(
    logits: Float[Tensor, "batch queries height width"], valid: Bool[Tensor, "batch height width"] | None, top_k: int
) -> tuple[Float[Tensor, "batch queries peaks 2"], Float[Tensor, "batch queries peaks"]]:
    """The most similar local maxima (no larger value among the eight neighbours) and a softmax over them.

    Args:
        logits: Similarity of each query with each cell.
        valid: True for cells that count; an image without any counts whole.
        top_k: Peaks per query; a small map gives as many as it has cells.

    Returns:
        Centres of the peaks, and their weights: they sum to 1, carry the gradient, and are 0 where a query has fewer
        peaks than `top_k`.
    """
    height, width = logits.shape[2:]
    masked = _masked(logits, valid)
    # Queries beside the batch: pooling allows an empty batch, but no empty channels.
    highest = F.max_pool2d(masked.detach().flatten(0, 1)[:, None], kernel_size=3, stride=1, padding=1)
    of_peaks = masked.masked_fill(masked < highest.view_as(masked), -math.inf).flatten(2)
    values, cells = of_peaks.topk(min(top_k, height * width), dim=-1)
    return _centres_of(cells, height, width), values.softmax(dim=-1)


def _masked(logits: Tensor, valid: Tensor | None) -> Tensor:
    if valid is None:
        return logits
    counts = valid | ~valid.any(dim=(1, 2), keepdim=True)
    return logits.masked_fill(~counts[:, None], -math.inf)


def _centres_of(
    cells: Int64[Tensor, "batch queries peaks"], height: int, width: int
) -> Float[Tensor, "batch queries peaks 2"]:
    return grid_centres(height, width, device=cells.device)[cells]
