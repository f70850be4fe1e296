import json
import math
from typing import TypedDict

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from region_core import (
    Region,
    RegionBatch,
    box_to_mask,
    encode_rle,
    parse_region,
    point_to_mask,
    polygons_to_mask,
    region_to_mask,
    scribble_to_mask,
)


class Size(TypedDict):
    height: int
    width: int


SIZE: Size = {"height": 20, "width": 30}

# contract of a single region


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"box": [0.1, 0.2, 0.5, 0.9]}, box_to_mask([0.1, 0.2, 0.5, 0.9], **SIZE)),
        ({"box": [3, 4, 15, 18], "units": "pixels"}, box_to_mask([0.1, 0.2, 0.5, 0.9], **SIZE)),
        ({"polygon": [0.1, 0.1, 0.9, 0.1, 0.5, 0.9]}, polygons_to_mask([[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]], **SIZE)),
        (
            {"polygon": [[3, 2], [27, 2], [15, 18]], "units": "pixels"},
            polygons_to_mask([[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]], **SIZE),
        ),
        (
            {"polygons": [[0, 0, 0.4, 0, 0, 0.4], [[1, 1], [0.6, 1], [1, 0.6]]]},
            polygons_to_mask([[0, 0, 0.4, 0, 0, 0.4], [1, 1, 0.6, 1, 1, 0.6]], **SIZE),
        ),
        ({"point": [0.5, 0.5], "radius": 0.2}, point_to_mask([0.5, 0.5], 0.2, **SIZE)),
        ({"point": [[0.2, 0.5], [0.8, 0.5]]}, point_to_mask([[0.2, 0.5], [0.8, 0.5]], 0.02, **SIZE)),
        ({"point": [15, 10], "units": "pixels"}, point_to_mask([15, 10], 0.4, **SIZE, units="pixels")),
        ({"scribble": [[0.1, 0.1], [0.9, 0.9]], "width": 0.2}, scribble_to_mask([0.1, 0.1, 0.9, 0.9], 0.2, **SIZE)),
        ({"scribble": [3, 2, 27, 18], "units": "pixels"}, scribble_to_mask([0.1, 0.1, 0.9, 0.9], 0.04, **SIZE)),
        ({"rle": {"size": [20, 30], "counts": [300, 300]}}, np.arange(30) >= np.full((20, 1), 15)),
    ],
)  # fmt: skip
def test_every_form_of_a_record_becomes_a_mask(record, expected):
    assert expected.any()
    region = parse_region(json.loads(json.dumps(record | {"label": "crate"})), where="here")
    assert region.label == "crate"
    assert np.array_equal(region_to_mask(region, **SIZE), expected)


def test_compressed_rle_and_mask():
    mask = box_to_mask([0.1, 0.2, 0.5, 0.9], **SIZE)
    assert np.array_equal(region_to_mask(parse_region({"rle": encode_rle(mask)}, where="here"), **SIZE), mask)
    assert np.array_equal(region_to_mask(Region(mask=mask), **SIZE), mask)


def test_exactly_one_form():
    with pytest.raises(ValueError, match=r"region: a region has exactly one of .* got \[\]"):
        Region()
    with pytest.raises(ValueError, match=r"train\[3\]: a region has exactly one of .* got \['box', 'points'\]"):
        Region(box=(0, 0, 1, 1), points=((0.5, 0.5),), where="train[3]")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, r"exactly one of \['box', 'rle'.* got the keys \[\]"),
        ({"label": "crate"}, r"got the keys \['label'\]"),
        ({"box": [0, 0, 1, 1], "point": [0.5, 0.5]}, r"got the keys \['box', 'point'\]"),
        ({"bbox": [0, 0, 1, 1]}, r"got the keys \['bbox'\]"),
        ({"box": [0, 0, 1, 1], "colour": "red"}, "got the keys"),
        ({"box": [0, 0, 1, 1], "radius": 0.1}, "'radius' belongs to a point, got it with a box"),
        ({"point": [0.5, 0.5], "width": 0.1}, "'width' belongs to a scribble, got it with a point"),
        ({"box": [0, 0, 1, 1], "label": 3}, "'label' is text, got 3"),
        ({"box": [0, 0, 1, 1], "units": "cm"}, "'units' is 'normalised' or 'pixels', got 'cm'"),
        ({"box": [0, 0, 1]}, r"box is numbers x, y, x, y, ... or pairs of them, 2 points or more, got \[0, 0, 1\]"),
        ({"box": [0, 0, 1, 1, 1, 1]}, r"box is \[x0, y0, x1, y1\]"),
        ({"box": "0 0 1 1"}, "box is numbers"),
        ({"box": [0, 0, 1, True]}, "box is numbers"),
        ({"box": [0, 0, 1, "1"]}, "box is numbers"),
        ({"box": [0, 0, 1, math.nan]}, "box holds a number that is not finite"),
        ({"box": [10, 20, 300, 400]}, "box: box 0 is .*looks like pixel boxes"),
        ({"box": [0.5, 0.5, 0.2, 0.2]}, "box: box 0 is .*x0 <= x1"),
        ({"polygon": [0, 0, 1, 1]}, "polygon is numbers x, y, x, y, ... or pairs of them, 3 points or more"),
        ({"polygon": [0, 0, 1, 1, 0.5, math.inf]}, "polygon holds a number that is not finite"),
        ({"polygons": []}, "polygons is a list of polygons"),
        ({"polygons": [[0, 0, 1, 1, 0, 1], [0]]}, r"polygons\[1\] is numbers"),
        ({"polygons": [0, 0, 1, 1, 0, 1]}, r"polygons\[0\] is numbers"),
        ({"point": []}, "point is numbers .* 1 points or more"),
        ({"point": [0.5, 0.5], "radius": -1}, "radius is a number, 0 or more, got -1"),
        ({"point": [0.5, 0.5], "radius": "2"}, "radius is a number, 0 or more, got '2'"),
        ({"scribble": [0.5, 0.5], "width": None}, "width is a number, 0 or more, got None"),
        ({"rle": [1, 2]}, "rle is an object with 'size' and 'counts'"),
        ({"rle": {"counts": [1]}}, "rle: an RLE needs the keys 'size' and 'counts'"),
    ],
)  # fmt: skip
def test_bad_record(record, expected):
    with pytest.raises(ValueError, match=rf"data\.jsonl:5: .*{expected}"):
        parse_region(record, where="data.jsonl:5: regions[0]")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"rle": {"size": [30, 20], "counts": [600]}}, r"rle: the RLE's size is \[30, 20\]"),
        ({"box": [0, 0, 5000, 10], "units": "pixels"}, "box: point 1 is .* within reach of the image of 30 x 20"),
        ({"polygon": [0, 0, 50, 50, 0, 50]}, "polygon 0: point 1 is .* these look like pixels"),
        ({"point": [0.5, 0.5], "radius": 100}, "radius is 100.0 in normalised units"),
    ],
)
def test_region_that_does_not_fit_its_image_says_where_it_came_from(record, expected):
    region = parse_region(record, where="data.jsonl:5")
    with pytest.raises(ValueError, match=rf"data\.jsonl:5: {expected}"):
        region_to_mask(region, **SIZE)


def test_mask_of_another_size():
    with pytest.raises(
        ValueError, match=r"region: the mask is \(3, 4\) \(height, width\), expected the image's \(20, 3"
    ):
        region_to_mask(Region(mask=np.ones((3, 4), dtype=bool)), **SIZE)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["box", "rle", "polygon", "polygons", "point", "scribble", "radius", "units"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["size", "counts"]), inner),
            max_leaves=8,
        ),
        max_size=2,
    )
)
def test_any_record_is_an_error_that_names_it_or_a_mask(record):
    try:
        mask = region_to_mask(parse_region(record, where="record 9"), **SIZE)
    except ValueError as error:
        assert str(error).startswith("record 9: ")  # noqa: PT017
    else:
        assert mask.shape == (20, 30)


# contract of ragged batches


def test_packing():  # T24
    batch = RegionBatch.from_list([torch.ones(2, 3), None, torch.zeros(0, 3), 2 * torch.ones(1, 3)])
    assert batch.counts == (2, 0, 0, 1)
    assert (batch.batch_size, batch.num_regions) == (4, 3)
    assert batch.rows[:, 0].tolist() == [1, 1, 2]
    assert batch.batch_index().tolist() == [0, 0, 3]
    assert batch.position_index().tolist() == [0, 1, 0]
    assert [tuple(rows.shape) for rows in batch.to_list()] == [(2, 3), (0, 3), (0, 3), (1, 3)]


def test_padding():  # T7
    batch = RegionBatch.from_list([torch.ones(2, 3), None, 2 * torch.ones(1, 3)])
    padded, region_mask = batch.to_padded()
    assert padded[..., 0].tolist() == [[1, 1], [0, 0], [2, 0]]
    assert region_mask.tolist() == [[True, True], [False, False], [True, False]]
    wider, wider_mask = batch.to_padded(max_regions=4)
    assert torch.equal(wider[:, :2], padded)
    assert torch.equal(wider_mask, torch.nn.functional.pad(region_mask, (0, 2)))
    with pytest.raises(ValueError, match="max_regions is 1, but image 0 has 2 regions"):
        batch.to_padded(max_regions=1)


def test_rows_may_be_anything():
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16):
        batch = RegionBatch.from_list([torch.ones(2, 4, 5, dtype=dtype), None])
        padded, region_mask = batch.to_padded()
        assert padded.shape == (2, 2, 4, 5)
        assert padded.dtype == dtype
        assert torch.equal(RegionBatch.from_padded(padded, region_mask).rows, batch.rows)
    labels = RegionBatch(torch.tensor([7, 8, 9]), (1, 2))
    assert labels.to_padded()[0].tolist() == [[7, 0], [8, 9]]


@pytest.mark.parametrize("counts", [(), (0,), (0, 0, 0)])
def test_no_regions_at_all(counts):
    batch = RegionBatch(torch.zeros(0, 3), counts)
    padded, region_mask = batch.to_padded()
    assert padded.shape == (len(counts), 0, 3)
    assert region_mask.shape == (len(counts), 0)
    assert batch.to_padded(max_regions=2)[0].shape == (len(counts), 2, 3)
    assert RegionBatch.from_padded(padded, region_mask).counts == counts
    assert batch.batch_index().shape == batch.position_index().shape == (0,)
    assert len(batch.to_list()) == len(counts)
    nothing = RegionBatch.from_list([None] * len(counts), row_shape=(3,), dtype=torch.float16)
    assert nothing.counts == counts
    assert nothing.rows.shape == (0, 3)
    assert nothing.rows.dtype == torch.float16


def test_errors():
    with pytest.raises(ValueError, match=r"counts \[1, 1\] must be >= 0 and add up to the 3 rows, they add up to 2"):
        RegionBatch(torch.zeros(3, 2), (1, 1))
    with pytest.raises(ValueError, match=r"counts \[4, -1\]"):
        RegionBatch(torch.zeros(3, 2), (4, -1))
    with pytest.raises(ValueError, match=r"image 2 has rows of shape \(5,\), expected \(3,\)"):
        RegionBatch.from_list([torch.zeros(1, 3), None, torch.zeros(1, 5)])
    with pytest.raises(ValueError, match="none of the 2 images has a tensor of regions: row_shape must be given"):
        RegionBatch.from_list([None, None])


def test_with_rows_keeps_the_counts():
    batch = RegionBatch(torch.zeros(3, 2), (1, 2)).with_rows(torch.ones(3, 5))
    assert batch.counts == (1, 2)
    with pytest.raises(ValueError, match="add up to the 2 rows"):
        batch.with_rows(torch.ones(2, 5))


# gradients and properties of ragged batches


def test_gradients_reach_the_rows_and_no_padding():
    rows = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: RegionBatch(r, (1, 0, 2)).to_padded(max_regions=3)[0], rows)
    padded = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    region_mask = torch.tensor([[True, False, True], [False, True, False]])
    assert torch.autograd.gradcheck(lambda p: RegionBatch.from_padded(p, region_mask).rows, padded)
    RegionBatch.from_padded(padded, region_mask).rows.sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad[..., 0], region_mask.double())


def test_gradients_reach_every_image_of_a_list():
    items = [torch.randn(2, 3, requires_grad=True), None, torch.randn(1, 3, requires_grad=True)]
    (RegionBatch.from_list(items).to_padded()[0] ** 2).sum().backward()
    for item in items:
        if item is not None:
            assert item.grad is not None
            assert torch.equal(item.grad, 2 * item.detach())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.integers(0, 4), max_size=6), st.integers(0, 3))
def test_round_trips(counts, extra):
    items = [None if count is None else torch.randn(count, 2, 3) for count in counts]
    batch = RegionBatch.from_list(items, row_shape=(2, 3))
    for item, rows in zip(items, batch.to_list(), strict=True):
        assert torch.equal(rows, torch.zeros(0, 2, 3) if item is None else item)
    padded, region_mask = batch.to_padded(max_regions=max(batch.counts, default=0) + extra)
    assert (padded[~region_mask] == 0).all()
    again = RegionBatch.from_padded(padded, region_mask)
    assert again.counts == batch.counts
    assert torch.equal(again.rows, batch.rows)
    assert torch.equal(padded[batch.batch_index(), batch.position_index()], batch.rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_equals_on_a_cpu():
    rows = torch.randn(5, 3)
    padded, region_mask = RegionBatch(rows.cuda(), (2, 0, 3)).to_padded()
    expected, expected_mask = RegionBatch(rows, (2, 0, 3)).to_padded()
    assert torch.equal(padded.cpu(), expected)
    assert torch.equal(region_mask.cpu(), expected_mask)
    assert RegionBatch.from_padded(padded, region_mask).counts == (2, 0, 3)
