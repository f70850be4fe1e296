"""Contrastive loss between corresponding regions of two images, over the regions of all ranks.

A symmetric InfoNCE as in CLIP (Radford et al. 2021, arXiv:2103.00020) and FG-CLIP (Xie et al. 2025, arXiv:2505.05071),
with one row per pair of regions, rows weighted, and columns left out where they show what the row shows (see
`negatives`). Everything is computed in float32 (float64 stays), also under autocast.

A loss is a *sum* over this rank's rows with the sum of their weights as its count. The columns are the regions of all
ranks, gathered with their gradient, so the sum of the gradients over ranks is that of one process holding all pairs.
Every rank must call the loss in every step, also without a pair.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from region_core import LossTerms, all_gather_with_grad, touch
from torch import Tensor, nn
from torch.nn import functional as F

from roi_region_loss.config import RegionLossConfig
from roi_region_loss.gathering import gather_keys
from roi_region_loss.negatives import excluded_columns


@dataclass(frozen=True, eq=False)
class RegionLossOutput:
    """The loss of one batch.

    Attributes:
        total: Sum of weight x loss over this rank's pairs, with its graph; 0 (with a graph) without pairs.
        count: Sum of the weights of this rank's pairs.
        num_pairs: Pairs of this rank.
        num_pairs_global: Pairs of all ranks, the columns of the similarity matrix.
        monitors: Sums with counts over this rank's pairs that have a weight, without gradient and of weight 0:
            `positive_similarity` (cosine), `hardest_negative` (cosine, over rows that have a negative) and
            `recall_at_1` (a reference region finds its target region; a tie is a miss).
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    num_pairs: int
    num_pairs_global: int
    monitors: LossTerms

    @property
    def mean(self) -> Float[Tensor, ""]:
        """Weighted mean over this rank's pairs; 0 without any weight."""
        return self.total / torch.where(self.count > 0, self.count, 1.0)


class LogitScale(nn.Module):
    """A learned factor of cosine similarities, kept as its logarithm and bounded from above.

    The bound limits the value, not the gradient: a plain clamp has no gradient above it, and a scale that once stepped
    over would stay there for good.

    Args:
        temperature: The factor starts at its inverse.
        max_scale: Upper bound of the factor.
    """

    def __init__(self, temperature: float, max_scale: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.max_log_scale = math.log(max_scale)
        # One row: DeepSpeed cannot broadcast a parameter without dimensions.
        self.log_scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial factor."""
        nn.init.constant_(self.log_scale, math.log(1.0 / self.temperature))

    def forward(self) -> Float[Tensor, ""]:
        """Return the factor."""
        over = (self.log_scale - self.max_log_scale).clamp_min(0).detach()
        return (self.log_scale - over).exp()[0]


class RegionContrastiveLoss(nn.Module):
    """Pulls corresponding regions of a reference and a target image together, against the regions of all ranks.

    Args:
        config: Temperature and choice of negatives.
    """

    def __init__(self, config: RegionLossConfig | None = None) -> None:
        super().__init__()
        self.config = config or RegionLossConfig()
        self.scale = LogitScale(self.config.temperature, self.config.max_scale)

    def forward(
        self,
        reference_features: Float[Tensor, "pairs dim"],
        target_features: Float[Tensor, "pairs dim"],
        *,
        reference_boxes: Float[Tensor, "pairs 4"],
        target_boxes: Float[Tensor, "pairs 4"],
        pair_owner: Int64[Tensor, " pairs"],
        reference_ids: Int64[Tensor, " batch"],
        target_ids: Int64[Tensor, " batch"],
        pair_weights: Float[Tensor, " pairs"] | None = None,
    ) -> RegionLossOutput:
        """Contrast the pairs of all ranks; every rank must call this together.

        Args:
            reference_features: One vector per pair from the reference image; normalised here.
            target_features: The corresponding vector from the target image.
            reference_boxes: Where the first lie, normalised, in any frame that all boxes of an image share.
            target_boxes: Where the second lie.
            pair_owner: Triplet of this rank's batch that each pair belongs to.
            reference_ids: Per triplet, a number that identifies the reference image, the same on all ranks.
            target_ids: Per triplet, the same for the target image.
            pair_weights: Weight of each pair's row; 1 by default. A pair of weight 0 is still a negative of others.

        Raises:
            ValueError: The numbers of rows differ.
        """
        return contrast_pairs(
            (reference_features, target_features),
            boxes=(reference_boxes, target_boxes),
            owner=pair_owner,
            image_ids=(reference_ids, target_ids),
            weights=pair_weights,
            scale=self.scale(),
            config=self.config,
        )


def contrast_pairs(
    features: tuple[Float[Tensor, "pairs dim"], Float[Tensor, "pairs dim"]],
    *,
    boxes: tuple[Float[Tensor, "pairs 4"], Float[Tensor, "pairs 4"]],
    owner: Int64[Tensor, " pairs"],
    image_ids: tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]],
    weights: Float[Tensor, " pairs"] | None,
    scale: Float[Tensor, ""],
    config: RegionLossConfig,
    hard_negatives: Float[Tensor, "pairs negatives dim"] | None = None,
) -> RegionLossOutput:
    """Contrast the first sides of pairs with the second sides of all ranks, and the other way round.

    Args:
        features: Vectors of both sides; normalised here.
        boxes: The region of each side; where the second is a caption, the region that it describes.
        owner: Record of this rank's batch that each pair belongs to.
        image_ids: Per record, the images of both sides.
        weights: Weight of each pair's row; 1 by default.
        scale: Factor of the cosines.
        config: Choice of negatives.
        hard_negatives: Further columns, each for its first side's row only.

    Raises:
        ValueError: The numbers of rows differ.
    """
    weights = features[0].new_ones(len(owner)) if weights is None else weights
    _check_rows(owner=owner, first=features[0], second=features[1], boxes=boxes[0], others=boxes[1], weights=weights)
    with torch.autocast(features[0].device.type, enabled=False):
        first, second = unit_rows(features[0]), unit_rows(features[1])
        extra = None if hard_negatives is None else unit_rows(hard_negatives)
        scale = scale.to(first.dtype)
        # The zero keeps a graph on ranks without pairs, whose backward the others wait for.
        gathered = all_gather_with_grad(torch.cat([first, second], dim=1) + touch(scale).to(first.dtype))
        all_first, all_second = gathered.chunk(2, dim=1)
        keys = gather_keys(boxes, owner, (image_ids[0][owner], image_ids[1][owner]))
        forth = contrast(first, all_second, keys.own, excluded_columns(keys.second, keys.own, config), scale, extra)
        back = contrast(second, all_first, keys.own, excluded_columns(keys.first, keys.own, config), scale)
        losses, weights = 0.5 * (forth.losses + back.losses), weights.to(first.dtype)
        return RegionLossOutput(
            total=(weights * losses).sum(),
            count=weights.sum().detach(),
            num_pairs=len(first),
            num_pairs_global=len(gathered),
            monitors=forth.monitors(weights > 0),
        )


@dataclass(frozen=True, eq=False)
class Contrast:
    """Rows contrasted with columns.

    Attributes:
        losses: Cross-entropy per row.
        positive: Cosine of each row and its positive, without gradient.
        hardest: Largest cosine of a negative, -inf where a row has none, without gradient.
    """

    losses: Float[Tensor, " rows"]
    positive: Float[Tensor, " rows"]
    hardest: Float[Tensor, " rows"]

    def monitors(self, counts: Bool[Tensor, " rows"]) -> LossTerms:
        """Sums over the rows that count, with their numbers; terms of weight 0."""
        has_negative = counts & (self.hardest > -math.inf)
        terms = LossTerms()
        terms.add("positive_similarity", torch.where(counts, self.positive, 0).sum(), counts.sum(), 0.0)
        terms.add("hardest_negative", torch.where(has_negative, self.hardest, 0).sum(), has_negative.sum(), 0.0)
        terms.add("recall_at_1", (counts & (self.positive > self.hardest)).sum().float(), counts.sum(), 0.0)
        return terms


def contrast(
    rows: Float[Tensor, "rows dim"],
    columns: Float[Tensor, "columns dim"],
    positives: Int64[Tensor, " rows"],
    excluded: Bool[Tensor, "rows columns"],
    scale: Float[Tensor, ""],
    extra_columns: Float[Tensor, "rows extra dim"] | None = None,
) -> Contrast:
    """Cross-entropy of each row's positive among the columns that are not excluded.

    Args:
        rows: Unit vectors.
        columns: Unit vectors that all rows share.
        positives: Column that each row belongs to.
        excluded: Columns left out of a row's softmax; never the positive.
        scale: Factor of the cosines.
        extra_columns: Unit vectors that are negatives of their row only.
    """
    cosines = rows @ columns.T
    if extra_columns is not None:
        cosines = torch.cat([cosines, torch.einsum("rd,red->re", rows, extra_columns)], dim=1)
        excluded = F.pad(excluded, (0, extra_columns.shape[1]))
    # Masked after scaling: the scale's gradient would multiply an infinite cosine by a probability of 0.
    logits = (cosines * scale).masked_fill(excluded, -math.inf)
    losses = logits.logsumexp(dim=1) - logits.gather(1, positives[:, None])[:, 0]
    cosines = cosines.detach()
    positive = cosines.gather(1, positives[:, None])[:, 0]
    negatives = cosines.masked_fill(excluded, -math.inf).scatter(1, positives[:, None], -math.inf)
    hardest = negatives.amax(dim=1) if negatives.shape[1] else positive
    return Contrast(losses, positive, hardest)


def unit_rows(rows: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Scale rows to length 1, in float32 at least; a row without length stays zero and passes no gradient.

    Dividing by the length gives NaN there, and by a tiny number (as `F.normalize`) a gradient of its inverse.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    has_length = length > 0
    return torch.where(has_length, rows, 0) / torch.where(has_length, length, 1)


def _check_rows(**tensors: Tensor) -> None:
    """Check that all have the same number of rows, one per pair; otherwise a ValueError with all numbers."""
    counts = {name: tensor.shape[0] for name, tensor in tensors.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"expected one row per pair in each, got {counts}")
