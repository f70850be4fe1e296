"""The panoptic merge: collision-free ids, competition for pixels, what is left out."""

import numpy as np
import pytest
import torch
from psalm.panoptic_merge import merge_panoptic

SKY, CAR = 0, 1
IS_THING = (False, True)
BACKGROUND = 2


def classes(*names: int, confidence: float = 12.0) -> torch.Tensor:
    """Logits of queries that are sure of a class."""
    logits = torch.zeros(len(names), 3)
    logits[torch.arange(len(names)), torch.tensor(names)] = confidence
    return logits


def strips(*texts: str) -> torch.Tensor:
    """Masks of one row: # is inside."""
    return torch.tensor([[[9.0 if letter == "#" else -9.0 for letter in text]] for text in texts])


def test_stuff_and_things_in_turn_never_share_an_id():
    """transformers gives 1, 2, 1, 2 for sky, car, sky, car: two segments with one id."""
    masks = strips("#.......", "..#.....", "....#...", "......#.")
    found = merge_panoptic(masks, classes(SKY, CAR, SKY, CAR), IS_THING)
    assert [(segment.id, segment.class_index) for segment in found.segments] == [(1, SKY), (2, CAR), (3, CAR)]
    assert found.segment_map.tolist() == [[1, 0, 2, 0, 1, 0, 3, 0]]
    assert [segment.area for segment in found.segments] == [2, 1, 1]
    assert [segment.is_thing for segment in found.segments] == [False, True, True]


def test_every_pixel_of_the_map_belongs_to_a_listed_segment():
    torch.manual_seed(0)
    for _ in range(20):
        found = merge_panoptic(
            3 * torch.randn(12, 6, 7), 6 * torch.randn(12, 3), IS_THING, score_threshold=0.5, overlap_threshold=0.3
        )
        present = set(np.unique(found.segment_map).tolist()) - {0}
        assert present == {segment.id for segment in found.segments}
        for segment in found.segments:
            assert segment.area == (found.segment_map == segment.id).sum()
        stuff = [segment.class_index for segment in found.segments if not segment.is_thing]
        assert len(stuff) == len(set(stuff))


def test_background_and_unsure_queries_take_no_part():
    masks = strips("####", "####", "#...")
    logits = torch.cat([classes(BACKGROUND), classes(SKY, confidence=1.0), classes(CAR)])
    found = merge_panoptic(masks, logits, IS_THING)
    assert found.segment_map.tolist() == [[1, 0, 0, 0]]
    assert [segment.class_index for segment in found.segments] == [CAR]


def test_the_higher_score_wins_a_pixel_and_a_query_with_too_little_left_is_gone():
    masks = strips("###.....", "#####...")
    logits = torch.cat([classes(CAR, confidence=12.0), classes(CAR, confidence=3.0)])
    # The second keeps 2 of 5 pixels: too few; the first alone remains, and the second's rest is nobody's.
    found = merge_panoptic(masks, logits, IS_THING)
    assert found.segment_map.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    found = merge_panoptic(masks, logits, IS_THING, overlap_threshold=0.4)
    assert found.segment_map.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]


@pytest.mark.parametrize("value", [-9.0, 9.0])
def test_nothing_sure_and_nothing_inside_give_an_empty_map(value):
    masks = torch.full((2, 3, 4), value)
    logits = classes(BACKGROUND, BACKGROUND) if value > 0 else classes(SKY, CAR)
    found = merge_panoptic(masks, logits, IS_THING)
    assert found.segments == ()
    assert found.segment_map.shape == (3, 4)
    assert not found.segment_map.any()


def test_merged_stuff_has_the_larger_score():
    logits = torch.cat([classes(SKY, confidence=3.0), classes(SKY, confidence=12.0)])
    found = merge_panoptic(strips("##..", "..##"), logits, IS_THING)
    (sky,) = found.segments
    assert sky.score == pytest.approx(1.0, abs=1e-3)
    assert sky.area == 4
