import math
from typing import Literal, TypedDict

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from region_core import box_to_mask, masks_to_grid, point_to_mask, polygons_to_mask, scribble_to_mask


class Size(TypedDict):
    height: int
    width: int


class PixelSize(Size):
    units: Literal["pixels"]


COORDINATE = st.floats(-0.5, 1.5, allow_subnormal=False)
SIDE = st.integers(1, 24)


def pixel_centres(height, width):
    return [(row, column, column + 0.5, row + 0.5) for row in range(height) for column in range(width)]


def plain_even_odd(vertices, x, y):
    """Whether a ray from (x, y) to the left crosses an odd number of edges."""
    inside = False
    for (x0, y0), (x1, y1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        if (y0 <= y < y1 or y1 <= y < y0) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
            inside = not inside
    return inside


def plain_grid(mask, height, width):
    """Mean of the mask under each cell, by the overlap of every pixel with every cell."""
    mask_height, mask_width = mask.shape
    grid = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            top, bottom = row * mask_height / height, (row + 1) * mask_height / height
            left, right = column * mask_width / width, (column + 1) * mask_width / width
            for r in range(mask_height):
                for c in range(mask_width):
                    down = max(0.0, min(bottom, r + 1) - max(top, r))
                    across = max(0.0, min(right, c + 1) - max(left, c))
                    grid[row, column] += mask[r, c] * down * across / ((bottom - top) * (right - left))
    return grid


# contract


@pytest.mark.parametrize(
    "make",
    [
        lambda **size: box_to_mask([0.1, 0.1, 0.8, 0.9], **size),
        lambda **size: polygons_to_mask([[0.1, 0.1, 0.8, 0.1, 0.5, 0.9]], **size),
        lambda **size: point_to_mask([0.5, 0.5], 0.2, **size),
        lambda **size: scribble_to_mask([0.1, 0.1, 0.9, 0.9], 0.1, **size),
    ],
)
def test_rasterisers_give_bool_masks_of_the_size_asked_for(make):
    mask = make(height=5, width=7)
    assert mask.shape == (5, 7)
    assert mask.dtype == bool
    assert mask.any()
    assert not mask.all()
    with pytest.raises(ValueError, match="height, width >= 1, got 0 x 7"):
        make(height=0, width=7)


def test_nothing_asked_for_gives_an_empty_mask():
    assert not polygons_to_mask([], height=3, width=4).any()
    assert not point_to_mask(np.zeros((0, 2)), 0.1, height=3, width=4).any()
    assert not scribble_to_mask(np.zeros((0, 2)), 0.1, height=3, width=4).any()
    assert not box_to_mask([0.5, 0.1, 0.5, 0.9], height=3, width=4).any(), "a box without area"
    assert not polygons_to_mask([[0.1, 0.1, 0.5, 0.5, 0.9, 0.9]], height=30, width=40).any(), "a flat polygon"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([0.1, math.nan, 0.5, 0.5, 0.9, 0.1], r"polygon 1: point 0 is \[0.1, nan\] in normalised coordinates"),
        (
            [0.1, 0.1, 0.5, 1e9, 0.9, 0.1],
            r"point 1 is \[0.5, 1000000000.0\].*8 x 6 \(width x height\); these look like",
        ),
        ([0.1, 0.1, 0.5, math.inf, 0.9, 0.1], "point 1 is .* not a finite point"),
        ([12, 30, 200, 310, 10, 20], "these look like pixels: say units='pixels'"),
        ([0.1, 0.1, 0.5, 0.5, 0.9], "polygon 1 must be numbers x, y, x, y"),
        ([0.1, 0.1, 0.5, 0.5], "polygon 1 has 2 points, a polygon needs three"),
        ([], "polygon 1 has 0 points"),
        ([[0.1, 0.1], [0.2], [0.3, 0.3]], "polygon 1 must be numbers"),
    ],
)
def test_bad_polygon(points, expected):
    good = [0.1, 0.1, 0.5, 0.1, 0.5, 0.5]
    with pytest.raises(ValueError, match=expected):
        polygons_to_mask([good, points], height=6, width=8)


def test_bad_box_and_lengths():
    with pytest.raises(ValueError, match=r"x0 <= x1 and y0 <= y1, got \[0.5, 0.1, 0.2, 0.9\]"):
        box_to_mask([0.5, 0.1, 0.2, 0.9], height=6, width=8)
    with pytest.raises(ValueError, match="a box is"):
        box_to_mask([0.1, 0.1, 0.2, 0.2, 0.3, 0.3], height=6, width=8)
    for radius in (-0.1, math.nan, math.inf, 1e6):
        with pytest.raises(ValueError, match=r"radius is .* in normalised units, expected 0 to 2.33"):
            point_to_mask([0.5, 0.5], radius, height=6, width=8)
    with pytest.raises(ValueError, match="stroke_width is -1 in pixels units"):
        scribble_to_mask([3, 3], -1, height=6, width=8, units="pixels")


def test_grid_types_and_sizes():
    masks = torch.rand(2, 6, 8) < 0.5
    expected = masks_to_grid(masks, 4, 3)
    assert expected.dtype == torch.float32
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float16, torch.bfloat16):
        assert torch.equal(masks_to_grid(masks.to(dtype), 4, 3), expected)
    assert torch.equal(masks_to_grid(masks.to(torch.uint8) * 255, 4, 3), expected), "any number but 0 is inside"
    assert masks_to_grid(masks.double(), 4, 3).dtype == torch.float64
    assert masks_to_grid(masks[:0], 4, 3).shape == (0, 4, 3)
    for size in ((0, 3), (4, 0)):
        with pytest.raises(ValueError, match="no size may be 0"):
            masks_to_grid(masks, *size)
    with pytest.raises(ValueError, match=r"\(2, 0, 8\)"):
        masks_to_grid(masks[:, :0], 4, 3)


def test_grid_is_float32_under_autocast():
    masks = torch.rand(2, 100, 130)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(masks_to_grid(masks, 7, 9), masks_to_grid(masks, 7, 9).float())
        under_autocast = masks_to_grid(masks, 7, 9)
    assert torch.equal(under_autocast, masks_to_grid(masks, 7, 9))


# reference


@settings(max_examples=60, deadline=None)
@given(COORDINATE, COORDINATE, COORDINATE, COORDINATE, SIDE, SIDE)
def test_box_equals_plain_version(x0, y0, x1, y1, height, width):
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    mask = box_to_mask([x0, y0, x1, y1], height=height, width=width)
    plain = [
        x0 * width <= x < x1 * width and y0 * height <= y < y1 * height for _, _, x, y in pixel_centres(height, width)
    ]
    if any(plain):
        assert mask.reshape(-1).tolist() == plain
    else:
        covers_image = x1 > 0 and x0 < 1 and y1 > 0 and y0 < 1 and x0 < x1 and y0 < y1
        assert mask.any() == covers_image


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=9), SIDE, SIDE)
def test_polygon_equals_plain_even_odd(vertices, height, width):
    mask = polygons_to_mask([vertices], height=height, width=width)
    scaled = [(x * width, y * height) for x, y in vertices]
    plain = np.array([plain_even_odd(scaled, x, y) for _, _, x, y in pixel_centres(height, width)])
    if plain.any():
        assert mask.reshape(-1).tolist() == plain.tolist()


def test_polygon_forms_and_union():
    flat = [1, 1, 6, 1, 6, 4, 1, 4]
    size: PixelSize = {"height": 6, "width": 8, "units": "pixels"}
    mask = polygons_to_mask([flat], **size)
    assert np.array_equal(mask, box_to_mask([1, 1, 6, 4], **size))
    assert np.array_equal(polygons_to_mask([list(zip(flat[0::2], flat[1::2], strict=True))], **size), mask)
    assert np.array_equal(polygons_to_mask([np.array(flat, dtype=np.float32)], **size), mask)
    other = [5, 3, 8, 3, 8, 6, 5, 6]
    assert np.array_equal(polygons_to_mask([flat, other], **size), mask | polygons_to_mask([other], **size))
    # A bow tie by one polygon keeps its crossing empty; two polygons over each other are a union, not a difference.
    assert np.array_equal(polygons_to_mask([flat, flat], **size), mask)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=1, max_size=4), st.floats(0, 0.6), SIDE, SIDE)
def test_points_and_scribbles_equal_plain_distances(points, radius, height, width):
    scaled = [(x * width, y * height) for x, y in points]
    radius_pixels = radius * min(height, width)

    def distance(x, y, start, end):
        run, rise = end[0] - start[0], end[1] - start[1]
        square = run * run + rise * rise
        along = 0.0 if square == 0 else min(1.0, max(0.0, ((x - start[0]) * run + (y - start[1]) * rise) / square))
        return math.hypot(x - start[0] - along * run, y - start[1] - along * rise)

    def plain(segments, row, column, x, y):
        near = min(distance(x, y, *segment) for segment in segments)
        if abs(near - radius_pixels) < 1e-9:
            return None  # on the border, where rounding decides
        ends = {
            (min(int(py), height - 1), min(int(px), width - 1))
            for px, py in scaled
            if 0 <= px <= width and 0 <= py <= height
        }
        return near < radius_pixels or (row, column) in ends

    for mask, segments in (
        (point_to_mask(points, radius, height=height, width=width), [(p, p) for p in scaled]),
        (
            scribble_to_mask(points, 2 * radius, height=height, width=width),
            list(zip(scaled, scaled[1:] or scaled, strict=False)),
        ),
    ):
        for row, column, x, y in pixel_centres(height, width):
            expected = plain(segments, row, column, x, y)
            assert expected is None or mask[row, column] == expected


@pytest.mark.parametrize(
    ("mask_size", "grid_size"),
    [
        *[((6, 8), (3, 4)), ((7, 11), (3, 5)), ((5, 5), (5, 5)), ((3, 2), (7, 9)), ((1, 1), (4, 4)), ((9, 4), (1, 1))],
        ((12, 10), (9, 15)),  # blocks of weights: three down, five across
    ],
)
def test_grid_equals_plain_overlap(mask_size, grid_size):
    masks = torch.rand(3, *mask_size, dtype=torch.float64)
    expected = torch.stack([plain_grid(mask, *grid_size) for mask in masks])
    torch.testing.assert_close(masks_to_grid(masks, *grid_size), expected)
    torch.testing.assert_close(masks_to_grid(masks.float(), *grid_size), expected.float())


def test_grid_equals_area_interpolation_where_sizes_divide():
    masks = (torch.rand(5, 60, 90) < 0.3).float()
    area = torch.nn.functional.interpolate(masks[:, None], (12, 9), mode="area")[:, 0]
    torch.testing.assert_close(masks_to_grid(masks, 12, 9), area)


# invariance


def test_grid_does_not_depend_on_the_rest_of_the_batch_or_on_memory_layout():
    masks = torch.rand(70, 150, 130) < 0.2
    together = masks_to_grid(masks, 11, 17)
    for index in (0, 33, 69):
        torch.testing.assert_close(masks_to_grid(masks[index : index + 1], 11, 17)[0], together[index])
    down_the_columns = masks.mT.contiguous().mT
    torch.testing.assert_close(masks_to_grid(down_the_columns, 11, 17), together)


def test_units_agree():
    size: Size = {"height": 20, "width": 30}
    points = np.array([[0.1, 0.2], [0.7, 0.4], [0.5, 0.9]])
    pixels = points * (30, 20)
    for mask, mask_pixels in (
        (polygons_to_mask([points], **size), polygons_to_mask([pixels], **size, units="pixels")),
        (point_to_mask(points, 0.1, **size), point_to_mask(pixels, 2, **size, units="pixels")),
        (scribble_to_mask(points, 0.1, **size), scribble_to_mask(pixels, 2, **size, units="pixels")),
    ):
        assert mask.any()
        assert np.array_equal(mask, mask_pixels)


# gradients


def test_soft_masks_are_differentiable():
    masks = torch.rand(2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: masks_to_grid(m, 3, 9), masks)
    assert torch.autograd.gradcheck(lambda m: masks_to_grid(m.mT, 3, 9), masks)


# properties


def test_small_regions_keep_their_area_on_a_coarse_grid():  # T44
    boxes = [(x, y, x + side, y + side) for side in (1, 6, 8, 10, 12) for x, y in ((0, 0), (101, 57), (372, 371))]
    masks = np.stack([box_to_mask(box, height=384, width=384, units="pixels") for box in boxes])
    for grid in (27, 108):
        soft = masks_to_grid(torch.from_numpy(masks), grid, grid).double()
        areas = torch.tensor([(x1 - x0) * (y1 - y0) / 384**2 for x0, y0, x1, y1 in boxes], dtype=torch.float64)
        assert (areas > 0).all()
        torch.testing.assert_close(soft.mean((1, 2)), areas, rtol=1e-5, atol=0)


def test_one_pixel_of_a_large_image_never_vanishes():  # T44
    masks = torch.zeros(2, 2000, 3001, dtype=torch.bool)
    masks[0, 1999, 3000] = masks[1, 1000, 1500] = True
    for size in ((1, 1), (7, 13), (27, 27)):
        assert (masks_to_grid(masks, *size).amax((1, 2)) > 0).all()


@pytest.mark.parametrize("image_side", [392, 384, 378])
@pytest.mark.parametrize("grid", [27, 28, 54, 108])
def test_grid_size_is_the_one_asked_for_whatever_the_image(image_side, grid):  # T45
    soft = masks_to_grid(torch.ones(1, image_side, image_side, dtype=torch.bool), grid, grid)
    torch.testing.assert_close(soft, torch.ones(1, grid, grid))


@settings(max_examples=40, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 2**31))
def test_grid_keeps_the_mean(mask_height, mask_width, height, width, seed):
    rng = np.random.default_rng(seed)
    masks = torch.from_numpy(rng.random((2, mask_height, mask_width)) < 0.4)
    soft = masks_to_grid(masks, height, width)
    torch.testing.assert_close(soft.mean((1, 2)), masks.float().mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert soft.min() >= 0
    assert soft.max() <= 1 + 1e-5


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 0.999), st.floats(0, 0.999), st.floats(1e-6, 1e-3), SIDE, SIDE)
def test_what_has_an_area_is_never_empty(x, y, size, height, width):  # T44
    x1, y1 = x + size, y + size
    assert box_to_mask([x, y, x1, y1], height=height, width=width).any()
    if size > 1e-4:  # below that the area drowns in rounding
        assert polygons_to_mask([[x, y, x1, y, x1, y1, x, y1]], height=height, width=width).any()
    assert point_to_mask([x, y], 0, height=height, width=width).sum() == 1


def test_polygons_that_share_a_border_share_no_pixel():
    size: PixelSize = {"height": 37, "width": 41, "units": "pixels"}
    centre = (20.3, 18.5)
    corners = [(0, 0), (41, 0), (41, 37), (0, 37)]
    parts = [
        polygons_to_mask([[*centre, *first, *second]], **size)
        for first, second in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    assert (np.stack(parts).sum(0) == 1).all()


def test_thin_boxes_get_the_pixels_they_lie_in():
    size: PixelSize = {"height": 4, "width": 8, "units": "pixels"}
    column = box_to_mask([2.6, 0.2, 2.9, 3.2], **size)
    assert np.argwhere(column).tolist() == [[0, 2], [1, 2], [2, 2]]
    assert np.argwhere(box_to_mask([7.9, 3.8, 8.0, 4.0], **size)).tolist() == [[3, 7]]
    assert not box_to_mask([8.0, 1.0, 8.4, 1.2], **size).any(), "outside the image"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats() | st.integers(-(10**12), 10**12), max_size=8))
def test_any_numbers_are_an_error_or_a_mask(numbers):
    for make in (
        lambda: polygons_to_mask([numbers], height=5, width=6),
        lambda: point_to_mask(numbers, 0.1, height=5, width=6),
        lambda: scribble_to_mask(numbers, 0.1, height=5, width=6),
        lambda: box_to_mask(numbers, height=5, width=6),
    ):
        try:
            assert make().shape == (5, 6)
        except ValueError as error:
            assert len(str(error)) < 400  # noqa: PT017 - an error is one readable line
