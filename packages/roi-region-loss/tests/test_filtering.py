import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_region_loss import filter_pairs, transform_boxes

SAME = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
CENTRE_CROP = np.array([[1.25, 0.0, -0.125], [0.0, 1.0, 0.0]])
"""What TargetPad does to a 600 x 400 image, roughly: the outer tenth left and right is cut off."""
GRID = (16, 16)


def boxes(*rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def test_boxes_move_with_the_pixels_and_are_cut_at_the_frame():  # traps: TargetPad; crops without moving boxes
    given = boxes([0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 0.3, 1.0])
    result = filter_pairs(given, given, CENTRE_CROP, SAME, GRID)
    np.testing.assert_allclose(result.reference, [[0.0, 0.2, 0.5, 0.6], [0.0, 0.0, 0.25, 1.0]], atol=1e-12)
    np.testing.assert_allclose(result.target, given)
    assert result.kept.tolist() == [True, True]
    assert result.dropped == {"not_visible": 0, "too_small": 0, "over_cap": 0}


def test_a_flip_keeps_the_corners_in_order():  # trap: flips without moving boxes
    flip = np.array([[-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(transform_boxes(boxes([0.1, 0.2, 0.3, 0.6]), flip), [[0.7, 0.2, 0.9, 0.6]])


def test_a_quarter_turn_swaps_the_sides():
    turn = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, 0.0]])
    np.testing.assert_allclose(transform_boxes(boxes([0.1, 0.2, 0.3, 0.6]), turn), [[0.4, 0.1, 0.8, 0.3]])


def test_a_pair_needs_both_sides_visible_and_large_enough():
    whole = boxes(*[[0.2, 0.2, 0.8, 0.8]] * 5)
    others = boxes(
        [0.2, 0.2, 0.8, 0.8],
        [0.0, 0.2, 0.12, 0.8],  # 0.02 of 0.12 is left, less than 0.3
        [0.0, 0.2, 0.15, 0.8],  # a third is left, wide 0.0625 = one cell
        [0.5, 0.2, 0.52, 0.8],  # visible, but 0.4 cells wide
        [0.0, 0.2, 0.05, 0.8],  # cut off altogether: not visible, not counted as small too
    )
    for reference, target, affines in (
        (whole, others, (SAME, CENTRE_CROP)),
        (others, whole, (CENTRE_CROP, SAME)),
    ):
        result = filter_pairs(reference, target, *affines, GRID)
        assert result.kept.tolist() == [True, False, True, False, False]
        assert result.dropped == {"not_visible": 2, "too_small": 1, "over_cap": 0}
        assert len(result.reference) == len(result.target) == 2
    everything = filter_pairs(whole, others, SAME, CENTRE_CROP, GRID, min_visible=0.0, min_side_cells=0.0)
    assert everything.kept.all()


def test_the_side_is_measured_in_cells_of_its_own_axis():  # trap: non-square grids
    box = boxes([0.2, 0.2, 0.26, 0.8])
    assert filter_pairs(box, box, SAME, SAME, (4, 10)).kept.tolist() == [True]
    assert filter_pairs(box, box, SAME, SAME, (10, 4)).kept.tolist() == [False]


def test_the_cap_counts_what_is_left_and_keeps_weighted_pairs_first():
    given = boxes([0.0, 0.2, 0.05, 0.8], *[[0.2, 0.2, side, 0.8] for side in (0.3, 0.4, 0.5, 0.6)])

    def keep(max_pairs, weights=None):
        return filter_pairs(given, given, CENTRE_CROP, SAME, GRID, max_pairs=max_pairs, weights=weights)

    # The first pair is cut away: capped before, it would have taken the place of the third.
    assert keep(2).kept.tolist() == [False, True, True, False, False]
    assert keep(2).dropped == {"not_visible": 1, "too_small": 0, "over_cap": 2}
    weighted = keep(3, np.array([1.0, 0.0, 1.0, 0.0, 0.5]))
    assert weighted.kept.tolist() == [False, True, True, False, True]
    np.testing.assert_allclose(weighted.target, given[[1, 2, 4]])
    assert keep(9).kept.sum() == keep(None).kept.sum() == 4


def test_no_pairs_are_legal():
    result = filter_pairs(boxes(), boxes(), SAME, SAME, GRID)
    assert result.reference.shape == result.target.shape == (0, 4)


def test_errors():
    with pytest.raises(ValueError, match="a target box for each reference box, got 0 for 1"):
        filter_pairs(boxes([0.0, 0.0, 1.0, 1.0]), boxes(), SAME, SAME, GRID)
    with pytest.raises(ValueError, match="one weight each, got 2 for 0"):
        filter_pairs(boxes(), boxes(), SAME, SAME, GRID, weights=np.ones(2))
    with pytest.raises(ValueError, match="an affine must be finite"):
        transform_boxes(boxes([0.0, 0.0, 1.0, 1.0]), SAME * np.nan)


NUMBER = st.floats(0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(NUMBER, NUMBER, NUMBER, NUMBER), max_size=5), st.floats(0.5, 2.0), st.floats(-0.5, 0.5))
def test_what_is_kept_lies_in_the_frame_and_is_large_enough(corners, stretch, shift):
    given = boxes(*([min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners))
    affine = np.array([[stretch, 0.0, shift], [0.0, stretch, -shift]])
    result = filter_pairs(given, given, affine, SAME, GRID)
    assert int(result.kept.sum()) + sum(result.dropped.values()) == len(given)
    for kept in (result.reference, result.target):
        assert ((kept >= 0) & (kept <= 1)).all()
        assert ((kept[:, 2:] - kept[:, :2]) * 16 >= 0.5).all()
