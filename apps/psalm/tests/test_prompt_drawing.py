"""Prompts lie where an annotator would put them, and are never empty."""

import numpy as np
import pytest
from psalm.prompt_drawing import draw_prompts
from psalm.scenes import sample_scene
from region_core import SHAPES, draw_shape
from scipy.ndimage import binary_opening


@pytest.fixture(scope="module")
def prompted():
    """Masks of scenes, things in part hidden among them, with their prompts."""
    rng = np.random.default_rng(0)
    masks = [mask for index in range(25) for mask in sample_scene(np.random.default_rng([3, index]), 96).masks]
    return [(mask, draw_prompts(mask, rng)) for mask in masks]


def extent(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


def test_a_point_is_one_pixel_inside_near_the_centre(prompted):
    for mask, prompts in prompted:
        assert prompts.point.sum() == 1
        assert (prompts.point <= mask).all()
        away = np.argwhere(prompts.point)[0] - np.argwhere(mask).mean(0)
        # A tenth of a disc's area lies within 0.18 of its square root; hidden centres push the point further out.
        assert np.linalg.norm(away) < 0.5 * np.sqrt(mask.sum())


def test_a_scribble_is_a_thin_long_line_inside(prompted):
    for mask, prompts in prompted:
        assert (prompts.scribble <= mask).all()
        assert prompts.scribble[prompts.point].all()
        left, top, right, bottom = extent(prompts.scribble)
        own = extent(mask)
        longest = max(own[2] - own[0], own[3] - own[1])
        assert prompts.scribble.sum() <= 3 * longest
        # No three by three block: the line is one pixel wide, two where it runs over a corner.
        blocks = np.lib.stride_tricks.sliding_window_view(prompts.scribble, (3, 3)).all((2, 3))
        assert not blocks.any()
        assert max(right - left, bottom - top) >= 0.25 * longest


def test_a_box_is_filled_and_off_by_five_percent_per_edge_at_most(prompted):
    offsets = []
    for mask, prompts in prompted:
        left, top, right, bottom = extent(prompts.box)
        assert prompts.box[top:bottom, left:right].all()
        own = extent(mask)
        sides = np.array([own[2] - own[0], own[3] - own[1]] * 2)
        offset = np.abs(extent(prompts.box) - own)
        assert (offset <= 0.05 * sides + 0.5).all()  # edges are rounded to pixels
        offsets.append(offset)
    assert np.max(offsets) > 0


def test_a_mask_is_painted_with_a_broad_brush(prompted):
    ious = np.array([iou(mask, prompts.mask) for mask, prompts in prompted])
    assert ious.min() > 0.3
    assert 0.4 < ious.mean() < 0.6
    for mask, prompts in prompted:
        # No speck and no thread: every stroke is as wide as its brush.
        assert binary_opening(prompts.mask, iterations=max(int(0.1 * np.sqrt(mask.sum())), 1)).any()
        covered = (prompts.mask & mask).sum() / mask.sum()
        assert covered > 0.4
        assert (prompts.mask & mask).sum() > 0.4 * prompts.mask.sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 2, 5])
def test_tiny_things_at_the_edge_still_get_all_four_prompts(shape, side):
    mask = draw_shape(np.zeros((20, 30, 3), dtype=np.uint8), shape, (30 - side, 0, 30, side), (255, 0, 0))
    for seed in range(5):
        for prompt in draw_prompts(mask, np.random.default_rng(seed)):
            assert prompt.any()
            assert prompt.shape == (20, 30)


def test_a_thing_in_two_pieces_is_prompted_inside_them():
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 2:10] = mask[8:24, 22:30] = True  # its centre is hidden
    for seed in range(10):
        prompts = draw_prompts(mask, np.random.default_rng(seed))
        assert prompts.point.sum() == 1
        assert ((prompts.point | prompts.scribble) <= mask).all()


def test_prompts_depend_on_the_generator_alone():
    mask = np.zeros((24, 24), dtype=bool)
    mask[4:20, 6:18] = True
    first, again, other = (draw_prompts(mask, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert any((one != changed).any() for one, changed in zip(first, other, strict=True))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="got an empty one of 4 x 6"):
        draw_prompts(np.zeros((4, 6), dtype=bool), np.random.default_rng(0))
