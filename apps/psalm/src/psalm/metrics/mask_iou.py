"""IoU of masks that were asked for one by one: by a sentence, or by a region.

cIoU is all intersections over all unions, so large objects weigh more; gIoU is the mean of the IoUs (the field's mIoU
of region prompts). Where there is no target (gRefCOCO), an empty mask has IoU 1 and any other 0, and N_acc says how
often it was empty; T_acc how often there was a mask where there is a target.
"""

from dataclasses import dataclass, field
from math import fsum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class Overlap(NamedTuple):
    """Pixels of one predicted and one true mask."""

    shared: int
    predicted: int
    true: int

    @property
    def union(self) -> int:
        """Pixels of either."""
        return self.predicted + self.true - self.shared

    @property
    def iou(self) -> float:
        """In [0, 1]; 1 where both are empty."""
        return self.shared / self.union if self.union else 1.0


@dataclass
class MaskIoU:
    """Overlaps of the masks so far.

    Attributes:
        overlaps: One entry per mask that was asked for.
    """

    overlaps: list[Overlap] = field(default_factory=list)

    def update(
        self,
        predicted: Bool[np.ndarray, "height width"],
        true: Bool[np.ndarray, "height width"],
        *,
        void: Bool[np.ndarray, "height width"] | None = None,
    ) -> Overlap:
        """Add one mask.

        Args:
            predicted: The answer; all False says that there is no target.
            true: The target; all False where there is none.
            void: Pixels that do not count.

        Returns:
            The mask's own overlap.
        """
        if void is not None:
            predicted, true = predicted & ~void, true & ~void
        overlap = Overlap(int((predicted & true).sum()), int(predicted.sum()), int(true.sum()))
        self.overlaps.append(overlap)
        return overlap

    def merge(self, other: "MaskIoU") -> None:
        """Add the masks of another one."""
        self.overlaps.extend(other.overlaps)

    def compute(self) -> dict[str, float]:
        """`cIoU`, `gIoU`, and `N_acc` with `T_acc` where some mask has no target; in percent."""
        if not self.overlaps:
            return {}
        union = sum(overlap.union for overlap in self.overlaps)
        shared = sum(overlap.shared for overlap in self.overlaps)
        ious = [overlap.iou for overlap in self.overlaps]
        scores = {"cIoU": 100 * shared / union if union else 100.0, "gIoU": 100 * fsum(ious) / len(ious)}
        absent = [overlap.predicted == 0 for overlap in self.overlaps if overlap.true == 0]
        present = [overlap.predicted > 0 for overlap in self.overlaps if overlap.true > 0]
        if absent:
            scores["N_acc"] = 100 * sum(absent) / len(absent)
            if present:
                scores["T_acc"] = 100 * sum(present) / len(present)
        return scores
