"""Mask pooling: the mean of a feature map under each region, weighted by how much of each cell the mask covers.

Masks come to the feature map's grid by exact area weights, so a region smaller than a cell keeps a share of that cell
and never falls between sampling points. One padded matrix product serves the whole batch, in float32 whatever the
type of the features (float64 stays): dividing by a small sum in float16 gives NaN.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from .masks import masks_to_grid
from .regions import RegionBatch


class PooledRegions(NamedTuple):
    """Pooled features of all regions of a batch, packed image by image.

    Attributes:
        rows: One vector per region in the type of the feature map; zeros for an empty mask.
        counts: Number of regions of each image.
        empty: True where a mask covers nothing.
    """

    rows: Float[Tensor, "regions channels"]
    counts: tuple[int, ...]
    empty: Bool[Tensor, " regions"]


def mask_pool(
    feature_map: Float[Tensor, "batch channels height width"],
    masks: Sequence[Shaped[Tensor, "_ _ _"] | None],
) -> PooledRegions:
    """Average a feature map under each mask.

    Args:
        feature_map: Dense image features.
        masks: For each image its masks [regions, mask_height, mask_width], or None for an image without regions: bool,
            integer (not zero is inside) or float in [0, 1]. Masks of the feature map's own size are used as they are;
            all others are brought to its grid by area (`masks_to_grid`), which data workers can do beforehand.

    Returns:
        The packed rows with their counts and a flag for empty masks. Gradients reach the feature map and soft masks
        and are finite for every mask.

    Raises:
        ValueError: The number of mask tensors is not the batch size.
    """
    if len(masks) != len(feature_map):
        raise ValueError(f"mask_pool: expected masks (or None) for each of {len(feature_map)} images, got {len(masks)}")
    dtype = torch.float64 if feature_map.dtype == torch.float64 else torch.float32
    with torch.autocast(feature_map.device.type, enabled=False):
        counts = tuple(0 if of_image is None else len(of_image) for of_image in masks)
        weights = _on_grid([of_image for of_image in masks if of_image is not None], feature_map, dtype)
        area = weights.sum(dim=1, keepdim=True)
        covered = area > torch.finfo(torch.float32).tiny
        padded, _ = RegionBatch(weights, counts).to_padded()
        # Features on the left: few masks against many cells are half the work this way round (measured on CPU).
        sums = torch.bmm(feature_map.to(dtype).flatten(2), padded.transpose(1, 2)).transpose(1, 2)
        rows = torch.cat([image_rows[:count] for image_rows, count in zip(sums, counts, strict=True)])
        # The inner `where` keeps the gradient of an empty mask finite, the outer one makes its row zero.
        rows = torch.where(covered, rows / torch.where(covered, area, 1.0), 0.0)
    return PooledRegions(rows.to(feature_map.dtype), counts, ~covered.squeeze(1))


def _on_grid(
    masks: Sequence[Shaped[Tensor, "_ _ _"]],
    feature_map: Float[Tensor, "batch channels height width"],
    dtype: torch.dtype,
) -> Float[Tensor, "regions cells"]:
    """Give the masks of all images as weights over the cells of the feature map."""
    height, width = feature_map.shape[-2:]
    placed = [torch.zeros(0, height * width, dtype=dtype, device=feature_map.device)]
    # Images whose masks are alike, in most batches all of them, go through in one piece.
    for (size, _), alike in groupby(masks, lambda of_image: (of_image.shape[1:], of_image.dtype)):
        together = torch.cat(list(alike)).to(feature_map.device)
        if size != (height, width):
            together = masks_to_grid(together, height, width)
        elif not together.is_floating_point():
            together = together != 0
        placed.append(together.to(dtype).flatten(1))
    return torch.cat(placed)
