"""Vectors of prompted regions: the mean of an image's projected tokens under the prompt, and where the prompt lies.

PSALM samples random points under the mask, in evaluation too; the area-weighted mean is what these points estimate,
without chance. A prompt smaller than a token's cell keeps its share of that cell, and shares it with whatever else lies
there: the backbone's finer maps, pooled too, say what is under the prompt alone.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from region_core.geometry import GeometryEmbedding, region_geometry
from region_core.losses import drop_dummy, with_dummy_row
from region_core.masks import masks_to_grid
from region_core.pooling import mask_pool
from torch import Tensor, nn

GEOMETRY_GRID = (64, 64)
"""Place and size of a region are measured on a finer grid than its tokens are pooled on."""


class RegionEmbedder(nn.Module):
    """Pools token maps under prompts.

    Args:
        dim: Width of the tokens.
        geometry: Add an embedding of place and size, which a mean over a few tokens has lost.
        level_dims: Channels of the backbone's maps to pool too; what they add starts at zero.
    """

    def __init__(self, dim: int, *, geometry: bool, level_dims: Sequence[int] = ()) -> None:
        super().__init__()
        self.geometry = GeometryEmbedding(dim) if geometry else None
        self.levels = nn.ModuleList(nn.Linear(channels, dim, bias=False) for channels in level_dims)
        for projection in self.levels:
            nn.init.zeros_(projection.get_parameter("weight"))

    def forward(
        self,
        token_maps: Float[Tensor, "images dim rows columns"],
        prompt_masks: Bool[Tensor, "regions height width"],
        prompt_images: Int[Tensor, " regions"],
        maps: Sequence[Float[Tensor, "images _ _ _"]] = (),
    ) -> Float[Tensor, "regions dim"]:
        """Embed the regions; an empty prompt gives zeros and its (empty) geometry.

        Args:
            token_maps: Projected tokens of all images, as maps.
            prompt_masks: Prompts in the frame of the model's input.
            prompt_images: Image of each prompt, in any order.
            maps: The backbone's maps of all images; read with `level_dims` alone.
        """
        order = prompt_images.argsort(stable=True)
        counts = torch.bincount(prompt_images, minlength=len(token_maps)).tolist()
        masks = list(prompt_masks[order].split(counts))
        pooled = mask_pool(token_maps, masks).rows
        for projection, level in zip(self.levels, maps if self.levels else (), strict=True):
            means, num_dummy = with_dummy_row(mask_pool(level, masks).rows)
            own = projection(means.to(projection.get_parameter("weight").dtype))
            pooled = pooled + drop_dummy(own, num_dummy).to(pooled.dtype)
        rows = torch.empty_like(pooled).index_copy(0, order, pooled)
        if self.geometry is None:
            return rows
        place, num_dummy = with_dummy_row(region_geometry(masks_to_grid(prompt_masks, *GEOMETRY_GRID)))
        return rows + drop_dummy(self.geometry(place), num_dummy).to(rows.dtype)
