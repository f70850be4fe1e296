"""The points at which masks are compared (PointRend, Kirillov et al. 2020, arXiv:1912.08193, section 3.1).

A point is (x, y) in [0, 1] of a whole map: (0, 0) is the outer corner of the first cell, (1, 1) that of the last
(`align_corners=False`), so the same point can be read from maps of different sizes.

In training every sample brings a seed of its own: its points, and so its losses, do not depend on what else is in the
batch, nor on the rank.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import sample_point

from psalm.config import CriterionConfig

DrawPoints = Callable[[Sequence[int], int, torch.device], Tensor]
"""(sample of each map, points per map, device) -> points, uniform over the map, `[maps, points, 2]`."""


def random_points(
    samples: Sequence[int], num_points: int, device: torch.device
) -> Float[Tensor, "maps {num_points} 2"]:
    """Points from torch's global generator, whatever the samples."""
    return torch.rand(len(samples), num_points, 2, device=device)


class SeededPoints:
    """Points that every sample draws from a generator of its own, one call after the other.

    What a sample gets in a call depends on its own number of maps alone.

    Args:
        seeds: One per sample of the batch.
        device: Of the generators.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, samples: Sequence[int], num_points: int, device: torch.device
    ) -> Float[Tensor, "maps {num_points} 2"]:
        """Points for maps in any order."""
        if not samples:
            return torch.zeros(0, num_points, 2, device=device)
        drawn = [
            torch.rand(len(list(maps)), num_points, 2, device=device, generator=self._generators[sample])
            for sample, maps in groupby(sorted(samples))
        ]
        # Drawn sample by sample, handed out in the order of the maps.
        place = torch.tensor(samples).argsort(stable=True).argsort()
        return torch.cat(drawn)[place.to(device)]


def read_points(
    maps: Float[Tensor, "rows height width"], points: Float[Tensor, "rows points 2"]
) -> Float[Tensor, "rows points"]:
    """Bilinear samples of one map per row; what lies outside is zero."""
    return sample_point(maps[:, None], points, align_corners=False).squeeze(1)


def read_points_of_all(
    maps: Float[Tensor, "batch maps height width"], points: Float[Tensor, "batch points 2"]
) -> Float[Tensor, "batch maps points"]:
    """Bilinear samples of all maps of a sample at the same points."""
    return sample_point(maps, points, align_corners=False)


@torch.no_grad()
def uncertain_points(
    logits: Float[Tensor, "rows height width"],
    samples: Sequence[int],
    config: CriterionConfig,
    draw_points: DrawPoints = random_points,
) -> Float[Tensor, "rows points 2"]:
    """Points for the masks' loss: most of them where the mask is least certain, the others anywhere.

    Args:
        logits: Masks.
        samples: Sample of each.
        config: `oversample_ratio` times `num_points` are drawn; of these the ones nearest to a logit of 0 are
            `importance_ratio` of the result.
        draw_points: Source of the points.
    """
    device = logits.device
    candidates = draw_points(samples, int(config.num_points * config.oversample_ratio), device)
    num_uncertain = int(config.importance_ratio * config.num_points)
    certainty = read_points(logits, candidates).abs()
    chosen = certainty.topk(num_uncertain, dim=1, largest=False).indices
    uncertain = candidates.gather(1, chosen[:, :, None].expand(-1, -1, 2))
    return torch.cat([uncertain, draw_points(samples, config.num_points - num_uncertain, device)], dim=1)
