"""Which query answers for which target: the cheapest assignment per sample (DETR, Carion et al. 2020, section 3.1).

A pair costs what its mask would cost in the loss; with class names, also minus the probability of the target's class
among the sample's own candidates. Sentences and regions say nothing about which of several masks is whose, so there the
masks alone decide.

The samples of a batch are compared side by side, and the costs of all predictions travel to the host in one piece: on
an accelerator the host waits once per step, however deep the supervision is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from region_core.regions import RegionBatch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from psalm.config import CriterionConfig
from psalm.modes import CONDITION_KINDS
from psalm.points import DrawPoints, random_points, read_points, read_points_of_all
from psalm.targets import SegmentationTargets

CLASS_NAME = CONDITION_KINDS.index("class_name")


class Matched(NamedTuple):
    """Matched pairs of one prediction: sample by sample, queries in ascending order.

    Attributes:
        sample: Sample of each pair.
        query: Query of each pair.
        target: Row of each pair's target among all targets of the batch.
    """

    sample: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]


@torch.no_grad()
def match_targets(
    mask_logits: Sequence[Float[Tensor, "batch queries height width"]],
    condition_logits: Sequence[Float[Tensor, "batch queries conditions"]],
    kinds: Int[Tensor, " batch"],
    condition_mask: Bool[Tensor, "batch conditions"],
    targets: SegmentationTargets,
    config: CriterionConfig,
    *,
    draw_points: DrawPoints = random_points,
) -> list[Matched]:
    """Assign queries to targets, one to one, for every prediction by itself.

    Args:
        mask_logits: Predicted masks, one entry per prediction.
        condition_logits: Predicted logits for the samples' conditions, likewise.
        kinds: Index into `CONDITION_KINDS` of each sample.
        condition_mask: Which conditions a sample has.
        targets: What there is to find.
        config: Weights of the costs and the number of points, which all pairs of a sample share.
        draw_points: Source of the points.

    Returns:
        The pairs of every prediction, min(queries, targets) for each sample. Costs that are not finite count as the
        highest: a broken prediction is the loss's to report.
    """
    batch_size = len(kinds)
    num_targets = targets.counts(batch_size)
    with torch.autocast(kinds.device.type, enabled=False):
        masks = targets.masks.float()
        belongs, _ = RegionBatch(targets.conditions.float(), tuple(num_targets)).to_padded()
        costs = []
        for predicted, logits in zip(mask_logits, condition_logits, strict=True):
            points = draw_points(range(batch_size), config.num_points, kinds.device)
            wanted, _ = RegionBatch(read_points(masks, points[targets.owner]), tuple(num_targets)).to_padded()
            cost = _mask_costs(read_points_of_all(predicted.float(), points), wanted, config)
            named = logits.float().masked_fill(~condition_mask[:, None], -torch.inf).softmax(dim=-1)
            # With class names a target has one class: the product picks its probability.
            of_class = (named @ belongs.mT).where((kinds == CLASS_NAME)[:, None, None], 0.0)
            costs.append(cost - config.class_weight * of_class)
    return _assign(torch.stack(costs), num_targets)


def _mask_costs(
    logits: Float[Tensor, "batch queries points"],
    wanted: Float[Tensor, "batch targets points"],
    config: CriterionConfig,
) -> Float[Tensor, "batch queries targets"]:
    """Weighted cross-entropy and dice loss of every pair of masks, as Mask2Former's matcher has them."""
    # Of a target t in [0, 1], the cross-entropy of a logit x is softplus(x) - t x: one product for all pairs.
    cross_entropy = (F.softplus(logits).sum(dim=2, keepdim=True) - logits @ wanted.mT) / logits.shape[2]
    probability = logits.sigmoid()
    overlap = probability @ wanted.mT
    total = probability.sum(dim=2, keepdim=True) + wanted.sum(dim=2)[:, None]
    return config.mask_weight * cross_entropy + config.dice_weight * (1 - (2 * overlap + 1) / (total + 1))


def _assign(costs: Float[Tensor, "predictions batch queries targets"], num_targets: Sequence[int]) -> list[Matched]:
    """Cheapest assignment of every sample in every prediction."""
    worst = torch.finfo(torch.float32).max
    on_host = costs.nan_to_num(nan=worst, posinf=worst, neginf=worst).cpu().numpy()
    matches = []
    for prediction in on_host:
        triples, first = [], 0
        for sample, count in enumerate(num_targets):
            queries, rows = linear_sum_assignment(prediction[sample, :, :count])
            triples += [(sample, query, first + row) for query, row in zip(queries, rows, strict=True)]
            first += count
        columns = torch.tensor(triples, dtype=torch.long).reshape(-1, 3).to(costs.device).unbind(dim=1)
        matches.append(Matched(*columns))
    return matches
