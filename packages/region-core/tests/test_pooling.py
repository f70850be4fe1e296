import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_core import mask_pool, masks_to_grid


def slow_pool(feature_map, masks):
    """Plain version: one region and one channel after the other, in float64."""
    rows = []
    for features, image_masks in zip(feature_map.double(), masks, strict=True):
        for mask in [] if image_masks is None else image_masks.double():
            rows.append(torch.stack([(plane * mask).sum() / mask.sum() for plane in features]))
    return torch.stack(rows)


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(3, 5, 4, 6, generator=generator).to(dtype)
    masks = [torch.rand(2, 4, 6, generator=generator), None, torch.rand(3, 4, 6, generator=generator)]
    return feature_map, masks


def test_shapes_and_counts():
    pooled = mask_pool(*example())
    assert pooled.rows.shape == (5, 5)
    assert pooled.counts == (2, 0, 3)
    assert pooled.empty.tolist() == [False] * 5


@pytest.mark.parametrize("masks", [[None, None, None], [torch.zeros(0, 9, 9, dtype=torch.bool)] * 3])
def test_no_regions_at_all(masks):
    pooled = mask_pool(example()[0].requires_grad_(), masks)
    assert pooled.rows.shape == (0, 5)
    assert pooled.empty.shape == (0,)
    assert pooled.rows.requires_grad


def test_wrong_number_of_images():
    with pytest.raises(ValueError, match="each of 3 images, got 2"):
        mask_pool(example()[0], [None, None])


def test_equals_the_plain_version():
    feature_map, masks = example(torch.float64)
    masks = [None if mask is None else mask.double() for mask in masks]
    torch.testing.assert_close(
        mask_pool(feature_map, masks).rows, slow_pool(feature_map, masks), rtol=1e-12, atol=1e-12
    )


def test_masks_of_another_size_go_to_the_grid_by_area():
    feature_map, _ = example()
    masks = [torch.rand(2, 37, 23) > 0.5, torch.rand(1, 3, 2), None]
    on_grid = [None if mask is None else masks_to_grid(mask, 4, 6) for mask in masks]
    assert torch.equal(mask_pool(feature_map, masks).rows, mask_pool(feature_map, on_grid).rows)


def test_bool_and_integer_masks_agree():
    feature_map, _ = example()
    inside = torch.rand(2, 4, 6) > 0.5
    expected = mask_pool(feature_map, [inside, None, None]).rows
    for mask in (inside.to(torch.uint8) * 255, inside.long(), inside.float()):
        assert torch.equal(mask_pool(feature_map, [mask, None, None]).rows, expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_empty_tiny_and_full_masks_are_finite_in_every_dtype(dtype, autocast):  # T43
    masks = torch.zeros(4, 384, 384)
    masks[1, 200, 17] = 1
    masks[2] = 1
    masks[3, 0, 0] = 1e-20
    feature_map = (torch.randn(1, 8, 27, 27) * 1000).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        pooled = mask_pool(feature_map, [masks])
    pooled.rows.float().pow(2).sum().backward()
    assert pooled.rows.dtype == dtype
    assert pooled.rows.isfinite().all()
    assert pooled.empty.tolist() == [True, False, False, False]
    assert torch.equal(pooled.rows[0], torch.zeros(8, dtype=dtype))
    torch.testing.assert_close(pooled.rows[1], feature_map[0, :, 200 * 27 // 384, 17 * 27 // 384])
    torch.testing.assert_close(pooled.rows[2].float(), feature_map[0].float().mean((1, 2)), rtol=1e-2, atol=1e-1)
    assert feature_map.grad is not None


def test_a_small_object_keeps_its_feature_wherever_it_is():  # T44
    """6 px of 384 on a 27 x 27 grid: bilinear sampling misses such a box three times out of four."""
    features = torch.arange(27 * 27, dtype=torch.float32).reshape(1, 1, 27, 27)
    corners = list(range(0, 378, 9))
    masks = torch.zeros(len(corners), 384, 384, dtype=torch.bool)
    for row, corner in zip(masks, corners, strict=True):
        row[corner : corner + 6, 100:106] = True
    pooled = mask_pool(features, [masks])
    assert not pooled.empty.any()
    centre_rows = (torch.tensor(corners) + 3) * 27 / 384
    # The feature of a cell is 27 x row + column; the pooled row is within one cell of the object's centre.
    assert ((pooled.rows[:, 0] / 27).floor() - centre_rows.floor()).abs().max() <= 1


@pytest.mark.parametrize("side", [27, 54, 108])
def test_sizes_that_do_not_divide(side):  # T45
    masks = torch.zeros(1, 392, 392)
    masks[0, :196] = 1
    features = torch.zeros(1, 1, side, side)
    features[:, :, : side // 2] = 1
    expected = 1.0 if side % 2 == 0 else (side // 2) / (side / 2)
    torch.testing.assert_close(mask_pool(features, [masks]).rows, torch.tensor([[expected]]))


def test_batch_equals_one_by_one():
    feature_map, masks = example()
    singles = [mask_pool(feature_map[i : i + 1], [masks[i]]).rows for i in range(3)]
    torch.testing.assert_close(mask_pool(feature_map, masks).rows, torch.cat(singles))


def test_gradcheck_in_features_and_soft_masks():
    feature_map = torch.randn(2, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    soft = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, m: mask_pool(f, [None, m]).rows, (feature_map, soft))


def test_an_empty_mask_spoils_no_gradient():  # T43
    feature_map, masks = example()
    soft = torch.rand(3, 4, 6)
    soft[1] = 0
    soft.requires_grad_()
    feature_map.requires_grad_()
    mask_pool(feature_map, [masks[0], None, soft]).rows.square().sum().backward()
    assert feature_map.grad is not None
    assert soft.grad is not None
    assert feature_map.grad.isfinite().all()
    assert soft.grad.isfinite().all()
    assert torch.equal(soft.grad[1], torch.zeros(4, 6))
    assert soft.grad[0].abs().sum() > 0


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 12), st.integers(1, 12))
def test_pooling_a_constant_map_gives_the_constant(counts, height, width):
    masks = [None if count == 0 else torch.ones(count, height, width, dtype=torch.bool) for count in counts]
    pooled = mask_pool(torch.full((len(counts), 2, 5, 3), 4.0), masks)
    assert pooled.counts == tuple(counts)
    torch.testing.assert_close(pooled.rows, torch.full((sum(counts), 2), 4.0))
