"""Where a token stands: its place in the frame, the frame's time, and how far ahead the prediction lies.

Places are fractions of the frame, so that frames with fewer tokens speak of the same places; times are seconds, so that
frames at uneven distances do too. Sines and cosines of geometric periods (Vaswani et al. 2017, "Attention Is All You
Need", 3.5) are computed in float32 and go through one linear layer.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

PLACE_PERIODS = (2.0, 1 / 16, 8)
"""Longest and shortest period in frames, and how many: half a wave per frame up to two patches of a grid of 32."""

TIME_PERIODS_S = (3600.0, 0.1, 16)
"""Longest and shortest period in seconds, and how many: an hour down to a few frames of a usual video."""

NUM_FEATURES = 2 * (2 * PLACE_PERIODS[2] + 2 * TIME_PERIODS_S[2])
"""Sines and cosines of row, column, time and lead."""


def sine_features(
    values: Float[Tensor, "*batch"], longest: float, shortest: float, count: int
) -> Float[Tensor, "*batch features"]:
    """Sines, then cosines of values, with periods from the longest to the shortest in equal ratios.

    Args:
        values: Numbers in the unit of the periods.
        longest: First period.
        shortest: Last period.
        count: Number of periods, at least 2.
    """
    steps = torch.arange(count, dtype=torch.float32, device=values.device) / (count - 1)
    angles = values.float()[..., None] * (2 * math.pi / longest) * (longest / shortest) ** steps
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PositionEncoding(nn.Module):
    """Fixed sine features of a token's position through a linear layer.

    Args:
        dim: Width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(NUM_FEATURES, dim)

    def forward(self, places: Float[Tensor, "tokens 4"]) -> Float[Tensor, "tokens dim"]:
        """Encode positions.

        Args:
            places: Row and column of the patch's centre as fractions of the frame in [0, 1], the frame's time in
                seconds, and the seconds to the frame that is predicted.
        """
        row, column, time, lead = places.unbind(1)
        features = [sine_features(part, *PLACE_PERIODS) for part in (row, column)]
        features += [sine_features(part, *TIME_PERIODS_S) for part in (time, lead)]
        return self.project(torch.cat(features, dim=1).to(self.project.weight.dtype))
