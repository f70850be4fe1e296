"""Pictures, depth maps and regions of a batch, packed, with nothing missing.

Every module runs on every rank in every step, whatever a batch holds: regions that are absent are zero rows, which all
modules take; a vision tower takes no empty batch, so it gets one black picture (and one depth map) that is nobody's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
from region_core.geometry import GEOMETRY_DIM
from torch import Tensor

from spatialrgpt.configuration import SpatialRGPTConfig


@dataclass(frozen=True)
class Visuals:
    """What the model sees of a batch.

    Attributes:
        pixel_values: The images, or one black picture.
        num_images: True images among them.
        depth_values: The depth maps, or one black one; those beyond `depth_images` are nobody's.
        depth_images: Which image each true depth map belongs to.
        region_masks: Soft masks on the refined grid.
        region_images: Which image each region belongs to.
        region_geometry: Geometry of each region.
    """

    pixel_values: Num[Tensor, "pictures 3 rows columns"]
    num_images: int
    depth_values: Num[Tensor, "maps 3 rows columns"]
    depth_images: Int[Tensor, " depths"]
    region_masks: Float[Tensor, "regions grid_rows grid_columns"]
    region_images: Int[Tensor, " regions"]
    region_geometry: Float[Tensor, "regions values"]

    @property
    def region_has_depth(self) -> Bool[Tensor, " regions"]:
        """Which regions lie in an image with a depth map: those have a `<depth>` placeholder."""
        return torch.isin(self.region_images, self.depth_images)


def complete_visuals(
    config: SpatialRGPTConfig,
    device: torch.device,
    *,
    pixel_values: Num[Tensor, "images 3 rows columns"] | None,
    depth_values: Num[Tensor, "depths 3 rows columns"] | None,
    depth_images: Int[Tensor, " depths"] | None,
    region_masks: Float[Tensor, "regions grid_rows grid_columns"] | None,
    region_images: Int[Tensor, " regions"] | None,
    region_geometry: Float[Tensor, "regions values"] | None,
) -> Visuals:
    """Fill in what a batch has none of.

    Raises:
        ValueError: Of things that belong together, some are given and some are not.
    """
    depth = _all_or_none(depth_values=depth_values, depth_images=depth_images)
    regions = _all_or_none(region_masks=region_masks, region_images=region_images, region_geometry=region_geometry)
    num_images = 0 if pixel_values is None else len(pixel_values)
    if pixel_values is None:
        pixel_values = torch.zeros(1, 3, *config.image_size, dtype=torch.uint8, device=device)
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    if depth is None:
        depth = (torch.zeros_like(pixel_values[:1]), nothing)
    if regions is None:
        masks, geometry = (
            torch.zeros(0, *config.region_grid, device=device),
            torch.zeros(0, GEOMETRY_DIM, device=device),
        )
        regions = (masks, nothing, geometry)
    return Visuals(pixel_values, num_images, *depth, *regions)


def _all_or_none(**tensors: Tensor | None) -> tuple[Tensor, ...] | None:
    given = tuple(tensor for tensor in tensors.values() if tensor is not None)
    if given and len(given) < len(tensors):
        missing = [name for name, tensor in tensors.items() if tensor is None]
        raise ValueError(f"{', '.join(tensors)} go together, {', '.join(missing)} is missing")
    return given or None
