"""Packed targets."""

import torch
from psalm.targets import SegmentationTargets


def test_targets_are_counted_per_sample():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    targets = SegmentationTargets(masks, torch.tensor([0, 2, 2]), torch.eye(3, dtype=torch.bool))
    assert targets.counts(4) == [1, 0, 2, 0]


def test_no_targets_are_legal():
    targets = SegmentationTargets(
        torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.bool)
    )
    assert targets.counts(2) == [0, 0]
