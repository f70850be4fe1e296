"""Values of a feature pyramid at sampling points, in either order: project every position, or sample first.

A bilinear sample is a weighted sum, so it commutes with the linear layer that makes values of features. Sampling first
reads the raw features at the points that are asked for and projects these alone: for a few hundred queries on maps of
256 x 256 cells that is an eighth of the arithmetic, and the values of all positions never exist. The two orders give
the same numbers and gradients up to rounding.

Every layer reads its own weights in its own forward, because DeepSpeed's ZeRO-3 gathers the parameters of a module when
that module is called, and of no other.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from region_core import touch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import SamplingBackend
from .levels import region_maps_to_level
from .sampling import multi_scale_deformable_attention


class LevelValues(nn.Linear):
    """Values of one level: a projection of every position, or, for the same numbers, of samples taken beforehand.

    A bilinear sample is a weighted sum, so it may be taken before or after a linear layer. What differs is the bias: a
    point that lies partly outside the map or in padding collects only part of it, its *mass*.

    Args:
        vision_dim: Channels of the level.
        hidden_dim: Width of the values.
        num_heads: Heads, each of which owns a slice of `hidden_dim`.
    """

    def __init__(self, vision_dim: int, hidden_dim: int, num_heads: int) -> None:
        super().__init__(vision_dim, hidden_dim)
        self.num_heads = num_heads

    def reset_parameters(self) -> None:
        """Initialise as Deformable DETR does."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(
        self,
        input: Float[Tensor, "batch positions channels"] | Float[Tensor, "batch heads queries channels"],
        mass: Float[Tensor, "batch heads queries"] | None = None,
    ) -> Float[Tensor, "batch rows hidden_dim"]:
        """Project positions (three dimensions), or each head's samples with their mass (four)."""
        if mass is None:
            return F.linear(input, self.weight, self.bias)
        by_head = self.weight.unflatten(0, (self.num_heads, -1))
        values = input @ by_head.mT
        bias = self.bias.unflatten(0, (self.num_heads, 1, -1))
        return rearrange(values + mass[..., None].to(bias.dtype) * bias, "b h n d -> b n (h d)")


class PyramidValues(nn.Module):
    """Weighted samples of the projected, tagged positions of a pyramid.

    A value is the projected feature plus a tag of its level, plus, with region maps, a tag for inside or outside.

    Args:
        vision_dims: Channels of each level, finest first.
        hidden_dim: Width of the values.
        num_heads: Heads that sample independently.
        sample_first: The order; None takes the one that projects fewer rows.
        backend: How the sampling core computes.
    """

    def __init__(
        self,
        vision_dims: Sequence[int],
        hidden_dim: int,
        num_heads: int,
        *,
        sample_first: bool | None = None,
        backend: SamplingBackend = "auto",
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sample_first = sample_first
        self.backend: SamplingBackend = backend
        self.level_proj = nn.ModuleList(LevelValues(dim, hidden_dim, num_heads) for dim in vision_dims)
        self.level_embed = nn.Parameter(torch.empty(len(vision_dims), hidden_dim))
        self.region_embed = nn.Parameter(torch.empty(2, hidden_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the tags: standard normal for levels, zero for regions."""
        nn.init.normal_(self.level_embed)
        nn.init.zeros_(self.region_embed)

    def forward(
        self,
        feature_maps: Sequence[Float[Tensor, "batch _ _ _"]],
        locations: Float[Tensor, "batch queries heads levels points 2"],
        weights: Float[Tensor, "batch queries heads levels points"],
        *,
        valid_masks: Sequence[Bool[Tensor, "batch _ _"]] | None = None,
        region_maps: Float[Tensor, "batch _ _"] | None = None,
    ) -> Float[Tensor, "batch queries hidden_dim"]:
        """Sample.

        Args:
            feature_maps: The pyramid, finest first.
            locations: Sampling points in [0, 1] of each level's whole map.
            weights: Weight of each point.
            valid_masks: Per level True where the image is; padding has no value, whatever its features are.
            region_maps: Shares in [0, 1] of the frame covered by regions, at any size.

        Returns:
            One row per query, in the dtype of the projected values.
        """
        maps = list(feature_maps)
        coverage = _coverage(maps, valid_masks, region_maps)
        sample_first = self.sample_first
        if sample_first is None:
            rows_per_level = locations.shape[1] * locations.shape[2] * locations.shape[4]
            sample_first = rows_per_level < sum(feature_map[0, 0].numel() for feature_map in maps)
        if sample_first:
            sampled = self._sample_then_project(maps, coverage, locations, weights, valid_masks)
        else:
            if valid_masks is not None:
                maps = [
                    feature_map.masked_fill(~valid[:, None], 0.0)
                    for feature_map, valid in zip(maps, valid_masks, strict=True)
                ]
            sampled = self._project_then_sample(maps, coverage, locations, weights)
        # Without region maps nothing else depends on their tags, and every parameter takes part in every step.
        return sampled + touch(self.region_embed)

    def _tags(self, level: int, kinds: int) -> Float[Tensor, "kinds hidden_dim"]:
        """What is added to the values of a level per kind of coverage."""
        level_tag = self.level_embed[level : level + 1]
        return torch.cat([level_tag, self.region_embed]) if kinds > 1 else level_tag

    def _project_then_sample(
        self, maps: Sequence[Tensor], coverage: list[Tensor], locations: Tensor, weights: Tensor
    ) -> Float[Tensor, "batch queries hidden_dim"]:
        """Values of every position of every level, then samples of them."""
        values = []
        for level, (projection, feature_map, covered) in enumerate(zip(self.level_proj, maps, coverage, strict=True)):
            value = projection(feature_map.flatten(2).mT)
            tags = covered @ self._tags(level, covered.shape[-1]).to(covered.dtype)
            # The first kind says where the image is: padding has no bias either.
            values.append(value * covered[..., :1].to(value.dtype) + tags.to(value.dtype))
        value = torch.cat(values, dim=1).unflatten(2, (self.num_heads, -1))
        shapes = [(feature_map.shape[2], feature_map.shape[3]) for feature_map in maps]
        return multi_scale_deformable_attention(value, shapes, locations, weights, backend=self.backend)

    def _sample_then_project(
        self,
        maps: Sequence[Tensor],
        coverage: list[Tensor],
        locations: Tensor,
        weights: Tensor,
        valid_masks: Sequence[Tensor] | None,
    ) -> Float[Tensor, "batch queries hidden_dim"]:
        """Samples of the raw features per head, then their values."""
        parts = []
        for level, (projection, feature_map, covered) in enumerate(zip(self.level_proj, maps, coverage, strict=True)):
            shape = [(feature_map.shape[2], feature_map.shape[3])]
            # Heads become queries, because each reads all channels.
            points = rearrange(locations[:, :, :, level], "b n h p xy -> b (h n) 1 1 p xy")
            shares = rearrange(weights[:, :, :, level], "b n h p -> b (h n) 1 1 p")
            # Coverage is zero in padding by itself.
            valid = None if valid_masks is None else valid_masks[level].flatten(1)
            samples, mass = (
                multi_scale_deformable_attention(
                    rows[:, :, None], shape, points, shares, valid=own, backend=self.backend
                )
                for rows, own in ((feature_map.flatten(2).mT, valid), (covered, None))
            )
            samples, mass = (rows.unflatten(1, (self.num_heads, -1)) for rows in (samples, mass))
            value = projection(samples, mass[..., 0])
            tags = self._tags(level, mass.shape[-1]).unflatten(1, (self.num_heads, -1))
            parts.append(value + torch.einsum("bhnk,khd->bnhd", mass, tags.to(mass.dtype)).flatten(2).to(value.dtype))
        return torch.stack(parts).sum(dim=0)


def _coverage(
    maps: Sequence[Tensor], valid_masks: Sequence[Tensor] | None, region_maps: Tensor | None
) -> list[Float[Tensor, "batch positions kinds"]]:
    """Per level and position: is there an image, and with region maps the shares inside and outside regions."""
    coverage = []
    for level, feature_map in enumerate(maps):
        batch, _, height, width = feature_map.shape
        # Float32 at least: a share in half precision is good to three digits.
        dtype = torch.promote_types(feature_map.dtype, torch.float32)
        image = feature_map.new_ones((batch, height, width), dtype=dtype)
        if valid_masks is not None:
            image = valid_masks[level].to(dtype)
        kinds = [image]
        if region_maps is not None:
            inside = region_maps_to_level(region_maps, (height, width)).to(dtype)
            kinds += [image * inside, image * (1 - inside)]
        coverage.append(torch.stack(kinds, dim=-1).flatten(1, 2))
    return coverage
