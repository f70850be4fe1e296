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

    def split(self, batch_size: int) -> list["SegmentationTargets"]:
        """The targets of each sample, as views."""
        counts = self.counts(batch_size)
        parts = (self.masks.split(counts), self.owner.split(counts), self.conditions.split(counts))
        return [SegmentationTargets(*of_sample) for of_sample in zip(*parts, strict=True)]

    def of_sample(self, sample: int) -> "SegmentationTargets":
        """The targets of one sample."""
        own = self.owner == sample
        return SegmentationTargets(self.masks[own], self.owner[own], self.conditions[own])
