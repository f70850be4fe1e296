"""Typed targets of a batch: one tensor per kind of answer, so that metres never share a tensor with class indices.

The language model's `labels` are something else and stay untouched; these fields travel beside them. A row without a
target stays in the batch and gives no loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from region_heads.labels import Label
from region_heads.tasks import TaskType


@dataclass(frozen=True)
class RegionTargets:
    """Targets of one batch; each row uses the field of its own task and holds zeros in the others.

    Attributes:
        distance_m: Metres between the two measured regions.
        left_right: 0 where region 0 stands left of region 1, else 1.
        choice: Index of the chosen region.
        count: How many there are.
        valid: A target exists.
        involved: Regions that the reference answer names: the measured pair, or the counted members.
        involved_valid: `involved` is known.
        num_regions: True regions of the row; they come first, padding follows.
    """

    distance_m: Float32[Tensor, " batch"]
    left_right: Int64[Tensor, " batch"]
    choice: Int64[Tensor, " batch"]
    count: Int64[Tensor, " batch"]
    valid: Bool[Tensor, " batch"]
    involved: Bool[Tensor, "batch regions"]
    involved_valid: Bool[Tensor, " batch"]
    num_regions: Int64[Tensor, " batch"]

    @classmethod
    def empty(cls, num_regions: Int64[Tensor, " batch"], max_regions: int) -> "RegionTargets":
        """Targets without a single valid row, on the device of `num_regions`."""
        zeros = torch.zeros_like(num_regions)
        return cls(
            distance_m=zeros.float(),
            left_right=zeros,
            choice=zeros,
            count=zeros,
            valid=zeros.bool(),
            involved=zeros.bool()[:, None].expand(-1, max_regions),
            involved_valid=zeros.bool(),
            num_regions=num_regions,
        )

    @classmethod
    def from_labels(
        cls, labels: Sequence[Label | None], task_types: Sequence[int], num_regions: Sequence[int]
    ) -> "RegionTargets":
        """Collect the labels of a batch.

        Args:
            labels: One per row; `None` where there is no target.
            task_types: The tasks that the rows are routed to, -1 where unknown.
            num_regions: True regions per row.

        Returns:
            The targets, on the CPU. A label of another task than the row's gives no target: the row goes to a head
            that could not use it. Values out of range are kept here; the heads ignore and count them.

        Raises:
            ValueError: The three sequences differ in length.
        """
        if not len(labels) == len(task_types) == len(num_regions):
            raise ValueError(
                f"expected one label, task and region count per row, got {len(labels)} labels, "
                f"{len(task_types)} task types and {len(num_regions)} region counts"
            )
        batch, max_regions = len(labels), max(num_regions, default=0)
        columns = {task: [0] * batch for task in TaskType if task is not TaskType.DISTANCE}
        distance_m, valid, involved_valid = [0.0] * batch, [False] * batch, [False] * batch
        involved = torch.zeros(batch, max_regions, dtype=torch.bool)
        for row, (label, task) in enumerate(zip(labels, task_types, strict=True)):
            if label is None or label.task != task:
                continue
            valid[row] = True
            if label.task is TaskType.DISTANCE:
                distance_m[row] = float(label.value)
            else:
                columns[label.task][row] = int(label.value)
            if label.involved is not None and all(0 <= index < num_regions[row] for index in label.involved):
                involved[row, list(label.involved)] = True
                involved_valid[row] = True
        return cls(
            distance_m=torch.tensor(distance_m, dtype=torch.float32),
            left_right=torch.tensor(columns[TaskType.LEFT_RIGHT], dtype=torch.long),
            choice=torch.tensor(columns[TaskType.MULTIPLE_CHOICE], dtype=torch.long),
            count=torch.tensor(columns[TaskType.COUNTING], dtype=torch.long),
            valid=torch.tensor(valid, dtype=torch.bool),
            involved=involved,
            involved_valid=torch.tensor(involved_valid, dtype=torch.bool),
            num_regions=torch.tensor(num_regions, dtype=torch.long),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return self.valid.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "RegionTargets":
        """Copy to a device; the signature is the one that accelerate's data loaders call."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "RegionTargets":
        """Copy to page-locked memory; called by torch's data loader."""
        return self._map(lambda tensor: tensor.pin_memory())

    def select(self, rows: Int64[Tensor, " rows"]) -> "RegionTargets":
        """Take some rows, in the order given."""
        return self._map(lambda tensor: tensor[rows])

    def padded(self, num_rows: int, max_regions: int) -> "RegionTargets":
        """Append rows without targets, and fit `involved` to a number of regions.

        Args:
            num_rows: At least the present number of rows.
            max_regions: Width of `involved`; at least every row's `num_regions`.
        """
        extra = num_rows - len(self)
        grown = self._map(lambda tensor: F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, extra)))
        width = max_regions - self.involved.shape[1]
        # A negative pad cuts columns that belong to no region.
        return RegionTargets(**{**grown._tensors(), "involved": F.pad(grown.involved, (0, width))})

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: self.__dict__[field.name] for field in fields(self)}

    def _map(self, function: Callable[[Tensor], Tensor]) -> "RegionTargets":
        return RegionTargets(**{name: function(tensor) for name, tensor in self._tensors().items()})
