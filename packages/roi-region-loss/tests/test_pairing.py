import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_region_loss import ImageBoxes, RegionPairs, pair_boxes


def square(side, at=0.0):
    return [at, at, at + side, at + side]


def image(*boxes, labels=None):
    return ImageBoxes(np.array(boxes, dtype=np.float64).reshape(-1, 4), labels)


def test_by_index_the_kth_is_paired_with_the_kth():  # trap: ref/target counts differ
    reference, target = image(square(0.1), square(0.2), square(0.3)), image(square(0.5), square(0.4))
    pairs = pair_boxes(reference, target)
    np.testing.assert_array_equal(pairs.reference, reference.boxes[:2])
    np.testing.assert_array_equal(pairs.target, target.boxes)
    assert pairs.weights.tolist() == [1.0, 1.0]
    assert pairs.labels == ("", "")
    assert pairs.dropped == {"no_partner": 1}


def test_by_label_equal_ones_are_matched_from_the_largest_down():
    reference = image(square(0.1), square(0.5), square(0.3), square(0.9), labels=("dog", "cat", "dog", "bird"))
    target = image(square(0.2), square(0.4), square(0.6), labels=("dog", "cat", "dog"))
    pairs = pair_boxes(reference, target)
    assert pairs.labels == ("cat", "dog", "dog")
    np.testing.assert_allclose(pairs.reference[:, 2], [0.5, 0.3, 0.1])
    np.testing.assert_allclose(pairs.target[:, 2], [0.4, 0.6, 0.2])
    assert pairs.dropped == {"no_partner": 1}


def test_the_pairing_can_be_forced():
    labelled = image(square(0.1), square(0.2), labels=("dog", "cat"))
    swapped = image(square(0.3), square(0.4), labels=("cat", "dog"))
    assert pair_boxes(labelled, swapped, pairing="index").target[:, 2].tolist() == [0.3, 0.4]
    assert pair_boxes(labelled, swapped).labels == ("cat", "dog")
    assert pair_boxes(labelled, swapped, pairing="index").labels == ("dog", "cat")
    without = image(square(0.3))
    assert len(pair_boxes(labelled, without)) == 1
    forced = pair_boxes(labelled, without, pairing="label")
    assert len(forced) == 0
    assert forced.dropped == {"no_partner": 3}


def test_nothing_is_legal():
    pairs = pair_boxes(ImageBoxes(), image(square(0.1)))
    assert pairs.reference.shape == pairs.target.shape == (0, 4)
    assert pairs.dropped == {"no_partner": 1}
    assert RegionPairs().dropped == {}


def test_the_pair_of_one_instance():
    pairs = RegionPairs.of_one((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8), "mug")
    assert pairs.reference.tolist() == [[0.1, 0.2, 0.3, 0.4]]
    assert pairs.target.tolist() == [[0.5, 0.6, 0.7, 0.8]]
    assert (pairs.weights.tolist(), pairs.labels) == ([1.0], ("mug",))


def test_labels_and_boxes_must_match():
    with pytest.raises(ValueError, match="got 1 labels for 2 boxes"):
        image(square(0.1), square(0.2), labels=("dog",))


LABELLED = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=6)


@settings(max_examples=30, deadline=None)
@given(LABELLED, LABELLED)
def test_label_pairs_are_one_to_one_and_as_many_as_possible(reference, target):
    images = [
        image(*(square(side / 10) for _, side in boxes), labels=tuple(label for label, _ in boxes))
        for boxes in (reference, target)
    ]
    pairs = pair_boxes(*images, pairing="label")
    counts = [[[label for label, _ in boxes].count(letter) for letter in "abc"] for boxes in (reference, target)]
    assert [pairs.labels.count(letter) for letter in "abc"] == [min(both) for both in zip(*counts, strict=True)]
    assert pairs.dropped.get("no_partner", 0) == len(reference) + len(target) - 2 * len(pairs)
