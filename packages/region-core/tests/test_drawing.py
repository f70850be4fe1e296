import itertools

import numpy as np
import pytest
from region_core import PALETTE, SHAPES, draw_polygon, draw_shape, noise_background

COLOUR = PALETTE["red"]


def blank(height=40, width=60):
    return np.full((height, width, 3), 7, dtype=np.uint8)


# contract


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_exactly_what_was_drawn(shape):
    image = blank()
    mask = draw_shape(image, shape, [10, 5, 50, 35], COLOUR)
    assert mask.any()
    assert (image[mask] == COLOUR).all()
    assert (image[~mask] == 7).all()
    rows, columns = np.nonzero(mask)
    assert rows.min() >= 5
    assert rows.max() < 35
    assert columns.min() >= 10
    assert columns.max() < 50


def test_bad_boxes():
    for box in ([5, 1, 1, 5], [0, 0, 1e9, 5], [0, 0, float("nan"), 5]):
        for shape in SHAPES:
            with pytest.raises(ValueError, match="box"):
                draw_shape(blank(), shape, box, COLOUR)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_box_without_area_draws_nothing(shape):
    assert not draw_shape(blank(), shape, [5, 5, 5, 20], COLOUR).any()


# reference


@pytest.mark.parametrize(
    ("shape", "share"),
    [("rectangle", 1), ("ellipse", np.pi / 4), ("triangle", 0.5), ("diamond", 0.5), ("cross", 5 / 9)],
)
def test_area_is_the_formula(shape, share):
    mask = draw_shape(blank(400, 600), shape, [30, 50, 570, 350], COLOUR)
    assert mask.sum() == pytest.approx(share * 540 * 300, rel=0.01)


@pytest.mark.parametrize("shape", ["rectangle", "ellipse", "diamond", "cross"])
def test_symmetric_shapes(shape):
    mask = draw_shape(blank(30, 30), shape, [0, 0, 30, 30], COLOUR)
    # A diamond's border passes through pixel centres, of which only the left and upper ones belong to it.
    differing = (mask != mask[:, ::-1]).sum() + (mask != mask[::-1]).sum()
    assert differing <= (4 * 30 if shape == "diamond" else 0)


def test_triangle_points_up():
    widths = draw_shape(blank(), "triangle", [10, 5, 50, 35], COLOUR).sum(1)[5:35]
    assert (np.diff(widths.astype(int)) >= 0).all()
    assert widths[0] < widths[-1]


def test_polygon():
    image = blank()
    mask = draw_polygon(image, [(10, 5), (50, 5), (50, 35), (10, 35)], COLOUR)
    assert np.array_equal(mask, draw_shape(blank(), "rectangle", [10, 5, 50, 35], COLOUR))
    assert (image[mask] == COLOUR).all()


def test_what_overhangs_is_cut_off():
    whole = draw_shape(blank(80, 120), "ellipse", [30, 20, 90, 60], COLOUR)
    cut = draw_shape(blank(), "ellipse", [0, 0, 60, 40], COLOUR)
    assert np.array_equal(whole[20:60, 30:90], cut)
    corner = draw_shape(blank(), "ellipse", [30, 20, 90, 60], COLOUR)
    assert np.array_equal(corner[20:, 30:], cut[:20, :30])


# invariance and properties


def test_background_depends_on_the_generator_alone():
    first, again, other = (
        noise_background(np.random.default_rng(seed), 20, 30, (100, 120, 140), 8.0) for seed in (1, 1, 2)
    )
    assert first.shape == (20, 30, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_background_mean_and_spread():
    image = noise_background(np.random.default_rng(0), 100, 100, (100, 120, 140), 8).astype(float)
    assert image.mean((0, 1)) == pytest.approx([100, 120, 140], abs=0.5)
    assert image.std((0, 1)) == pytest.approx([8, 8, 8], abs=0.3)
    assert (noise_background(np.random.default_rng(0), 3, 3, (1, 2, 3), 0) == (1, 2, 3)).all()
    with pytest.raises(ValueError, match="strength is -1"):
        noise_background(np.random.default_rng(0), 3, 3, (1, 2, 3), -1)


def test_colours_are_far_apart():
    for first, second in itertools.combinations(PALETTE.values(), 2):
        assert np.abs(np.subtract(first, second)).sum() > 60
