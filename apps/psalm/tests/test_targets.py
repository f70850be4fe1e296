"""Packed targets and their parts."""

import torch
from psalm.targets import SegmentationTargets


def test_targets_of_each_sample():
    owner = torch.tensor([0, 2, 2])
    masks = torch.arange(3)[:, None, None].expand(3, 4, 4) == 1
    targets = SegmentationTargets(masks, owner, torch.eye(3, dtype=torch.bool))
    assert targets.counts(4) == [1, 0, 2, 0]
    parts = targets.split(4)
    for sample, part in enumerate(parts):
        own = targets.of_sample(sample)
        for name in ("masks", "owner", "conditions"):
            assert torch.equal(vars(part)[name], vars(own)[name])
    assert torch.equal(parts[2].masks, masks[1:])
    assert parts[3].conditions.shape == (0, 3)


def test_no_targets_are_legal():
    targets = SegmentationTargets(
        torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.bool)
    )
    assert [len(part.masks) for part in targets.split(2)] == [0, 0]
