"""AP by hand on strips: COCO's 101 recall points, crowds that hide, images that come in any order."""

import numpy as np
import pytest
from psalm.metrics.average_precision import AveragePrecision, ScoredMask
from region_core.rle import encode_rle


def mask(first: int, last: int, length: int = 40) -> np.ndarray:
    """A strip of ten rows, so that areas are those of real objects."""
    strip = np.zeros((10, length), dtype=bool)
    strip[:, first:last] = True
    return strip


def found(name: str, score: float, strip: np.ndarray) -> ScoredMask:
    return ScoredMask(name, score, encode_rle(strip))


def test_all_found_is_100_and_nothing_found_is_0():
    precision = AveragePrecision()
    precision.update(0, [found("cat", 0.9, mask(0, 10))], np.stack([mask(0, 10)]), ["cat"])
    assert precision.compute() == {"AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100)}
    precision = AveragePrecision()
    precision.update(0, [], np.stack([mask(0, 10)]), ["cat"])
    assert precision.compute() == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}


def test_one_of_two_found_reaches_half_of_the_recalls():
    precision = AveragePrecision()
    precision.update(0, [found("cat", 0.9, mask(0, 10))], np.stack([mask(0, 10), mask(20, 30)]), ["cat", "cat"])
    # Recalls 0, 0.01, ..., 0.5 are 51 of COCO's 101 points.
    assert precision.compute()["AP50"] == pytest.approx(100 * 51 / 101)


def test_an_iou_of_two_thirds_counts_up_to_the_threshold_of_0_65():
    precision = AveragePrecision()
    # Shares 8 columns of a union of 12.
    precision.update(0, [found("cat", 0.9, mask(2, 12))], np.stack([mask(0, 10)]), ["cat"])
    scores = precision.compute()
    assert scores["AP50"] == pytest.approx(100)
    assert scores["AP75"] == 0.0
    # 0.50, 0.55, 0.60 and 0.65 of ten thresholds.
    assert scores["AP"] == pytest.approx(40)


def test_a_surer_wrong_answer_halves_the_precision():
    precision = AveragePrecision()
    wrong, right = found("cat", 0.9, mask(20, 30)), found("cat", 0.5, mask(0, 10))
    precision.update(0, [right, wrong], np.stack([mask(0, 10)]), ["cat"])
    assert precision.compute()["AP"] == pytest.approx(50)


def test_what_lies_in_the_void_is_left_out():
    precision = AveragePrecision()
    wrong, right = found("cat", 0.9, mask(20, 30)), found("cat", 0.5, mask(0, 10))
    precision.update(0, [wrong, right], np.stack([mask(0, 10)]), ["cat"], void=mask(15, 40))
    assert precision.compute()["AP"] == pytest.approx(100)


def test_the_mean_is_over_classes_with_a_true_instance():
    precision = AveragePrecision()
    cat, dog = found("cat", 0.9, mask(0, 10)), found("dog", 0.9, mask(20, 30))
    precision.update(0, [cat, dog], np.stack([mask(0, 10)]), ["cat"])
    assert precision.compute()["AP"] == pytest.approx(100)
    precision.update(1, [], np.stack([mask(20, 30)]), ["bird"])
    assert precision.compute()["AP"] == pytest.approx(50)


def test_images_without_objects_are_legal_and_alone_say_nothing():
    precision = AveragePrecision()
    precision.update(0, [found("cat", 0.9, mask(0, 10))], np.zeros((0, 10, 40), dtype=bool), [])
    assert precision.compute() == {}
    precision.update(1, [found("cat", 0.5, mask(0, 10))], np.stack([mask(0, 10)]), ["cat"])
    # The cat in the empty image is surer and wrong.
    assert precision.compute()["AP"] == pytest.approx(50)


def test_equal_scores_do_not_depend_on_the_order_of_arrival():
    images = [
        (0, [found("cat", 0.5, mask(0, 10))], mask(0, 10)),
        (1, [found("cat", 0.5, mask(20, 30))], mask(0, 10)),
        (2, [found("cat", 0.5, mask(5, 15))], mask(5, 15)),
    ]
    results = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        whole = AveragePrecision()
        for number in order:
            position, predicted, true = images[number]
            part = AveragePrecision()
            part.update(position, predicted, true[None], ["cat"])
            whole.merge(part)
        results.append(whole.compute())
    assert results[0] == results[1] == results[2]
