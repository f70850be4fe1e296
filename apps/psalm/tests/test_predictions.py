"""Masks at the original size, quality, semantic maps, instances, masks of sentences and regions."""

import numpy as np
import pytest
import torch
from psalm.panoptic_merge import merge_panoptic
from psalm.predictions import (
    Prediction,
    condition_masks,
    instances,
    mask_quality,
    resize_masks,
    semantic_map,
    split_batch,
)
from region_core.rle import decode_rle


def strips(*texts: str, value: float = 9.0) -> torch.Tensor:
    return torch.tensor([[[value if letter == "#" else -value for letter in text]] for text in texts])


def logit(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability)))


def test_padding_is_cropped_before_the_masks_take_their_original_size():
    # A square input of 8 with an image of 4 x 8 at its top, twice as large on disk; masks at stride 2.
    small = torch.full((1, 4, 4), -5.0)
    small[:, :2] = 5.0
    masks = resize_masks(small, side=8, content_size=(4, 8), original_size=(8, 16))
    assert masks.shape == (1, 8, 16)
    # The image is all inside: with the padding left in, its lower half would be outside.
    assert (masks > 0).float().mean() == 1.0


def test_masks_are_resized_as_logits_and_only_then_thresholded():
    small = torch.tensor([[[-1.0, 3.0], [-1.0, 3.0]]])
    masks = resize_masks(small, side=2, content_size=(2, 2), original_size=(2, 4))
    # Halfway between the columns the surer one wins: a quarter of the way is 0, three quarters 2.
    assert masks[0, 0].tolist() == pytest.approx([-1.0, 0.0, 2.0, 3.0])


def test_a_batch_is_split_into_each_samples_own_conditions_and_size():
    torch.manual_seed(0)
    masks, logits = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 5).bfloat16()
    own = torch.tensor([[True] * 5, [True, True, False, False, False]])
    sizes = [(8, 8), (4, 8)]
    first, second = split_batch(masks, logits, own, side=8, content_sizes=sizes, original_sizes=[(5, 5), (10, 20)])
    assert first.mask_logits.shape == (3, 5, 5)
    assert second.mask_logits.shape == (3, 10, 20)
    assert first.condition_logits.shape == (3, 5)
    assert second.condition_logits.dtype == torch.float32
    assert torch.equal(second.condition_logits, logits[1, :, :2].float())
    alone = next(
        split_batch(masks[1:], logits[1:], own[1:], side=8, content_sizes=sizes[1:], original_sizes=[(10, 20)])
    )
    assert torch.equal(alone.mask_logits, second.mask_logits)


def test_quality_is_the_mean_probability_inside():
    masks = torch.tensor([[[logit(0.9), logit(0.7), -4.0]], [[-4.0, -4.0, -4.0]]])
    assert mask_quality(masks).tolist() == pytest.approx([0.8, 0.0])


def test_the_semantic_map_never_says_background():
    # Two queries; the first is most of all background, then class 1.
    logits = torch.tensor([[0.0, 2.0, 6.0], [4.0, 0.0, 0.0]])
    prediction = Prediction(strips("##..", "..##"), logits)
    assert semantic_map(prediction).tolist() == [[2, 2, 1, 1]]


def test_the_semantic_map_adds_up_queries_of_one_class():
    # Two weak queries of class 0 (0.4 each) against one of class 1 (0.6): together they win where both are.
    probabilities = torch.tensor([[0.4, 0.1, 0.5], [0.4, 0.1, 0.5], [0.0, 0.6, 0.4]]).clamp(min=1e-9)
    prediction = Prediction(strips("##..", ".##.", "####"), probabilities.log())
    assert semantic_map(prediction).tolist() == [[2, 1, 2, 2]]


def test_instances_are_the_best_pairs_of_query_and_thing():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
    prediction = Prediction(strips("##..", "..#."), probabilities.log())
    found = instances(prediction, is_thing=(True, True))
    assert [item.class_index for item in found] == [1, 0, 1, 0]
    assert [item.score for item in found] == pytest.approx([0.7, 0.5, 0.3, 0.1], abs=1e-3)
    assert decode_rle(found[1].rle, height=1, width=4).tolist() == [[True, True, False, False]]
    assert [item.class_index for item in instances(prediction, is_thing=(False, True))] == [1, 1]
    assert len(instances(prediction, is_thing=(True, True), limit=1)) == 1
    assert instances(prediction, is_thing=(False, False)) == []


def test_instances_are_weighed_by_the_quality_of_their_masks_and_empty_ones_left_out():
    masks = torch.tensor([[[logit(0.6), -9.0]], [[logit(0.9), -9.0]], [[-9.0, -9.0]]])
    logits = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1]]).log()
    found = instances(Prediction(masks, logits), is_thing=(True,))
    assert [item.score for item in found] == pytest.approx([0.6 * 0.9, 0.8 * 0.6], abs=1e-3)


def test_the_best_mask_is_by_score_times_quality_and_every_region_has_its_own():
    masks = torch.tensor([[[logit(0.55), -9.0, -9.0]], [[-9.0, 9.0, -9.0]]])
    scores = torch.tensor([[logit(0.9), logit(0.2)], [logit(0.6), logit(0.8)]])
    found = condition_masks(Prediction(masks, scores), threshold=0.5)
    # 0.9 * 0.55 = 0.495 against 0.6; then 0.11 against 0.8.
    assert found.best[:, 0].tolist() == [[False, True, False], [False, True, False]]
    assert found.scores.tolist() == pytest.approx([0.6, 0.8], abs=1e-3)


def test_the_union_takes_all_above_the_threshold_and_nothing_means_no_target():
    prediction = Prediction(strips("#...", ".#..", "..#."), torch.tensor([[logit(0.9)], [logit(0.7)], [logit(0.3)]]))
    found = condition_masks(prediction, threshold=0.6)
    assert found.united[0].tolist() == [[True, True, False, False]]
    found = condition_masks(prediction, threshold=0.95)
    # Upstream takes the best one here, so that it never recognises "no target".
    assert not found.united.any()
    assert found.best.any()


def test_no_region_is_legal():
    found = condition_masks(Prediction(strips("#..."), torch.zeros(1, 0)), threshold=0.5)
    assert found.best.shape == found.united.shape == (0, 1, 4)
    assert isinstance(found.scores, np.ndarray)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_prediction_on_a_gpu_is_read_as_on_the_cpu():
    torch.manual_seed(0)
    masks, logits = 4 * torch.randn(7, 9, 11), 3 * torch.randn(7, 4)
    own, there = Prediction(masks, logits), Prediction(masks.cuda(), logits.cuda())
    things = (True, False, True)
    assert (semantic_map(own) == semantic_map(there)).all()
    assert (condition_masks(own, threshold=0.5).united == condition_masks(there, threshold=0.5).united).all()
    scores = [[item.score for item in instances(said, is_thing=things)] for said in (own, there)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    maps = [
        merge_panoptic(said.mask_logits, said.condition_logits, things, score_threshold=0.4) for said in (own, there)
    ]
    assert (maps[0].segment_map == maps[1].segment_map).all()
