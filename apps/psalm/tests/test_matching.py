"""Matching: equality with transformers, kinds, sizes that do not fit, numbers that are not finite."""

import pytest
import torch
from psalm.config import CriterionConfig
from psalm.matching import Matched, match_targets
from psalm.points import SeededPoints
from psalm.targets import SegmentationTargets
from transformers.models.mask2former.modeling_mask2former import Mask2FormerHungarianMatcher

CLASS_NAME, SENTENCE, REGION = range(3)
CONFIG = CriterionConfig(num_points=200)


def quadrants(*numbers: int, size: int = 16) -> torch.Tensor:
    """Masks of one quadrant each: 0 top left, 1 top right, 2 bottom left, 3 bottom right."""
    masks = torch.zeros(len(numbers), size, size, dtype=torch.bool)
    for mask, number in zip(masks, numbers, strict=True):
        row, column = number // 2 * size // 2, number % 2 * size // 2
        mask[row : row + size // 2, column : column + size // 2] = True
    return masks


def logits_of(masks: torch.Tensor, certainty: float = 5.0) -> torch.Tensor:
    return (masks.float() * 2 - 1) * certainty


def targets_of(masks: torch.Tensor, conditions: list[list[int]], owner: list[int] | None = None) -> SegmentationTargets:
    owners = torch.tensor(owner or [0] * len(masks), dtype=torch.long)
    return SegmentationTargets(masks, owners, torch.tensor(conditions, dtype=torch.bool).reshape(len(masks), -1))


def match(mask_logits, condition_logits, kinds, targets, condition_mask=None):
    mask = torch.ones(len(kinds), condition_logits.shape[-1], dtype=torch.bool)
    mask = mask if condition_mask is None else condition_mask
    (matched,) = match_targets([mask_logits], [condition_logits], torch.tensor(kinds), mask, targets, CONFIG)
    return by_sample(matched, targets, len(kinds))


def by_sample(matched: Matched, targets: SegmentationTargets, batch_size: int) -> list[tuple[list[int], list[int]]]:
    """Per sample its queries, and for each the row of its target among the sample's own."""
    first = [int((targets.owner < sample).sum()) for sample in range(batch_size)]
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in range(batch_size)]
    for sample, query, target in zip(*(column.tolist() for column in matched), strict=True):
        found[sample][0].append(query)
        found[sample][1].append(target - first[sample])
    return found


def test_masks_find_their_targets():
    predicted = logits_of(quadrants(3, 0, 1, 2))[None]
    targets = targets_of(quadrants(1, 3), [[1], [1]])
    assert match(predicted, torch.zeros(1, 4, 1), [SENTENCE], targets) == [([0, 2], [1, 0])]


def test_equality_with_transformers():
    generator = torch.Generator().manual_seed(0)
    mask_logits = torch.randn(2, 6, 8, 8, generator=generator)
    condition_logits = torch.randn(2, 6, 4, generator=generator)
    masks = torch.rand(5, 32, 32, generator=generator) < 0.5
    labels = torch.tensor([0, 2, 1, 1, 0])
    conditions = torch.nn.functional.one_hot(labels, 4).bool()
    targets = SegmentationTargets(masks, torch.tensor([0, 0, 1, 1, 1]), conditions)
    library = Mask2FormerHungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=200)
    torch.manual_seed(3)
    expected = library(mask_logits, condition_logits, [masks[:2].float(), masks[2:].float()], [labels[:2], labels[2:]])
    torch.manual_seed(3)
    valid = torch.ones(2, 4, dtype=torch.bool)
    (found,) = match_targets([mask_logits], [condition_logits], torch.tensor([0, 0]), valid, targets, CONFIG)
    assert by_sample(found, targets, 2) == [tuple(part.tolist() for part in sample) for sample in expected]


def test_every_prediction_is_matched_by_itself():
    """All together as one by one, with the points that each sample draws."""
    generator = torch.Generator().manual_seed(0)
    mask_logits = [torch.randn(3, 5, 8, 8, generator=generator) for _ in range(3)]
    condition_logits = [torch.randn(3, 5, 4, generator=generator) for _ in range(3)]
    masks = torch.rand(6, 32, 32, generator=generator) < 0.5
    conditions = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 1, 0, 2]), 4).bool()
    targets = SegmentationTargets(masks, torch.tensor([0, 0, 2, 2, 2, 2]), conditions)
    given = (torch.tensor([CLASS_NAME, SENTENCE, REGION]), torch.ones(3, 4, dtype=torch.bool), targets, CONFIG)
    together = SeededPoints([1, 2, 3], torch.device("cpu"))
    found = match_targets(mask_logits, condition_logits, *given, draw_points=together)
    apart = SeededPoints([1, 2, 3], torch.device("cpu"))
    for number, matched in enumerate(found):
        (alone,) = match_targets([mask_logits[number]], [condition_logits[number]], *given, draw_points=apart)
        assert all(map(torch.equal, matched, alone))


@pytest.mark.parametrize(("kind", "expected"), [(CLASS_NAME, [1, 0]), (SENTENCE, [0, 1]), (REGION, [0, 1])])
def test_only_class_names_have_a_say_among_equal_masks(kind, expected):
    """Both queries draw both masks; the class logits want them swapped."""
    masks = quadrants(0, 0)
    predicted = logits_of(masks)[None]
    condition_logits = torch.tensor([[[0.0, 3.0, 0.0], [3.0, 0.0, 0.0]]])
    targets = targets_of(masks, [[1, 0, 0], [0, 1, 0]])
    assert match(predicted, condition_logits, [kind], targets) == [([0, 1], expected)]


def test_padded_candidates_take_no_probability():
    """Query 0 is the surer one of class 1; were its padded column looked at, it would be sure of nothing."""
    masks = quadrants(0, 0)
    condition_logits = torch.tensor([[[0.0, 3.0, 50.0], [0.0, 1.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    targets = targets_of(masks, [[1, 0, 0], [0, 1, 0]])
    assert match(logits_of(masks)[None], condition_logits, [CLASS_NAME], targets, valid) == [([0, 1], [1, 0])]


def test_more_targets_than_queries():
    predicted = logits_of(quadrants(2, 1))[None]
    targets = targets_of(quadrants(0, 1, 2, 3), [[1]] * 4)
    assert match(predicted, torch.zeros(1, 2, 1), [REGION], targets) == [([0, 1], [2, 1])]


def test_samples_without_targets_among_others():
    predicted = logits_of(quadrants(0, 1))[None].expand(3, -1, -1, -1)
    targets = targets_of(quadrants(1), [[1, 0]], owner=[1])
    assert match(predicted, torch.zeros(3, 2, 2), [CLASS_NAME, SENTENCE, REGION], targets) == [
        ([], []),
        ([1], [0]),
        ([], []),
    ]


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_broken_prediction_is_taken_last(number):
    """The trainer stops at the loss and names the records; the matching must not crash before."""
    predicted = logits_of(quadrants(0, 0, 1))[None]
    predicted[0, 0] = number
    condition_logits = torch.zeros(1, 3, 2)
    condition_logits[0, 0] = number
    targets = targets_of(quadrants(0, 1), [[1, 0], [1, 0]])
    assert match(predicted, condition_logits, [CLASS_NAME], targets) == [([1, 2], [0, 1])]
    predicted[:] = number
    assert len(match(predicted, condition_logits, [CLASS_NAME], targets)[0][0]) == 2


def test_bf16_under_autocast():
    predicted = logits_of(quadrants(3, 0))[None].bfloat16()
    targets = targets_of(quadrants(0, 3), [[1], [1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert match(predicted, torch.zeros(1, 2, 1).bfloat16(), [CLASS_NAME], targets) == [([0, 1], [1, 0])]
