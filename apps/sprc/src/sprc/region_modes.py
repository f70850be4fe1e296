"""Where a region's embedding comes from, and the region loss between reference and target.

Tokens of a frozen tower carry no gradient, so a loss on them alone trains next to nothing that retrieval uses. In mode
`qformer` the first of the shared queries read each region as a small image of its own (RoIAlign to a grid of keys), and
the loss trains the Q-Former. In mode `tokens`, the guide's literal form, a region is its mean token through a norm and
a linear layer; in mode `value` the same on the value path of the tower's last block, FG-CLIP's dense features.
`sprc.reach.count_reached` says how many numbers each mode trains.
"""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from region_core.distributed import own_slice
from region_core.grids import TokenGrid
from region_core.losses import LossTerms, drop_dummy, touch, with_dummy_row
from roi_region_loss.config import DropReason
from roi_region_loss.contrastive import RegionContrastiveLoss, RegionLossOutput
from roi_region_loss.features import extract_region_features
from torch import Tensor, nn

from sprc.configuration import SPRCConfig
from sprc.qformer import QueryComposer


class RegionPairs(NamedTuple):
    """Corresponding regions of a batch, packed; the triplets' images by number."""

    reference_boxes: Float[Tensor, "pairs 4"]
    target_boxes: Float[Tensor, "pairs 4"]
    owner: Int[Tensor, " pairs"]
    weights: Float[Tensor, " pairs"]
    reference_ids: Int[Tensor, " batch"]
    target_ids: Int[Tensor, " batch"]


class RegionView(NamedTuple):
    """Images as the region branch sees them: normed tokens, and the grid they lie on."""

    tokens: Float[Tensor, "batch tokens channels"]
    grid: TokenGrid


def complete_pairs(
    reference_boxes: Float[Tensor, "pairs 4"] | None,
    target_boxes: Float[Tensor, "pairs 4"] | None,
    owner: Int[Tensor, " pairs"] | None,
    weights: Float[Tensor, " pairs"] | None,
    reference_ids: Int[Tensor, " batch"] | None,
    target_ids: Int[Tensor, " batch"] | None,
    *,
    batch_size: int,
    device: torch.device,
) -> RegionPairs:
    """Fill in what a batch left out: no pairs without boxes, weight 1, and images that all differ.

    Raises:
        ValueError: Boxes of one side, or boxes without owners.
    """
    given = {"reference_boxes": reference_boxes, "target_boxes": target_boxes, "pair_owner": owner}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(f"region pairs need {', '.join(given)} together, got no {' and no '.join(missing)}")
    if reference_boxes is None or target_boxes is None or owner is None:
        reference_boxes = target_boxes = torch.zeros(0, 4, device=device)
        owner = torch.zeros(0, dtype=torch.long, device=device)
    if weights is None:
        weights = torch.ones(len(owner), device=device)
    if reference_ids is None or target_ids is None:
        own = own_slice(2 * batch_size, device)
        # By rank, so that no two images anywhere have the same number; below zero, away from small ones of the caller.
        fresh = -1 - torch.arange(own.start, own.stop, device=device)
        reference_ids = fresh[:batch_size] if reference_ids is None else reference_ids
        target_ids = fresh[batch_size:] if target_ids is None else target_ids
    return RegionPairs(reference_boxes, target_boxes, owner, weights, reference_ids, target_ids)


class RegionBranch(nn.Module):
    """Region embeddings in one of the three modes, and the loss on them.

    Args:
        config: The mode, and the sizes of the parts.
    """

    def __init__(self, config: SPRCConfig) -> None:
        super().__init__()
        channels = config.vision.hidden_size
        self.channels = channels
        by_qformer = config.region_mode == "qformer"
        self.output_size = config.region_output_size if by_qformer else 1
        self.num_queries = config.region_queries
        # The Q-Former's own projection takes the place of a head.
        self.head = (
            None
            if by_qformer
            else nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, config.image_text_hidden_size))
        )
        self.loss = RegionContrastiveLoss(config.region)

    def forward(
        self, composer: QueryComposer, pairs: RegionPairs, reference: RegionView, target: RegionView
    ) -> RegionLossOutput:
        """Region loss of a batch; every rank calls it together, also without pairs.

        Args:
            composer: The Q-Former that retrieval uses.
            pairs: Boxes and owners.
            reference: Reference images.
            target: Target images.
        """
        keys = torch.cat(
            [
                self.pool(reference, pairs.reference_boxes, pairs.owner),
                self.pool(target, pairs.target_boxes, pairs.owner),
            ]
        )
        of_reference, of_target = self.embed(composer, keys).chunk(2)
        return self.loss(
            of_reference,
            of_target,
            reference_boxes=pairs.reference_boxes,
            target_boxes=pairs.target_boxes,
            pair_owner=pairs.owner,
            pair_weights=pairs.weights,
            reference_ids=pairs.reference_ids,
            target_ids=pairs.target_ids,
        )

    def rest(self) -> Float[Tensor, ""]:
        """A zero that keeps what belongs to this branch alone in the graph of a step that does without it."""
        scale = self.loss.scale()
        if self.head is None:
            return touch(scale)
        return touch(scale, self.head(scale.new_zeros(1, self.channels)))

    def embed(
        self, composer: QueryComposer, keys: Float[Tensor, "regions *keys channels"]
    ) -> Float[Tensor, "regions shared"]:
        """Embeddings of regions, which the loss normalises; the modules run on a dummy where there is none.

        Args:
            composer: The Q-Former that retrieval uses.
            keys: What RoIAlign made of each region: a grid of keys, or one vector.
        """
        rows, num_dummy = with_dummy_row(keys)
        if self.head is None:
            return drop_dummy(composer.project_image(rows, self.num_queries).mean(dim=1), num_dummy)
        return drop_dummy(self.head(rows), num_dummy)

    def pool(
        self, view: RegionView, boxes: Float[Tensor, "pairs 4"], owner: Int[Tensor, " pairs"]
    ) -> Float[Tensor, "pairs *keys channels"]:
        """What RoIAlign makes of each region: a grid of keys for the Q-Former, or one vector."""
        grid = view.grid
        return extract_region_features(
            view.tokens,
            boxes,
            grid=(grid.height, grid.width),
            num_prefix_tokens=grid.num_prefix_tokens,
            owner=owner,
            output_size=self.output_size,
        )


def add_region_terms(
    losses: LossTerms, output: RegionLossOutput, weight: float, dropped: Int[Tensor, "batch reasons"] | None = None
) -> None:
    """Add the region loss, and with weight 0 what is only for the log.

    Args:
        losses: Receives the terms.
        output: The region loss of a micro-batch.
        weight: Its weight.
        dropped: Regions left out of it, by triplet and `DropReason`; logged as means per triplet.
    """
    losses.add("region", output.total, output.count, weight)
    losses.add("region_pairs", output.total.new_tensor(output.num_pairs), 1, 0.0)
    if dropped is not None:
        for reason, number in zip(get_args(DropReason), dropped.sum(dim=0).float(), strict=True):
            losses.add(f"region_dropped_{reason}", number, len(dropped), 0.0)
    losses.merge(output.monitors, "region_")
