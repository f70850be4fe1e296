"""PQ, SQ and RQ by hand: matches, wrong merges, void, unmatched predictions in the void, parts added up."""

import numpy as np
import pytest
from psalm.metrics.panoptic_quality import PanopticQuality


def strip(*values: int) -> np.ndarray:
    return np.array([values])


def test_one_thing_found_in_part_and_one_stuff_found_whole():
    quality = PanopticQuality()
    # Car: 3 of 4 pixels, one of them too many: IoU 3 / 5. Sky: 4 of 4 but for the one taken, IoU 4 / 5.
    quality.update(
        strip(1, 1, 1, 2, 1, 2, 2, 2, 2, 0),
        ["car", "sky"],
        strip(1, 1, 1, 1, 2, 2, 2, 2, 2, 0),
        ["car", "sky"],
        things=["car"],
    )
    # Car shares 3, union 4 + 4 - 3 = 5; sky shares 4, union 5 + 5 - 4 = 6.
    scores = quality.compute()
    assert scores["SQ_things"] == pytest.approx(60.0)
    assert scores["PQ_things"] == pytest.approx(60.0)
    assert scores["SQ_stuff"] == pytest.approx(100 * 4 / 6)
    assert scores["RQ"] == 100.0
    assert scores["PQ"] == pytest.approx((60 + 100 * 4 / 6) / 2)


def test_iou_of_exactly_one_half_is_no_match():
    quality = PanopticQuality()
    # Shares 2 of a union of 4.
    quality.update(strip(0, 1, 1, 1), ["car"], strip(0, 0, 1, 1), ["car"], things=["car"])
    assert quality.compute()["PQ"] == pytest.approx(100 * 2 / 3)
    quality = PanopticQuality()
    quality.update(strip(1, 1, 1, 1), ["car"], strip(0, 0, 1, 1), ["car"], things=["car"])
    assert quality.compute()["PQ"] == 0.0
    assert (quality.classes["car"].false_positives, quality.classes["car"].false_negatives) == (1, 1)


def test_stuff_left_in_two_pieces_is_one_match_and_one_false_positive():
    # A merge that forgets to join the sky's queries: 6 and 4 pixels of 10.
    quality = PanopticQuality()
    quality.update(strip(1, 1, 1, 1, 1, 1, 2, 2, 2, 2), ["sky", "sky"], strip(*[1] * 10), ["sky"], things=[])
    scores = quality.compute()
    assert scores["SQ"] == pytest.approx(60.0)
    assert scores["RQ"] == pytest.approx(100 * 1 / 1.5)
    assert scores["PQ"] == pytest.approx(40.0)
    assert "PQ_things" not in scores


def test_the_right_place_with_the_wrong_class_is_missed_and_invented():
    quality = PanopticQuality()
    quality.update(strip(1, 1), ["cat"], strip(1, 1), ["dog"], things=["cat", "dog"])
    assert quality.classes["cat"].false_positives == 1
    assert quality.classes["dog"].false_negatives == 1
    assert quality.compute()["PQ"] == 0.0


def test_void_leaves_the_union():
    quality = PanopticQuality()
    void = np.array([[False, False, True, True]])
    quality.update(strip(1, 1, 1, 1), ["car"], strip(1, 1, 0, 0), ["car"], things=["car"], void=void)
    assert quality.compute()["PQ"] == 100.0


@pytest.mark.parametrize(("in_void", "false_positives"), [(1, 1), (2, 1), (3, 0)])
def test_an_unmatched_prediction_is_ignored_only_where_most_of_it_is_void(in_void, false_positives):
    quality = PanopticQuality()
    void = np.arange(6)[None] < in_void
    # Four pixels, none of them the true one at the end.
    quality.update(strip(1, 1, 1, 1, 0, 2), ["cat", "dog"], strip(0, 0, 0, 0, 0, 1), ["dog"], things=["cat"], void=void)
    found = quality.classes.get("cat")
    assert (0 if found is None else found.false_positives) == false_positives
    assert quality.compute()["PQ"] == (50.0 if false_positives else 100.0)


def test_a_class_that_is_nowhere_has_no_part_in_the_mean():
    quality = PanopticQuality()
    quality.update(strip(1), ["car"], strip(1), ["car"], things=["car", "dog"])
    assert quality.compute()["PQ"] == 100.0
    assert PanopticQuality().compute() == {}


def test_no_prediction_and_no_target_are_legal():
    quality = PanopticQuality()
    quality.update(strip(0, 0), [], strip(0, 1), ["car"], things=["car"])
    quality.update(strip(0, 1), ["car"], strip(0, 0), [], things=["car"])
    quality.update(strip(0, 0), [], strip(0, 0), [], things=["car"])
    assert quality.compute()["PQ"] == 0.0
    assert (quality.classes["car"].false_positives, quality.classes["car"].false_negatives) == (1, 1)


def test_parts_add_up_in_any_order_to_the_same_numbers():
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 4, (8, 8)), rng.integers(0, 3, (8, 8)).cumsum(0).clip(0, 3)) for _ in range(6)]
    images += [(true, true) for _, true in images]
    names = ["sky", "car", "dog"]
    parts = []
    for predicted, true in images:
        parts.append(PanopticQuality())
        parts[-1].update(predicted, names, true, names, things=["car", "dog"])
    whole, backwards = PanopticQuality(), PanopticQuality()
    for part in parts:
        whole.merge(part)
    for part in reversed(parts):
        backwards.merge(part)
    at_once = PanopticQuality()
    for predicted, true in images:
        at_once.update(predicted, names, true, names, things=["car", "dog"])
    assert whole.compute() == backwards.compute() == at_once.compute()
    assert 0 < whole.compute()["PQ"] < 100
