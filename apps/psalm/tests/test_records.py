"""What is kept of an answer, mode by mode."""

import numpy as np
from psalm.answers import Answer
from psalm.panoptic_merge import PanopticPrediction, PanopticSegment
from psalm.predictions import ConditionMasks, Instance
from psalm.records import found_masks
from region_core.rle import decode_rle, encode_rle

NAMES = ("sky", "car")


def pixels(found) -> list[list[bool]]:
    return [decode_rle(mask.rle, height=1, width=3)[0].tolist() for mask in found]


def test_panoptic_keeps_its_segments_in_the_order_of_their_numbers():
    segments = (PanopticSegment(1, 1, True, 0.9, 1), PanopticSegment(2, 0, False, 0.8, 2))
    panoptic = PanopticPrediction(np.array([[2, 1, 2]], dtype=np.int32), segments)
    semantic = np.array([[1, 1, 1]], dtype=np.int32)
    found = found_masks("panoptic", Answer(NAMES, panoptic=panoptic, semantic=semantic, instances=()))
    assert [(mask.role, mask.label, mask.score) for mask in found] == [("segment", "car", 0.9), ("segment", "sky", 0.8)]
    assert pixels(found) == [[False, True, False], [True, False, True]]


def test_semantic_keeps_the_classes_that_are_there():
    found = found_masks("semantic", Answer(NAMES, semantic=np.array([[2, 0, 2]], dtype=np.int32)))
    assert [(mask.role, mask.label, mask.score) for mask in found] == [("class", "car", None)]
    assert pixels(found) == [[True, False, True]]


def test_instances_keep_their_scores():
    instance = Instance(1, 0.25, encode_rle(np.array([[False, True, True]])))
    (found,) = found_masks("instance", Answer(NAMES, instances=(instance,)))
    assert (found.role, found.label, found.score) == ("instance", "car", 0.25)


def test_sentences_and_pairs_keep_best_and_united_masks_and_regions_the_best():
    best, united = np.array([[[True, False, False]]]), np.array([[[True, True, False]]])
    masks = ConditionMasks(best, united, np.array([0.5], dtype=np.float32))
    referred = found_masks("referring", Answer(("the car",), masks=masks))
    assert [(mask.role, mask.label, mask.score) for mask in referred] == [
        ("best", "the car", 0.5),
        ("united", "the car", None),
    ]
    assert pixels(referred) == [[True, False, False], [True, True, False]]
    assert [mask.label for mask in found_masks("cross_image", Answer(("",), masks=masks))] == ["region 0", "region 0"]
    assert [mask.role for mask in found_masks("region", Answer(("",), masks=masks))] == ["best"]
