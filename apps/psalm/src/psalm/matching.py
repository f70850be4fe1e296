"""Which query answers for which target: the cheapest assignment per sample (DETR, Carion et al. 2020, section 3.1).

A pair costs what its mask would cost in the loss; with class names, also minus the probability of the target's class
among the sample's own candidates. Sentences and regions say nothing about which of several masks is whose, so there the
masks alone decide.
"""

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import (
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
)

from psalm.config import CriterionConfig
from psalm.modes import CONDITION_KINDS
from psalm.points import DrawPoints, random_points, read_points
from psalm.targets import SegmentationTargets

CLASS_NAME = CONDITION_KINDS.index("class_name")


@torch.no_grad()
def match_targets(
    mask_logits: Float[Tensor, "batch queries height width"],
    condition_logits: Float[Tensor, "batch queries conditions"],
    kinds: Int[Tensor, " batch"],
    condition_mask: Bool[Tensor, "batch conditions"],
    targets: SegmentationTargets,
    config: CriterionConfig,
    *,
    draw_points: DrawPoints = random_points,
) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """Assign queries to targets, one to one, for one prediction.

    Args:
        mask_logits: Predicted masks.
        condition_logits: Predicted logits for the sample's conditions.
        kinds: Index into `CONDITION_KINDS` of each sample.
        condition_mask: Which conditions a sample has.
        targets: What there is to find.
        config: Weights of the costs and the number of points, which all pairs of a sample share.
        draw_points: Source of the points.

    Returns:
        Per sample the matched queries in ascending order, and for each the row of its target among the sample's
        targets, min(queries, targets) of them. Costs that are not finite count as the highest: a broken prediction is
        the loss's to report.
    """
    costs = []
    with torch.autocast(mask_logits.device.type, enabled=False):
        for sample, own in enumerate(targets.split(len(mask_logits))):
            points = draw_points([sample], config.num_points, mask_logits.device)
            cost = _mask_costs(mask_logits[sample].float(), own.masks, points, config)
            if kinds[sample] == CLASS_NAME:
                logits = condition_logits[sample].float().masked_fill(~condition_mask[sample], -torch.inf)
                # An argmax over bool is not defined on every device.
                labels = own.conditions.int().argmax(dim=1)
                cost = cost - config.class_weight * logits.softmax(dim=-1)[:, labels]
            costs.append(cost)
    return _assign(costs, mask_logits.device)


def _mask_costs(
    mask_logits: Float[Tensor, "queries height width"],
    masks: Bool[Tensor, "targets rows columns"],
    points: Float[Tensor, "1 points 2"],
    config: CriterionConfig,
) -> Float[Tensor, "queries targets"]:
    """Weighted cross-entropy and dice loss of every pair of masks."""
    if len(masks) == 0:
        return mask_logits.new_zeros(len(mask_logits), 0)
    predicted = read_points(mask_logits, points.expand(len(mask_logits), -1, -1))
    wanted = read_points(masks.float(), points.expand(len(masks), -1, -1))
    cross_entropy = pair_wise_sigmoid_cross_entropy_loss(predicted, wanted)
    return config.mask_weight * cross_entropy + config.dice_weight * pair_wise_dice_loss(predicted, wanted)


def _assign(
    costs: list[Float[Tensor, "queries _"]], device: torch.device
) -> list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]:
    """Cheapest assignment of every sample; the costs travel to the host together."""
    worst = torch.finfo(torch.float32).max
    flat = torch.cat([cost.flatten() for cost in costs]).nan_to_num(nan=worst, posinf=worst, neginf=worst).cpu()
    matches = []
    for cost, values in zip(costs, flat.split([cost.numel() for cost in costs]), strict=True):
        rows, columns = linear_sum_assignment(values.reshape(cost.shape).numpy())
        matches.append((torch.as_tensor(rows, device=device), torch.as_tensor(columns, device=device)))
    return matches
