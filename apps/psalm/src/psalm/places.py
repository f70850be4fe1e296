"""Places for pixels and mask tokens, so that things that look alike become masks of their own.

A mask is where a query's vector agrees with the pixels'. Mask2Former tells place to its attention's keys alone: neither
vector knows it, and long training is what teaches them. Here pixels get the place of their cell (CoordConv, Liu et al.
2018, arXiv:1807.03247), and every mask token a place of its own on a grid over the image (Anchor DETR, Wang et al.
2022, arXiv:2109.07107): queries differ by place from the first step on, and two things of a class are found by two of
them. Not part of PSALM: published weights have none of it.
"""

import math

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from transformers import Mask2FormerConfig

from psalm.pixel_decoder import PixelFeatures
from psalm.precision import compute_in_float32

NUM_FREQUENCIES = 4
"""The longest wave spans two images, the shortest a quarter of one."""
PLACE_DIM = 4 * NUM_FREQUENCIES
"""Sines and cosines of two coordinates."""

SPREAD = 1.0
"""Of what is added to a new model's mask features and queries; it outweighs what they say before training."""
LEVEL_SPREAD = 0.3
"""Of what is added to a new model's levels, which queries read classes from: less than what is there."""


class PlaceEmbedder(nn.Module):
    """Adds places to what masks are made of, in float32.

    Args:
        config: Widths of queries, levels and mask features.
    """

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__()
        self.queries = _projection(config.hidden_dim, SPREAD)
        self.mask_features = _projection(config.mask_feature_size, SPREAD)
        # One for all levels: a place is the same on each, and a short decoder looks at some of them alone.
        self.levels = _projection(config.feature_size, LEVEL_SPREAD)
        compute_in_float32(self)

    def forward(
        self, queries: Float[Tensor, "batch queries dim"], features: PixelFeatures
    ) -> tuple[Float32[Tensor, "batch queries dim"], PixelFeatures]:
        """Add places.

        Args:
            queries: Initial states, of any float type.
            features: What the pixel decoder made of the images.

        Returns:
            Queries and features of the same shapes.
        """
        with torch.autocast(queries.device.type, enabled=False):
            placed = queries.float() + self.queries(anchor_waves(queries.shape[1], queries.device))
            mask_features = _add(features.mask_features, self.mask_features)
            levels = tuple(_add(level, self.levels) for level in features.levels)
        return placed, PixelFeatures(mask_features, levels)


def grid_waves(rows: int, columns: int, device: torch.device) -> Float32[Tensor, "{rows} {columns} waves"]:
    """Sines and cosines of where the cells' centres lie, both coordinates in [0, 1]."""
    # Computed and not kept: a buffer that is not saved holds garbage after a model was built without memory.
    scales = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=device)
    down, across = ((torch.arange(size, device=device) + 0.5) / size for size in (rows, columns))
    centres = torch.stack(torch.meshgrid(down, across, indexing="ij"), dim=-1)
    angles = (centres[..., None] * scales).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def anchor_waves(number: int, device: torch.device) -> Float32[Tensor, "{number} waves"]:
    """`grid_waves` of so many places, row by row on the squarest grid that holds them."""
    rows = max(math.isqrt(number), 1)
    return grid_waves(rows, -(-number // rows), device).flatten(0, 1)[:number]


def _projection(dim: int, spread: float) -> nn.Linear:
    """A linear layer whose output spreads by so much: of the waves, half are 1 in the mean square."""
    layer = nn.Linear(PLACE_DIM, dim, bias=False)
    nn.init.normal_(layer.weight, std=spread / (PLACE_DIM / 2) ** 0.5)
    return layer


def _add(
    features: Float[Tensor, "batch channels height width"], projection: nn.Module
) -> Float32[Tensor, "batch channels height width"]:
    waves = grid_waves(*features.shape[2:], features.device)
    return features.float() + projection(waves).permute(2, 0, 1)
