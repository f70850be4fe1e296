"""Mean IoU by hand: absent classes, void, pixels of no class, parts added up."""

import numpy as np
import pytest
from psalm.metrics.semantic_iou import SemanticIoU

NAMES = ["sky", "sea", "sand"]


def strip(*values: int) -> np.ndarray:
    return np.array([values])


def test_by_hand_a_class_absent_from_both_has_no_part():
    iou = SemanticIoU()
    iou.update(strip(1, 1, 1, 2), strip(1, 1, 2, 2), NAMES)
    scores = iou.compute()
    # Sky 2 / 3, sea 1 / 2, sand nowhere.
    assert scores["mIoU"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert scores["pixel_accuracy"] == 75.0


def test_a_class_that_is_only_predicted_counts_with_zero():
    iou = SemanticIoU()
    iou.update(strip(1, 3), strip(1, 1), NAMES)
    assert iou.compute()["mIoU"] == pytest.approx((50 + 0) / 2)


def test_void_counts_for_nobody_and_a_pixel_of_no_class_against_what_is_predicted_there():
    void = np.array([[False, False, True]])
    iou = SemanticIoU()
    iou.update(strip(1, 1, 2), strip(1, 1, 0), NAMES, void=void)
    assert iou.compute() == {"mIoU": 100.0, "pixel_accuracy": 100.0}
    iou = SemanticIoU()
    iou.update(strip(1, 1, 1, 0), strip(1, 1, 0, 0), NAMES)
    assert iou.compute()["mIoU"] == pytest.approx(100 * 2 / 3)


def test_the_mean_is_over_classes_of_all_pixels_not_over_images():
    iou = SemanticIoU()
    iou.update(strip(1, 1, 1, 1), strip(1, 1, 1, 1), NAMES)
    iou.update(strip(2), strip(1), NAMES)
    # Sky 4 / 5 over both images, sea 0 / 1.
    assert iou.compute()["mIoU"] == pytest.approx(100 * (4 / 5 + 0) / 2)


def test_parts_add_up_by_name_whatever_their_order():
    first, second = SemanticIoU(), SemanticIoU()
    first.update(strip(1, 2), strip(1, 1), ["sky", "sea"])
    second.update(strip(1, 2), strip(1, 1), ["sea", "sky"])
    first.merge(second)
    # Both are true twice, predicted twice and found once.
    assert first.classes["sky"].true == 2
    assert first.classes["sea"].predicted == 2
    assert first.compute()["mIoU"] == pytest.approx(100 * (1 / 3 + 1 / 3) / 2)
    assert SemanticIoU().compute() == {}
