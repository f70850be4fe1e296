"""From vision features to what the language model reads: image tokens, and RGB and depth embeddings of regions.

SpatialRGPT (Cheng et al. 2024, section 3): features are refined to a finer grid, averaged under each region's mask, and
carried to the language model's width by one connector for RGB and one for depth. The region enhancer sits before the
connectors, at the vision tower's width: at the language model's width it would be twelve times as large.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from region_core.enhancer import build_region_enhancer
from region_core.geometry import GeometryEmbedding
from region_core.pooling import mask_pool
from region_core.refinement import FeatureRefinement
from region_core.regions import RegionBatch
from torch import Tensor, nn
from torch.nn import functional as F

from spatialrgpt.configuration import SpatialRGPTConfig


class ImageProjector(nn.Module):
    """Fold squares of `downsample` x `downsample` tokens into one and project it to the language model's width.

    Args:
        vision_dim: Width of the feature map.
        text_dim: Width of the language model.
        downsample: Side of the square; a grid that it does not divide is padded with zeros on the right and bottom.
    """

    def __init__(self, vision_dim: int, text_dim: int, downsample: int) -> None:
        super().__init__()
        self.downsample = downsample
        folded = vision_dim * downsample**2
        self.layers = nn.Sequential(
            nn.LayerNorm(folded), nn.Linear(folded, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim)
        )

    def forward(
        self, feature_map: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "images tokens text_dim"]:
        """Image tokens in row-major order."""
        height, width = feature_map.shape[-2:]
        padded = F.pad(feature_map, (0, -width % self.downsample, 0, -height % self.downsample))
        return self.layers(F.pixel_unshuffle(padded, self.downsample).flatten(2).transpose(1, 2))


class RegionRows(NamedTuple):
    """Packed embeddings of all regions of a batch, in the order given."""

    rgb: Float[Tensor, "regions text_dim"]
    depth: Float[Tensor, "regions text_dim"] | None


class RegionEncoder(nn.Module):
    """Refinement, mask pooling, region enhancer and connectors.

    Args:
        config: The model's configuration.
    """

    def __init__(self, config: SpatialRGPTConfig) -> None:
        super().__init__()
        vision_dim, text_dim = config.vision.hidden_size, config.text.hidden_size
        self.refinement = FeatureRefinement(vision_dim, num_stages=config.refinement_stages)
        self.rgb_connector = nn.Linear(vision_dim, text_dim)
        self.rgb_geometry = GeometryEmbedding(vision_dim) if config.region_geometry else None
        self.depth_connector = nn.Linear(vision_dim, text_dim) if config.enable_depth else None
        self.depth_geometry = GeometryEmbedding(vision_dim) if config.enable_depth and config.region_geometry else None
        self.depth_refinement = (
            FeatureRefinement(vision_dim, num_stages=config.refinement_stages)
            if config.enable_depth and config.refine_depth
            else None
        )
        self.enhancer = build_region_enhancer(config.enhancer, vision_dim) if config.enable_region_enhancer else None

    def forward(
        self,
        image_map: Float[Tensor, "images channels rows columns"],
        refined_map: Float[Tensor, "images channels height width"],
        depth_map: Float[Tensor, "maps channels rows columns"] | None,
        depth_images: Int[Tensor, " depths"],
        region_masks: Float[Tensor, "regions height width"],
        region_images: Int[Tensor, " regions"],
        geometry: Float[Tensor, "regions geometry"],
    ) -> RegionRows:
        """Encode all regions of a batch at once.

        Args:
            image_map: Features of the RGB images on the tower's grid.
            refined_map: The same images after refinement.
            depth_map: Features of the depth maps; those beyond `depth_images` belong to no image.
            depth_images: Which image each depth map belongs to.
            region_masks: Soft masks in [0, 1] on the refined grid.
            region_images: Which image each region belongs to.
            geometry: `region_geometry` of each region.

        Returns:
            One RGB row per region, and one depth row per region if depth is enabled; the depth row of a region whose
            image has no depth map carries no meaning.
        """
        num_images = image_map.shape[0]
        # Pooling and the enhancer work image by image; the caller's order (by question) comes back at the end.
        order = torch.argsort(region_images, stable=True)
        counts = tuple(torch.bincount(region_images, minlength=num_images).tolist())
        masks = region_masks[order].split(counts)
        rgb = mask_pool(refined_map, masks).rows
        if self.rgb_geometry is not None:
            rgb = rgb + self.rgb_geometry(geometry[order])
        depth, depth_mask = None, None
        if depth_map is not None:
            fine = depth_map if self.depth_refinement is None else self.depth_refinement(depth_map)
            # Every image gets a map, zeros where it has no depth, so that one call serves mixed batches on all ranks.
            maps = fine.new_zeros(num_images, *fine.shape[1:]).index_copy(0, depth_images, fine[: len(depth_images)])
            depth = mask_pool(maps, masks).rows
            if self.depth_geometry is not None:
                depth = depth + self.depth_geometry(geometry[order])
            has_depth = torch.zeros(num_images, dtype=torch.bool, device=maps.device).index_fill(0, depth_images, True)
            depth_mask = has_depth[region_images[order]]
        rgb, depth = self._enhance(rgb, depth, depth_mask, image_map, counts)
        back = torch.argsort(order)
        return RegionRows(
            rgb=self.rgb_connector(rgb)[back],
            depth=None if depth is None or self.depth_connector is None else self.depth_connector(depth)[back],
        )

    def _enhance(
        self,
        rgb: Float[Tensor, "regions channels"],
        depth: Float[Tensor, "regions channels"] | None,
        depth_mask: Tensor | None,
        image_map: Float[Tensor, "images channels rows columns"],
        counts: tuple[int, ...],
    ) -> tuple[Float[Tensor, "regions channels"], Float[Tensor, "regions channels"] | None]:
        if self.enhancer is None:
            return rgb, depth
        padded, region_mask = RegionBatch(rgb, counts).to_padded()
        enhanced = self.enhancer(
            padded,
            depth_features=None if depth is None else RegionBatch(depth, counts).to_padded()[0],
            image_features=image_map.flatten(2).transpose(1, 2),
            region_mask=region_mask,
            depth_mask=None if depth_mask is None else RegionBatch(depth_mask, counts).to_padded()[0],
        )
        return enhanced.rgb[region_mask], None if enhanced.depth is None else enhanced.depth[region_mask]
