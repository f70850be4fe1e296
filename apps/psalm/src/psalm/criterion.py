"""PSALM's losses as sums and counts: masks at points, and one loss per kind of condition.

Every prediction of the mask decoder is matched and judged on its own (deep supervision); a term's total is the sum over
all of them, its count that of one, so its mean is the sum of the predictions' means, as PSALM and Mask2Former log it.
All five terms are always there, with count 0 where a batch has none of their kind. Everything runs in float32.
"""

from collections.abc import Sequence
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from region_core.losses import LossTerms, touch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import dice_loss, sigmoid_cross_entropy_loss

from psalm.config import CriterionConfig
from psalm.mask_decoder import DecodedMasks
from psalm.matching import CLASS_NAME, Matched, match_targets
from psalm.modes import CONDITION_KINDS, ConditionKind
from psalm.points import DrawPoints, random_points, read_points, uncertain_points
from psalm.targets import SegmentationTargets

LOSS_MASK = "loss_mask"
LOSS_DICE = "loss_dice"
CONDITION_LOSSES = MappingProxyType[ConditionKind, str](
    {"class_name": "loss_class_name_class", "sentence": "loss_SEG_class", "region": "loss_region_class"}
)


def segmentation_losses(
    decoded: DecodedMasks,
    condition_logits: Sequence[Float[Tensor, "batch queries conditions"]],
    kinds: Int[Tensor, " batch"],
    condition_mask: Bool[Tensor, "batch conditions"],
    targets: SegmentationTargets,
    config: CriterionConfig,
    *,
    draw_points: DrawPoints = random_points,
) -> LossTerms:
    """The five loss terms of a batch, which may mix all kinds of conditions.

    Args:
        decoded: Predictions of the mask decoder.
        condition_logits: Logits for the conditions, one entry per prediction.
        kinds: Index into `CONDITION_KINDS` of each sample.
        condition_mask: Which conditions a sample has; with class names the last one is the background.
        targets: What there is to find.
        config: Weights and points.
        draw_points: Source of the points.

    Returns:
        `loss_mask` and `loss_dice`: sums over matched targets. `loss_class_name_class`: weighted cross-entropy over the
        sample's own candidates, counted by weight. `loss_SEG_class` and `loss_region_class`: sums over conditions of
        the mean binary cross-entropy over queries, in which the wanted queries weigh as much as all others together.
    """
    batch_size, num_queries = condition_logits[0].shape[:2]
    mask_logits = decoded.mask_logits
    with torch.autocast(kinds.device.type, enabled=False):
        matches = match_targets(
            mask_logits, condition_logits, kinds, condition_mask, targets, config, draw_points=draw_points
        )
        mask_sums = _mask_sums(mask_logits, matches, targets, config, draw_points)
        totals = dict(zip((LOSS_MASK, LOSS_DICE), mask_sums, strict=True))
        for kind, total in _condition_sums(condition_logits, kinds, condition_mask, matches, targets, config).items():
            totals[CONDITION_LOSSES[kind]] = total
    num_conditions = condition_mask.sum(dim=1).tolist()
    counts = _count(kinds.tolist(), targets.counts(batch_size), num_conditions, num_queries, config)
    weights = {LOSS_MASK: config.mask_weight, LOSS_DICE: config.dice_weight}
    losses = LossTerms()
    for name, total in totals.items():
        losses.add(name, total, counts[name], weights.get(name, config.class_weight))
    return losses


def count_loss_items(
    kinds: Int[Tensor, " batch"],
    target_owner: Int[Tensor, " targets"],
    condition_owner: Int[Tensor, " conditions"],
    *,
    num_queries: int,
    config: CriterionConfig,
) -> dict[str, float]:
    """Items of each loss term of a batch, known before the model runs.

    Args:
        kinds: Index into `CONDITION_KINDS` of each sample.
        target_owner: Sample of each target.
        condition_owner: Sample of each condition.
        num_queries: Queries per sample.
        config: For the weight of queries without target.

    Returns:
        The counts that `segmentation_losses` will give its terms.
    """
    num_targets = torch.bincount(target_owner, minlength=len(kinds)).tolist()
    num_conditions = torch.bincount(condition_owner, minlength=len(kinds)).tolist()
    return _count(kinds.tolist(), num_targets, num_conditions, num_queries, config)


def _count(
    kinds: Sequence[int],
    num_targets: Sequence[int],
    num_conditions: Sequence[int],
    num_queries: int,
    config: CriterionConfig,
) -> dict[str, float]:
    """Items per term; all lists are per sample."""
    matched = [min(count, num_queries) for count in num_targets]
    counts = {LOSS_MASK: float(sum(matched)), LOSS_DICE: float(sum(matched))}
    counts |= dict.fromkeys(CONDITION_LOSSES.values(), 0.0)
    for kind, found, conditions in zip(kinds, matched, num_conditions, strict=True):
        items = found + config.no_object_weight * (num_queries - found) if kind == CLASS_NAME else conditions
        counts[CONDITION_LOSSES[CONDITION_KINDS[kind]]] += items
    return counts


def _mask_sums(
    mask_logits: Sequence[Float[Tensor, "batch queries height width"]],
    matches: Sequence[Matched],
    targets: SegmentationTargets,
    config: CriterionConfig,
    draw_points: DrawPoints,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy and dice loss of the matched masks, each a mean over points, summed over masks and predictions."""
    samples = [sample for matched in matches for sample in matched.sample.tolist()]
    if not samples:
        return touch(*mask_logits), touch(*mask_logits)
    pairs = zip(mask_logits, matches, strict=True)
    predicted = torch.cat([logits[matched.sample, matched.query].float() for logits, matched in pairs])
    points = uncertain_points(predicted, samples, config, draw_points)
    wanted = read_points(targets.masks[torch.cat([matched.target for matched in matches])].float(), points)
    logits = read_points(predicted, points)
    # Both divide by the number of masks they are given: 1 leaves the sum.
    return sigmoid_cross_entropy_loss(logits, wanted, 1), dice_loss(logits, wanted, 1)


def _condition_sums(
    condition_logits: Sequence[Float[Tensor, "batch queries conditions"]],
    kinds: Int[Tensor, " batch"],
    condition_mask: Bool[Tensor, "batch conditions"],
    matches: Sequence[Matched],
    targets: SegmentationTargets,
    config: CriterionConfig,
) -> dict[ConditionKind, Float[Tensor, ""]]:
    """Loss of every kind of condition over all predictions, each in the graph whatever kinds the batch has."""
    # Predictions stand one under the other, as if they were samples.
    logits = torch.cat([of_prediction.float() for of_prediction in condition_logits])
    wanted = torch.zeros_like(logits, dtype=torch.bool)
    for number, matched in enumerate(matches):
        wanted[matched.sample + number * len(kinds), matched.query] = targets.conditions[matched.target]
    kinds, condition_mask = kinds.repeat(len(matches)), condition_mask.repeat(len(matches), 1)
    per_condition = _balanced_cross_entropy(logits, wanted)
    sums: dict[ConditionKind, Tensor] = {}
    for index, kind in enumerate(CONDITION_KINDS):
        own = kinds == index
        if index == CLASS_NAME:
            sums[kind] = _class_name_sum(logits[own], wanted[own], condition_mask[own], config.no_object_weight)
        else:
            sums[kind] = torch.where(condition_mask & own[:, None], per_condition, 0.0).sum()
    return sums


def _class_name_sum(
    logits: Float[Tensor, "samples queries candidates"],
    wanted: Bool[Tensor, "samples queries candidates"],
    candidate_mask: Bool[Tensor, "samples candidates"],
    no_object_weight: float,
) -> Float[Tensor, ""]:
    """Cross-entropy over each sample's own candidates; a query that nothing is wanted of should say the last one."""
    if len(logits) == 0:
        return touch(logits)
    background = candidate_mask.sum(dim=1, keepdim=True) - 1
    has_target = wanted.any(dim=-1)
    labels = torch.where(has_target, wanted.int().argmax(dim=-1), background)
    own = logits.masked_fill(~candidate_mask[:, None], -torch.inf)
    per_query = F.cross_entropy(own.transpose(1, 2), labels, reduction="none")
    return torch.where(has_target, per_query, no_object_weight * per_query).sum()


def _balanced_cross_entropy(
    logits: Float[Tensor, "batch queries conditions"], wanted: Bool[Tensor, "batch queries conditions"]
) -> Float[Tensor, "batch conditions"]:
    """Mean over queries of a condition's binary cross-entropy, its m wanted ones weighing (queries - m) / m."""
    num_wanted = wanted.sum(dim=1, keepdim=True)
    # Where all queries are wanted none is left to balance them against; they still have to be learned.
    num_others = (logits.shape[1] - num_wanted).clamp(min=1)
    weight = num_others / num_wanted.clamp(min=1)
    loss = F.binary_cross_entropy_with_logits(logits, wanted.float(), pos_weight=weight, reduction="none")
    return loss.mean(dim=1)
