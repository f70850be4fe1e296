"""Feature refinement: a finer feature map for small regions, by transposed convolutions.

SpatialRGPT's "deconv2x" (Cheng et al. 2024, section 3) for any number of stages and any grid: each stage doubles both
sides; a norm over channels and a GELU stand between stages, a GELU at the end.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a feature map, at every position on its own.

    Args:
        dim: Number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)

    def forward(self, feature_map: Float[Tensor, "batch dim height width"]) -> Float[Tensor, "batch dim height width"]:
        """Normalise every position."""
        return self.norm(feature_map.movedim(1, -1)).movedim(-1, 1)


class FeatureRefinement(nn.Module):
    """Refine a feature map to 2^num_stages times its height and width.

    Args:
        dim: Number of channels, in and out.
        num_stages: Number of doublings; 0 is the identity.
    """

    def __init__(self, dim: int, num_stages: int = 2) -> None:
        super().__init__()
        if num_stages < 0:
            raise ValueError(f"FeatureRefinement: num_stages must be 0 or more, got {num_stages}")
        self.factor = 2**num_stages
        self.stages = nn.Sequential()
        for stage in range(num_stages):
            self.stages.append(nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2))
            if stage < num_stages - 1:
                self.stages.append(ChannelNorm(dim))
            self.stages.append(nn.GELU())

    def forward(
        self, feature_map: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch dim fine_height fine_width"]:
        """Return the finer map; `area_pool(result, self.factor)` is the matching map on the original grid."""
        return self.stages(feature_map)


def area_pool(
    feature_map: Float[Tensor, "batch dim height width"], factor: int
) -> Float[Tensor, "batch dim coarse_height coarse_width"]:
    """Average blocks of factor x factor cells: the low-resolution map of a refined one.

    Args:
        feature_map: A feature map whose sides are multiples of `factor`.
        factor: Side of a block; 1 returns the map unchanged.

    Raises:
        ValueError: The blocks do not tile the map.
    """
    height, width = feature_map.shape[-2:]
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"area_pool: blocks of {factor}x{factor} do not tile a feature map of {height}x{width}")
    return feature_map if factor == 1 else F.avg_pool2d(feature_map, factor)
