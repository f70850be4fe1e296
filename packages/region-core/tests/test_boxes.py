import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from region_core import (
    box_area,
    box_centre,
    boxes_from_cxcywh,
    boxes_from_masks,
    boxes_from_pixels,
    boxes_from_xywh_pixels,
    boxes_to_cxcywh,
    boxes_to_pixels,
    check_boxes,
    clip_boxes,
)

BOXES = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 1.0], [0.25, 0.25, 0.25, 0.75]], dtype=torch.float64)

# contract


@pytest.mark.parametrize(
    "convert",
    [
        lambda boxes: boxes_from_pixels(boxes, 4, 8),
        lambda boxes: boxes_to_pixels(boxes, 4, 8),
        lambda boxes: boxes_from_xywh_pixels(boxes, 4, 8),
        boxes_from_cxcywh,
        boxes_to_cxcywh,
        clip_boxes,
    ],
)
def test_no_boxes_are_legal_and_dtype_is_kept(convert):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert convert(torch.zeros(0, 4, dtype=dtype)).shape == (0, 4)
        assert convert(BOXES.to(dtype)).dtype == dtype


def test_area_centre_and_check_accept_no_boxes():
    none = torch.zeros(0, 4)
    assert box_area(none).shape == (0,)
    assert box_centre(none).shape == (0, 2)
    check_boxes(none, "here")
    assert boxes_from_masks(torch.zeros(0, 3, 5, dtype=torch.bool)).shape == (0, 4)


def test_integer_pixel_boxes_become_float32():
    assert boxes_from_pixels(torch.tensor([[2, 1, 6, 4]]), 4, 8).tolist() == [[0.25, 0.25, 0.75, 1.0]]
    assert boxes_from_xywh_pixels(torch.tensor([[2, 1, 4, 3]]), 4, 8).tolist() == [[0.25, 0.25, 0.75, 1.0]]


def test_pixels_of_an_image_without_size():
    with pytest.raises(ValueError, match=r"height, width >= 1, got 0 x 8"):
        boxes_from_pixels(BOXES, 0, 8)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([math.nan, 0.0, 1.0, 1.0], r"record 7: box 1 is .*nan.*expected finite numbers"),
        ([0.0, 0.0, math.inf, 1.0], "expected finite numbers"),
        ([12.0, 30.0, 200.0, 310.0], r"box 1 is \[12.0, 30.0, 200.0, 310.0\].*looks like pixel boxes"),
        ([0.5, 0.5, 0.2, 0.2], "x0 <= x1 and y0 <= y1: looks like centre or corner with width and height"),
        ([0.2, 0.2, 1.01, 0.9], r"reaches outside the image, cut it with clip_boxes"),
        ([-0.01, 0.2, 1.0, 0.9], "reaches outside the image"),
    ],
)
def test_check_names_row_value_and_guess(row, expected):
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], row, [9.0, 9.0, 9.0, 9.0]])
    with pytest.raises(ValueError, match=expected):
        check_boxes(boxes, "record 7")


def test_check_tolerates_rounding_and_boxes_without_area():
    check_boxes(torch.tensor([[-1e-5, 0.0, 1.00005, 1.0], [0.5, 0.5, 0.5, 0.5]]), "here")


def test_masks_without_pixels_have_no_box():
    with pytest.raises(ValueError, match=r"\(2, 0, 4\).*may not be 0"):
        boxes_from_masks(torch.zeros(2, 0, 4))


# reference: numbers worked out by hand, a slow plain version


def test_values_by_hand():
    boxes = torch.tensor([[0.125, 0.25, 0.375, 1.0]], dtype=torch.float64)
    assert boxes_to_pixels(boxes, 100, 200).tolist() == [[25, 25, 75, 100]]
    assert boxes_to_cxcywh(boxes).tolist() == [[0.25, 0.625, 0.25, 0.75]]
    assert box_area(boxes).tolist() == [0.1875]
    assert box_centre(boxes).tolist() == [[0.25, 0.625]]
    assert clip_boxes(torch.tensor([[-0.5, 0.2, 1.5, 0.7], [1.2, 0.0, 1.4, 1.0]])).tolist() == [
        [0.0, pytest.approx(0.2), 1.0, pytest.approx(0.7)],
        [1.0, 0.0, 1.0, 1.0],
    ]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_boxes_from_masks_equals_plain_version(dtype):
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((40, 7, 11)) < 0.05)
    masks[3] = False
    assert any(mask.sum() == 1 for mask in masks)
    boxes = boxes_from_masks(masks.to(dtype))
    for mask, box in zip(masks.numpy(), boxes.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        expected = [0, 0, 0, 0]
        if len(rows):
            expected = [columns.min() / 11, rows.min() / 7, (columns.max() + 1) / 11, (rows.max() + 1) / 7]
        assert box == pytest.approx(expected)


# invariance, gradients, properties


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=4),
    st.integers(1, 3000),
    st.integers(1, 3000),
)
def test_round_trips(rows, height, width):
    corners = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2, 2)
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=-1)
    check_boxes(boxes, "here")
    torch.testing.assert_close(boxes_from_pixels(boxes_to_pixels(boxes, height, width), height, width), boxes)
    torch.testing.assert_close(boxes_from_cxcywh(boxes_to_cxcywh(boxes)), boxes)
    xywh = boxes_to_pixels(boxes, height, width) - torch.nn.functional.pad(
        boxes_to_pixels(boxes, height, width)[:, :2], (2, 0)
    )
    torch.testing.assert_close(boxes_from_xywh_pixels(xywh, height, width), boxes, rtol=1e-9, atol=1e-9)


def test_conversions_are_differentiable():
    boxes = BOXES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: boxes_from_cxcywh(boxes_to_cxcywh(b)), boxes)
    assert torch.autograd.gradcheck(lambda b: boxes_from_xywh_pixels(boxes_to_pixels(b, 4, 8), 4, 8), boxes)
    assert torch.autograd.gradcheck(box_area, boxes)
