"""A feature pyramid and what belongs to it: checks, valid areas and region maps on every level.

Level 0 is the finest. All levels show the same frame, padding included, so a point that is given as a share of the
frame is the same on each; a point given as a share of the *valid* area has to be scaled by the level's valid ratio.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def check_levels(
    feature_maps: Sequence[Tensor], vision_dims: Sequence[int], valid_masks: Sequence[Tensor] | None, batch: int
) -> list[tuple[int, int]]:
    """Check a pyramid against what the module was built for.

    Args:
        feature_maps: Maps (batch, channels, height, width), finest first.
        vision_dims: Channels that each level must have.
        valid_masks: Per level True where the image is, (batch, height, width).
        batch: Images that there must be.

    Returns:
        (height, width) of each level.

    Raises:
        ValueError: The number of levels, a shape, or the shape of a mask differs.
    """
    if len(feature_maps) != len(vision_dims):
        raise ValueError(f"expected {len(vision_dims)} feature maps, finest first, got {len(feature_maps)}")
    if valid_masks is not None and len(valid_masks) != len(feature_maps):
        raise ValueError(f"expected one valid mask per level, got {len(valid_masks)} for {len(feature_maps)} levels")
    shapes: list[tuple[int, int]] = []
    for level, (feature_map, dim) in enumerate(zip(feature_maps, vision_dims, strict=True)):
        if feature_map.ndim != 4 or feature_map.shape[:2] != (batch, dim) or 0 in feature_map.shape[2:]:
            raise ValueError(
                f"feature map of level {level}: expected ({batch}, {dim}, height, width), "
                f"got {tuple(feature_map.shape)}; are the vision dims {list(vision_dims)} those of this backbone?"
            )
        height, width = feature_map.shape[2:]
        shapes.append((height, width))
        if valid_masks is not None and valid_masks[level].shape != (batch, height, width):
            raise ValueError(
                f"valid mask of level {level}: expected {(batch, height, width)}, got {tuple(valid_masks[level].shape)}"
            )
    return shapes


def valid_ratios(
    valid_masks: Sequence[Bool[Tensor, "batch _ _"]],
) -> Float[Tensor, "batch levels 2"]:
    """Share of each level's width and height that the image covers, as (x, y); padding is right and below.

    Args:
        valid_masks: Per level True where the image is.
    """
    ratios = [torch.stack([mask.any(1).float().mean(1), mask.any(2).float().mean(1)], dim=-1) for mask in valid_masks]
    return torch.stack(ratios, dim=1)


def region_maps_to_level(
    region_maps: Float[Tensor, "batch _ _"], shape: tuple[int, int]
) -> Float[Tensor, "batch height width"]:
    """Share of each cell that the regions cover, by exact area.

    Args:
        region_maps: Soft region masks in [0, 1] of the same frame, at any size.
        shape: (height, width) of the level.
    """
    return F.interpolate(region_maps.float()[:, None], size=shape, mode="area")[:, 0]
