"""Losses of the four heads, one number per row, and the rule which rows count.

Rows are not averaged here: a `LossTerms` entry is a sum with its count, so that a step may be cut into micro-batches
and ranks in any way. The rule lives in one function, which the heads and the data side both call.
"""

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from region_heads.config import CountingLoss, DistanceLoss, RegionHeadsConfig
from region_heads.pair_heads import DistanceOutput, LeftRightOutput
from region_heads.set_heads import ChoiceOutput, CountingOutput
from region_heads.targets import RegionTargets
from region_heads.tasks import TaskType

LOG_OFFSET_M = 0.1
"""Added before the logarithm of a distance: distances of 0 m occur, and below it relative error means little."""

LOG_HUBER_BETA = 0.1
"""Where the log-distance loss turns from quadratic to linear: about the ten per cent that the metric allows."""

TASK_TERMS: dict[TaskType, tuple[str, ...]] = {
    TaskType.DISTANCE: ("distance", "distance_pair"),
    TaskType.LEFT_RIGHT: ("left_right",),
    TaskType.MULTIPLE_CHOICE: ("multiple_choice",),
    TaskType.COUNTING: ("counting", "counting_members"),
}
"""The loss terms of every task; the first is the answer's, the second (if any) that of the regions it names."""


def distance_loss(
    output: DistanceOutput, distance_m: Float[Tensor, " rows"], *, kind: DistanceLoss, std_m: float
) -> Float[Tensor, " rows"]:
    """Squared error of standardised metres, or a Huber loss on log-metres.

    Both shapes are one number per row: metres never broadcast against a column.
    """
    if kind == "mse":
        return ((output.distance_m - distance_m) / std_m).square()
    predicted, wanted = (output.distance_m + LOG_OFFSET_M).log(), (distance_m + LOG_OFFSET_M).log()
    return F.smooth_l1_loss(predicted, wanted, beta=LOG_HUBER_BETA, reduction="none")


def distance_pair_loss(output: DistanceOutput, involved: Bool[Tensor, "rows regions"]) -> Float[Tensor, " rows"]:
    """Minus the log-probability of the pair of regions that the reference answer measures."""
    is_pair = involved[:, output.pairs].all(-1) & (output.pairs[:, 0] != output.pairs[:, 1])
    return -torch.where(is_pair, output.pair_log_probabilities, 0.0).sum(-1)


def left_right_loss(output: LeftRightOutput, left_right: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Cross-entropy over left and right; targets out of range are clamped (their rows do not count)."""
    return F.cross_entropy(output.logits, left_right.clamp(0, 1), reduction="none")


def choice_loss(output: ChoiceOutput, choice: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Cross-entropy over the regions; targets out of range are clamped (their rows do not count)."""
    return F.cross_entropy(output.logits, choice.clamp(0, output.logits.shape[1] - 1), reduction="none")


def counting_loss(
    output: CountingOutput, count: Int64[Tensor, " rows"], *, kind: CountingLoss
) -> Float[Tensor, " rows"]:
    """Cross-entropy over the counts with a last class that absorbs, or a Huber loss on the expected count."""
    if kind == "cross_entropy":
        classes = count.clamp(0, output.log_probabilities.shape[1] - 1)
        return -output.log_probabilities.gather(1, classes[:, None]).squeeze(1)
    wanted = count.to(output.expected_count.dtype)
    return F.smooth_l1_loss(output.expected_count, wanted, reduction="none")


def counting_members_loss(
    output: CountingOutput, involved: Bool[Tensor, "rows regions"], num_regions: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Binary cross-entropy of the inclusions, averaged over a row's true regions."""
    exists = torch.arange(involved.shape[1], device=involved.device) < num_regions[:, None]
    logits = torch.where(exists, output.inclusion_logits, 0.0)
    losses = F.binary_cross_entropy_with_logits(logits, involved.to(logits.dtype), reduction="none")
    return (losses * exists).sum(1) / num_regions.clamp_min(1)


def select_loss_rows(
    task_types: Int[Tensor, " batch"], targets: RegionTargets, config: RegionHeadsConfig
) -> dict[str, Bool[Tensor, " batch"]]:
    """Say for every loss term of the enabled heads which rows count.

    A row counts if it belongs to the task, has a target, has a region at all, and the target is possible: metres are
    finite and not negative, a choice is one of the row's regions, a count is not above their number (a count from
    `max_count` on means the last class).

    Args:
        task_types: Task per row, -1 where unknown.
        targets: The targets.
        config: Settings of the heads.

    Returns:
        A mask per term name.
    """
    reachable = targets.count.clamp_max(config.max_count) <= targets.num_regions
    possible = {
        "distance": targets.distance_m.isfinite() & (targets.distance_m >= 0),
        "left_right": (targets.left_right >= 0) & (targets.left_right <= 1),
        "multiple_choice": (targets.choice >= 0) & (targets.choice < targets.num_regions),
        "counting": (targets.count >= 0) & reachable,
    }
    columns = torch.arange(targets.involved.shape[1], device=targets.involved.device)
    known = targets.involved_valid & ~(targets.involved & (columns >= targets.num_regions[:, None])).any(1)
    possible["distance_pair"] = known & (targets.involved.sum(1) == 2)
    possible["counting_members"] = known
    rows: dict[str, Tensor] = {}
    for task, names in TASK_TERMS.items():
        if not config.head(task).enabled:
            continue
        mine = (task_types == task) & (targets.num_regions > 0)
        rows[names[0]] = mine & targets.valid & possible[names[0]]
        for name in names[1:]:
            rows[name] = mine & possible[name]
    return rows


def count_loss_items(
    task_types: Int[Tensor, " batch"], targets: RegionTargets, config: RegionHeadsConfig
) -> dict[str, int]:
    """Number of items of every loss term of a batch, without running a model.

    A trainer that normalises by the items of a whole step needs these before the first forward. They equal the counts
    in the `LossTerms` that the heads return for the same batch.

    Args:
        task_types: Task per row, -1 where unknown.
        targets: The targets.
        config: Settings of the heads.
    """
    return {name: int(rows.sum()) for name, rows in select_loss_rows(task_types, targets, config).items()}
