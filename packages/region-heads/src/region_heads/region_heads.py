"""Four heads behind one call: rows are grouped by task, every head runs once, losses come back as named terms."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Int64
from region_core import LossTerms
from torch import Tensor, nn
from torch.nn import functional as F

from region_heads import losses
from region_heads.config import RegionHeadsConfig
from region_heads.pair_heads import DistanceHead, DistanceOutput, LeftRightHead, LeftRightOutput
from region_heads.set_heads import ChoiceOutput, CountingHead, CountingOutput, MultipleChoiceHead
from region_heads.targets import RegionTargets
from region_heads.tasks import UNKNOWN_TASK, TaskType

HeadOutput = DistanceOutput | LeftRightOutput | ChoiceOutput | CountingOutput


@dataclass(frozen=True)
class RegionHeadsOutput:
    """What the heads say about a batch.

    Attributes:
        outputs: By task name, for tasks that occur in the batch; row k belongs to batch row `rows[name][k]`.
        rows: By task name, the batch rows of that output.
        losses: Sum, count and weight per term, for every enabled head (count 0 where nothing applied).
        ignored: Counters of rows that gave no loss, by reason: `unknown_task`, `disabled_task`, `missing_target`,
            `impossible_target`; and `clipped_count` for counts from `max_count` on, trained as the last class.
        batch_size: Rows of the batch.
    """

    outputs: dict[str, HeadOutput]
    rows: dict[str, Int64[Tensor, " rows"]]
    losses: LossTerms
    ignored: dict[str, int]
    batch_size: int


class RegionHeads(nn.Module):
    """The enabled heads, routed by task.

    Every enabled head runs in every call, on the batch's first row with weight zero where no row has its task:
    otherwise its parameters would be unused on some ranks, and ZeRO-3 would wait forever. Grouping costs one sort and
    one wait for the device (to know the group sizes), whatever the batch size.

    Args:
        in_dim: Width of the region features and of the question vector.
        config: Settings, a partial mapping of them, or `None` for the defaults.
    """

    def __init__(self, in_dim: int, config: RegionHeadsConfig | Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.config = config if isinstance(config, RegionHeadsConfig) else RegionHeadsConfig.from_dict(config)
        self.heads = nn.ModuleDict(
            {task.label: _build_head(task, in_dim, self.config) for task in TaskType if self.config.head(task).enabled}
        )

    def forward(
        self,
        features: Float[Tensor, "batch regions dim"],
        task_types: Int[Tensor, " batch"],
        targets: RegionTargets | None = None,
        region_mask: Bool[Tensor, "batch regions"] | None = None,
        question: Float[Tensor, "batch dim"] | None = None,
    ) -> RegionHeadsOutput:
        """Run the heads.

        Args:
            features: Region features; a row's true regions come first.
            task_types: Task per row, -1 where unknown: such a row gets no output and no loss.
            targets: What to learn; without them all losses have count 0.
            region_mask: True where a region exists; `None` where all do.
            question: The question's vector.

        Returns:
            Outputs, rows, losses and counters.

        Raises:
            ValueError: A task number is not known, or the targets do not fit the features and the mask.
        """
        batch_size = features.shape[0]
        if region_mask is None:
            region_mask = features.new_ones(features.shape[:2], dtype=torch.bool)
        has_targets = targets is not None
        if targets is None:
            targets = RegionTargets.empty(region_mask.sum(1), features.shape[1])
        elif len(targets) != batch_size:
            raise ValueError(f"targets hold {len(targets)} rows, the features {batch_size}")
        targets = targets.to(features.device)
        keep = losses.select_loss_rows(task_types, targets, self.config)
        sizes, ignored = self._inspect(task_types, targets, region_mask, keep, has_targets=has_targets)

        # An empty batch gets one row and an empty row one region, both without weight, so that every head can run.
        num_rows, num_regions = max(batch_size, 1), max(features.shape[1], 1)
        extra_rows, extra_regions = num_rows - batch_size, num_regions - features.shape[1]
        features = F.pad(features, (0, 0, 0, extra_regions, 0, extra_rows))
        region_mask = F.pad(region_mask, (0, extra_regions, 0, extra_rows))
        question = None if question is None else F.pad(question, (0, 0, 0, extra_rows))
        targets = targets.padded(num_rows, num_regions)

        order = task_types.argsort(stable=True)
        groups = dict(zip(TaskType, order.split(sizes)[1:], strict=True))
        # Rows are taken in sorted order once; the groups are views of the result.
        chunks = features[order].split(sizes)[1:]
        outputs: dict[str, HeadOutput] = {}
        terms = LossTerms()
        for task in TaskType:
            if task.label not in self.heads:
                continue
            rows, chunk = groups[task], chunks[task]
            if len(rows) == 0:
                rows, chunk = order.new_zeros(1), features[:1]
            output = self.heads[task.label](chunk, region_mask[rows], None if question is None else question[rows])
            if len(groups[task]) > 0:
                outputs[task.label] = output
            row_keep = {name: F.pad(keep[name], (0, extra_rows))[rows] for name in losses.TASK_TERMS[task]}
            self._add_terms(terms, task, output, targets.select(rows), row_keep)
        return RegionHeadsOutput(
            outputs, {name: groups[TaskType[name.upper()]] for name in outputs}, terms, ignored, batch_size
        )

    def _add_terms(
        self,
        terms: LossTerms,
        task: TaskType,
        output: HeadOutput,
        targets: RegionTargets,
        keep: dict[str, Bool[Tensor, " rows"]],
    ) -> None:
        weight = self.config.head(task).weight
        names = losses.TASK_TERMS[task]
        for name, values in zip(names, _row_losses(output, targets, self.config), strict=True):
            factor = 1.0 if name == names[0] else self.config.selection_weight
            terms.add(name, torch.where(keep[name], values, 0.0).sum(), keep[name].sum(), weight * factor)

    def _inspect(
        self,
        task_types: Int[Tensor, " batch"],
        targets: RegionTargets,
        region_mask: Bool[Tensor, "batch regions"],
        keep: dict[str, Bool[Tensor, " batch"]],
        *,
        has_targets: bool,
    ) -> tuple[list[int], dict[str, int]]:
        """Fetch group sizes and counters from the device in one go, and check what only they can tell."""
        numbers = torch.arange(UNKNOWN_TASK, len(TaskType), device=task_types.device)
        sizes = (task_types[:, None] == numbers).sum(0)
        enabled = torch.zeros_like(task_types, dtype=torch.bool)
        used = torch.zeros_like(enabled)
        for task in TaskType:
            if task.label in self.heads:
                enabled = enabled | (task_types == task)
                used = used | keep[losses.TASK_TERMS[task][0]]
        columns = torch.arange(region_mask.shape[1], device=region_mask.device)
        misfits = (region_mask != (columns < targets.num_regions[:, None])).any(1) | (
            targets.num_regions > region_mask.shape[1]
        )
        clipped = used & (task_types == TaskType.COUNTING) & (targets.count >= self.config.max_count)
        counters = torch.stack(
            [
                misfits.sum(),
                (task_types == UNKNOWN_TASK).sum(),
                ((task_types != UNKNOWN_TASK) & ~enabled).sum(),
                (enabled & ~targets.valid).sum() * int(has_targets),
                (enabled & targets.valid & ~used).sum(),
                clipped.sum(),
            ]
        )
        host = torch.cat([sizes, counters]).tolist()
        group_sizes, (num_misfits, *counts) = host[: len(numbers)], host[len(numbers) :]
        if sum(group_sizes) != len(task_types):
            raise ValueError(f"task types must be -1 (unknown) or 0..{len(TaskType) - 1}, got {task_types.tolist()}")
        if num_misfits and has_targets:
            raise ValueError(
                f"{num_misfits} rows have another number of regions in the targets ({targets.num_regions.tolist()}) "
                f"than in the region mask ({region_mask.sum(1).tolist()}), or padding before a true region"
            )
        names = ("unknown_task", "disabled_task", "missing_target", "impossible_target", "clipped_count")
        return group_sizes, dict(zip(names, counts, strict=True))


def _build_head(task: TaskType, in_dim: int, config: RegionHeadsConfig) -> nn.Module:
    dropout, hidden_dim = config.head(task).dropout, config.hidden_dim
    if task is TaskType.DISTANCE:
        mean_m, std_m = config.distance_mean_m, config.distance_std_m
        return DistanceHead(in_dim, dropout, hidden_dim, mean_m=mean_m, std_m=std_m)
    if task is TaskType.LEFT_RIGHT:
        return LeftRightHead(in_dim, dropout, hidden_dim)
    if task is TaskType.MULTIPLE_CHOICE:
        return MultipleChoiceHead(in_dim, dropout, hidden_dim)
    return CountingHead(in_dim, dropout, hidden_dim, max_count=config.max_count)


def _row_losses(
    output: HeadOutput, targets: RegionTargets, config: RegionHeadsConfig
) -> tuple[Float[Tensor, " rows"], ...]:
    """One loss per row for each of the task's terms, in the order of `TASK_TERMS`."""
    if isinstance(output, DistanceOutput):
        # A distance that is not finite never counts; 0 in its place keeps its gradient finite.
        distance_m = torch.where(targets.distance_m.isfinite() & (targets.distance_m >= 0), targets.distance_m, 0.0)
        answer = losses.distance_loss(output, distance_m, kind=config.distance_loss, std_m=config.distance_std_m)
        return answer, losses.distance_pair_loss(output, targets.involved)
    if isinstance(output, LeftRightOutput):
        return (losses.left_right_loss(output, targets.left_right),)
    if isinstance(output, ChoiceOutput):
        return (losses.choice_loss(output, targets.choice),)
    answer = losses.counting_loss(output, targets.count, kind=config.counting_loss)
    return answer, losses.counting_members_loss(output, targets.involved, targets.num_regions)
