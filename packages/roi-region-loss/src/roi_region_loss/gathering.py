"""Boxes and identities of the region pairs of all ranks, so that each can tell which are no negatives."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from region_core import all_gather_with_grad
from torch import Tensor

from roi_region_loss.negatives import RegionKeys

_RANK_SHIFT = 2**32
"""Positions in a batch stay below it, so rank x shift + position is unique over ranks."""


@dataclass(frozen=True, eq=False)
class GatheredKeys:
    """Keys of the pairs of all ranks.

    Attributes:
        first: Of the regions on the first side.
        second: Of those on the second.
        own: Where this rank's pairs stand among all.
    """

    first: RegionKeys
    second: RegionKeys
    own: Int64[Tensor, " pairs"]


def gather_keys(
    boxes: tuple[Float[Tensor, "pairs 4"], Float[Tensor, "pairs 4"]],
    owner: Int64[Tensor, " pairs"],
    image_ids: tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]],
) -> GatheredKeys:
    """Gather the keys of the pairs of all ranks in one collective, without gradient.

    Args:
        boxes: The regions of both sides.
        owner: Record of this rank's batch that each pair belongs to.
        image_ids: Per pair, the images of both sides.
    """
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    ranks = torch.full_like(owner, rank)
    numbers = torch.stack([*image_ids, ranks * _RANK_SHIFT + owner, ranks], dim=1)
    # An int64 travels exactly as two float64, each of which holds one of its 32-bit halves.
    halves = numbers.view(torch.int32).double()
    packed = torch.cat([boxes[0].double(), boxes[1].double(), halves], dim=1)
    first_boxes, second_boxes, all_halves = all_gather_with_grad(packed.detach()).split([4, 4, halves.shape[1]], dim=1)
    all_numbers = all_halves.to(torch.int32).contiguous().view(torch.int64)
    first_ids, second_ids, triplet_ids, ranks_of_pairs = all_numbers.unbind(dim=1)
    return GatheredKeys(
        first=RegionKeys(first_boxes, first_ids, second_ids, triplet_ids),
        second=RegionKeys(second_boxes, second_ids, first_ids, triplet_ids),
        own=(ranks_of_pairs < rank).sum() + torch.arange(len(owner), device=owner.device),
    )
