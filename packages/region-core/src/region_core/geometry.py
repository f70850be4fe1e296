"""Where a region is, as a short vector of numbers.

A feature pooled under a mask has lost its position. These numbers give it back: place and extent in the image and, with
a depth map, depth and the two sideways coordinates of a pinhole camera (X = (x - 1/2) z and Y = (y - 1/2) z, up to the
focal length). They suit a linear layer beside the pooled feature.
"""

import math

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

GEOMETRY_NAMES = ("centre_x", "centre_y", "width", "height", "area", "depth", "sideways_x", "sideways_y")
"""Meaning of the columns of `region_geometry`."""

GEOMETRY_DIM = len(GEOMETRY_NAMES)


def region_geometry(
    masks: Float[Tensor, "regions height width"], depth: Float[Tensor, "depth_height depth_width"] | None = None
) -> Float32[Tensor, "regions geometry"]:
    """Geometry of regions from their soft masks on a grid.

    Args:
        masks: Soft masks in [0, 1], as `masks_to_grid` makes them.
        depth: Depth in [0, 1] on the same grid; cells that are not finite are left out of the mean.

    Returns:
        Per region the columns of `GEOMETRY_NAMES`: centre (centre of mass, finer than a cell), width and height (of the
        cells with any weight) and area, all as shares of the image; mean depth under the mask; centre times depth. The
        last three are 0 without depth, all are 0 for an empty mask; never NaN. Differentiable except width and height.

    Raises:
        ValueError: The grids of masks and depth differ, or have no cells.
    """
    if 0 in masks.shape[1:] or (depth is not None and depth.shape != masks.shape[1:]):
        depth_shape = None if depth is None else tuple(depth.shape)
        raise ValueError(f"got masks {tuple(masks.shape)} and depth {depth_shape}: the grids must agree and have cells")
    weights = masks.float()
    height, width = weights.shape[1:]
    per_column, per_row = weights.sum(1), weights.sum(2)
    mass = per_row.sum(1)
    centre_x = _mean(per_column * _cell_centres(width, weights.device), mass)
    centre_y = _mean(per_row * _cell_centres(height, weights.device), mass)
    columns = [centre_x, centre_y, _extent(per_column), _extent(per_row), mass / (height * width)]
    if depth is None:
        columns += [torch.zeros_like(mass)] * 3
    else:
        known = weights * depth.isfinite()
        values = torch.nan_to_num(depth.float(), nan=0.0, posinf=0.0, neginf=0.0)
        z = _mean((known * values).flatten(1), known.flatten(1).sum(1))
        columns += [z, (centre_x - 0.5) * z, (centre_y - 0.5) * z]
    return torch.stack(columns, dim=-1)


class GeometryEmbedding(nn.Module):
    """Geometry values as a vector that stands beside a pooled feature.

    Each value is seen at several scales, as sines and cosines (Fourier features: Tancik et al. 2020), so that small
    differences of place count; a norm at the end gives the vector the size of a normalised feature.

    Args:
        dim: Width of the vector.
        num_frequencies: Scales per value; the finest tells values apart that differ by about `2 ** -num_frequencies`.
    """

    def __init__(self, dim: int, num_frequencies: int = 4) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        width = GEOMETRY_DIM * (1 + 2 * num_frequencies)
        self.layers = nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim))

    def forward(self, geometry: Float[Tensor, "regions geometry"]) -> Float[Tensor, "regions dim"]:
        """Embed what `region_geometry` returns."""
        # Computed here and not kept: a buffer that is not saved holds garbage after a model was built without memory.
        scales = math.pi * 2.0 ** torch.arange(self.num_frequencies, device=geometry.device)
        angles = (geometry.float()[..., None] * scales).flatten(-2)
        features = torch.cat([geometry.float(), angles.sin(), angles.cos()], dim=-1)
        return self.layers(features.to(self.layers[0].get_parameter("weight").dtype))


def _cell_centres(size: int, device: torch.device) -> Float32[Tensor, " {size}"]:
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size


def _mean(weighted: Float32[Tensor, "regions cells"], mass: Float32[Tensor, " regions"]) -> Float32[Tensor, " regions"]:
    """Sum over mass, zero where there is no mass; the divisor is replaced first, so that no gradient is NaN."""
    return weighted.sum(1) / torch.where(mass > 0, mass, 1.0)


def _extent(weights: Float32[Tensor, "regions size"]) -> Float32[Tensor, " regions"]:
    """From the first to the last place with any weight, as a share of the size."""
    size = weights.shape[1]
    places = torch.arange(size, device=weights.device)
    occupied = weights > 0
    first = torch.where(occupied, places, size).amin(1)
    after = torch.where(occupied, places + 1, 0).amax(1)
    return (after - first).clamp_min(0) / size
