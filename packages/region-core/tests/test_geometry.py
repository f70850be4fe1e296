import math

import pytest
import torch
from region_core import (
    GEOMETRY_DIM,
    GEOMETRY_NAMES,
    GeometryEmbedding,
    box_to_mask,
    masks_to_grid,
    region_geometry,
)

# contract


def test_shape_dtype_and_no_regions():
    assert len(GEOMETRY_NAMES) == GEOMETRY_DIM
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        geometry = region_geometry(torch.rand(3, 4, 5, dtype=dtype), torch.rand(4, 5, dtype=dtype))
        assert geometry.shape == (3, GEOMETRY_DIM)
        assert geometry.dtype == torch.float32
    assert region_geometry(torch.zeros(0, 4, 5)).shape == (0, GEOMETRY_DIM)


def test_grids_must_agree():
    with pytest.raises(ValueError, match=r"got masks \(1, 4, 5\) and depth \(5, 4\): the grids must agree"):
        region_geometry(torch.ones(1, 4, 5), torch.ones(5, 4))
    with pytest.raises(ValueError, match=r"got masks \(1, 0, 5\)"):
        region_geometry(torch.ones(1, 0, 5))


# reference: numbers worked out by hand


def test_values_by_hand():
    mask = torch.zeros(1, 4, 5)
    mask[0, 1, 3], mask[0, 2, 3], mask[0, 2, 4] = 1.0, 1.0, 0.5
    depth = torch.zeros(4, 5)
    depth[1, 3], depth[2, 3], depth[2, 4] = 0.2, 0.4, 0.8
    centre_x = (2 * 3.5 + 0.5 * 4.5) / 2.5 / 5
    centre_y = (1.5 + 1.5 * 2.5) / 2.5 / 4
    z = (0.2 + 0.4 + 0.4) / 2.5
    expected = [centre_x, centre_y, 2 / 5, 2 / 4, 2.5 / 20, z, (centre_x - 0.5) * z, (centre_y - 0.5) * z]
    assert region_geometry(mask, depth)[0].tolist() == pytest.approx(expected)
    assert region_geometry(mask)[0].tolist() == pytest.approx([*expected[:5], 0, 0, 0])


def test_geometry_tells_two_equal_looking_regions_apart():  # T22
    masks = [box_to_mask(box, height=96, width=96) for box in ([0.1, 0.1, 0.3, 0.4], [0.6, 0.5, 0.8, 0.8])]
    left, right = region_geometry(masks_to_grid(torch.stack([torch.from_numpy(mask) for mask in masks]), 24, 24))
    names = dict(zip(GEOMETRY_NAMES, zip(left.tolist(), right.tolist(), strict=True), strict=True))
    assert names["centre_x"] == pytest.approx((0.2, 0.7), abs=0.01)
    assert names["centre_y"] == pytest.approx((0.25, 0.65), abs=0.01)
    assert names["width"] == pytest.approx((0.2, 0.2), abs=0.07)
    assert names["area"] == pytest.approx((0.06, 0.06), abs=0.01)


# invariance


def test_regions_are_independent_and_empty_ones_are_zero():  # T43
    masks = torch.rand(4, 6, 7)
    masks[2] = 0
    depth = torch.rand(6, 7)
    together = region_geometry(masks, depth)
    assert (together[2] == 0).all()
    for mask, row in zip(masks, together, strict=True):
        torch.testing.assert_close(region_geometry(mask[None], depth)[0], row)


def test_cells_without_a_depth_are_left_out_of_the_mean():
    mask = torch.ones(1, 2, 2)
    depth = torch.tensor([[0.25, math.nan], [math.inf, 0.75]])
    assert region_geometry(mask, depth)[0, 5].item() == pytest.approx(0.5)
    unknown = region_geometry(mask, torch.full((2, 2), math.nan))
    assert unknown[0, 5:].tolist() == [0, 0, 0]
    assert torch.equal(unknown[0, :5], region_geometry(mask)[0, :5])


# gradients


def test_gradients_reach_masks_and_depth_and_are_finite_for_empty_masks():
    masks = torch.rand(3, 4, 5)
    masks[1] = 0
    masks.requires_grad_()
    depth = torch.rand(4, 5, requires_grad=True)
    region_geometry(masks, depth).square().sum().backward()
    assert masks.grad is not None
    assert depth.grad is not None
    assert masks.grad.isfinite().all()
    assert (masks.grad[0] != 0).any()
    assert (depth.grad != 0).any()


# properties


def test_mirroring_mirrors_the_centre():
    masks, depth = torch.rand(3, 4, 5), torch.rand(4, 5)
    geometry, mirrored = region_geometry(masks, depth), region_geometry(masks.flip(2), depth.flip(1))
    torch.testing.assert_close(mirrored[:, 0], 1 - geometry[:, 0])
    torch.testing.assert_close(mirrored[:, 6], -geometry[:, 6])
    torch.testing.assert_close(mirrored[:, [1, 2, 3, 4, 5, 7]], geometry[:, [1, 2, 3, 4, 5, 7]])


def test_one_tiny_weight_in_half_precision_is_finite():  # T43
    masks = torch.zeros(1, 27, 27, dtype=torch.float16)
    masks[0, 3, 4] = 6e-8
    geometry = region_geometry(masks, torch.ones(27, 27, dtype=torch.float16))
    assert geometry.isfinite().all()
    assert geometry[0, :2].tolist() == pytest.approx([4.5 / 27, 3.5 / 27])
    assert geometry[0, 5].item() == pytest.approx(1.0)


def test_the_embedding_tells_near_places_apart_and_has_the_size_of_a_normalised_feature():  # T22
    torch.manual_seed(0)
    embedding = GeometryEmbedding(64)
    places = torch.zeros(3, GEOMETRY_DIM)
    places[1, 0] = 1 / 32
    places[2, 0] = 0.9
    vectors = embedding(places)
    assert vectors.shape == (3, 64)
    torch.testing.assert_close(vectors.square().mean(1), torch.ones(3), rtol=1e-2, atol=0)
    near, far = (vectors[0] - vectors[1]).norm(), (vectors[0] - vectors[2]).norm()
    assert 0.1 < near < far
    assert embedding(places[:0]).shape == (0, 64)


def test_the_embedding_keeps_nothing_but_parameters_and_takes_half_precision():
    embedding = GeometryEmbedding(8)
    assert not list(embedding.buffers())
    half = embedding.bfloat16()(torch.rand(2, GEOMETRY_DIM))
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
