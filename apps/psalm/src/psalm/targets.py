"""What a batch should have segmented: masks, the samples they belong to, and the conditions they fulfil."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SegmentationTargets:
    """Targets of all samples, packed: those of a sample one after the other, samples in order.

    Attributes:
        masks: Masks in the frame of the model's input.
        owner: Sample of each target.
        conditions: Which conditions of its own sample a target fulfils: with class names exactly one, never the last,
            which is the background.
    """

    masks: Bool[Tensor, "targets height width"]
    owner: Int[Tensor, " targets"]
    conditions: Bool[Tensor, "targets candidates"]

    def counts(self, batch_size: int) -> list[int]:
        """Number of targets of each sample."""
        return torch.bincount(self.owner, minlength=batch_size).tolist()
