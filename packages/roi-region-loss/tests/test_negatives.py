import pytest
import torch
from roi_region_loss import RegionLossConfig, box_overlap
from roi_region_loss.negatives import RegionKeys, excluded_columns
from torchvision.ops import box_iou


def test_overlap_equals_torchvision_and_knows_containment():
    generator = torch.Generator().manual_seed(0)
    low = 0.5 * torch.rand(6, 2, generator=generator)
    boxes = torch.cat([low, low + 0.1 + 0.4 * torch.rand(6, 2, generator=generator)], dim=1)
    torch.testing.assert_close(box_overlap(boxes, boxes[:4])[0], box_iou(boxes, boxes[:4]))
    whole, inside = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.2, 0.2, 0.4, 0.4]])
    iou, containment = box_overlap(whole, inside)
    assert iou.item() == pytest.approx(0.04)
    assert containment.item() == pytest.approx(1.0)


def test_boxes_without_area_overlap_nothing():
    empty = torch.tensor([[0.3, 0.3, 0.3, 0.6]])
    assert box_overlap(empty, empty)[0].item() == 0.0
    assert box_overlap(empty, empty)[1].item() == 0.0


LEFT, LEFT_TOO, RIGHT, WHOLE = (
    [0.0, 0.0, 0.4, 1.0],
    [0.0, 0.0, 0.5, 1.0],
    [0.6, 0.0, 1.0, 1.0],
    [0.0, 0.0, 1.0, 1.0],
)


def keys(boxes, triplets, image_ids, partner_ids):
    return RegionKeys(torch.tensor(boxes), *map(torch.tensor, (image_ids, partner_ids, triplets)))


def excluded(columns, **settings):
    own = torch.arange(len(columns.boxes))
    return excluded_columns(columns, own, RegionLossConfig(**settings)).tolist()


def test_overlapping_regions_of_a_triplet_are_no_negatives():  # trap: hub-and-spoke false negatives
    columns = keys([LEFT, LEFT_TOO, RIGHT, WHOLE], [0] * 4, [7] * 4, [8] * 4)
    assert excluded(columns) == [
        [False, True, False, True],
        [True, False, False, True],
        [False, False, False, True],
        [True, True, True, False],
    ]


def test_only_strictly_larger_overlaps_are_excluded():
    half = keys([[0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.25, 1.0]], [0, 0], [7, 7], [8, 8])
    assert excluded(half, overlap_containment=1.0) == [[False, False], [False, False]]
    assert excluded(half, overlap_containment=1.0, overlap_iou=0.49) == [[False, True], [True, False]]


def test_regions_of_a_rows_images_from_another_triplet_are_no_negatives():  # trap: hub-and-spoke false negatives
    # Triplet 0: image 1 -> 2. Triplet 1: 2 -> 3. Triplet 2: 4 -> 1. Triplet 3: 5 -> 2. Columns are target regions.
    columns = keys([LEFT, RIGHT, RIGHT, RIGHT], [0, 1, 2, 3], [2, 3, 1, 2], [1, 2, 4, 5])
    assert excluded(columns) == [
        [False, False, True, True],  # image 1 is its reference, image 2 its target
        [True, False, False, True],  # image 2 is its reference
        [False, False, False, False],
        [True, False, False, False],
    ]


def test_cross_image_leaves_out_all_regions_of_both_images():
    columns = keys([LEFT, RIGHT, RIGHT, LEFT], [0, 0, 1, 2], [2, 2, 3, 1], [1, 1, 4, 5])
    assert excluded(columns) == [
        [False, False, False, True],
        [False, False, False, True],
        [False] * 4,
        [False] * 4,
    ]
    assert excluded(columns, negatives="cross_image") == [
        [False, True, False, True],
        [True, False, False, True],
        [False] * 4,
        [False] * 4,
    ]
