import math

import pytest
import torch
from deformable_projector import choose_backend, multi_scale_deformable_attention
from deformable_projector import sampling as sampling_module
from hypothesis import given, settings
from hypothesis import strategies as st

BACKENDS = ("reference", "bags")
SHAPES = [(3, 5), (2, 2), (1, 1)]


def case(batch=2, queries=3, heads=2, dim=4, points=2, shapes=SHAPES, dtype=torch.float64, spread=0.3):
    """Random inputs, with points up to `spread` outside the maps."""
    positions = sum(height * width for height, width in shapes)
    value = torch.randn(batch, positions, heads, dim, dtype=dtype)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, dtype=dtype) * (1 + 2 * spread) - spread
    weights = torch.rand(batch, queries, heads, len(shapes), points, dtype=dtype)
    return value, locations, weights


def by_hand(value, shapes, locations, weights):
    """One corner of one point at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b, q, h, level, p in torch.cartesian_prod(*(torch.arange(n) for n in (batch, queries, heads, levels, points))):
        height, width = shapes[level]
        start = sum(rows * columns for rows, columns in shapes[:level])
        x = locations[b, q, h, level, p, 0].item() * width - 0.5
        y = locations[b, q, h, level, p, 1].item() * height - 0.5
        for column in (math.floor(x), math.floor(x) + 1):
            for row in (math.floor(y), math.floor(y) + 1):
                if 0 <= column < width and 0 <= row < height:
                    share = (1 - abs(x - column)) * (1 - abs(y - row))
                    cell = value[b, start + row * width + column, h]
                    out[b, q, h] += weights[b, q, h, level, p] * share * cell
    return out.flatten(2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_a_plain_loop(backend):
    value, locations, weights = case()
    result = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(result, by_hand(value, SHAPES, locations, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_invalid_positions_read_zeros_whatever_is_there(backend):
    value, locations, weights = case()
    valid = torch.rand(value.shape[:2]) < 0.6
    leaves = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    spoilt = leaves[0].masked_fill(~valid[:, :, None, None], math.nan).detach().requires_grad_()
    zeros = value.masked_fill(~valid[:, :, None, None], 0.0).requires_grad_()
    expected = multi_scale_deformable_attention(zeros, SHAPES, *leaves[1:], backend=backend)
    wanted = torch.autograd.grad(expected.sin().sum(), [zeros, *leaves[1:]])
    found = multi_scale_deformable_attention(spoilt, SHAPES, *leaves[1:], valid=valid, backend=backend)
    gradients = torch.autograd.grad(found.sin().sum(), [spoilt, *leaves[1:]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = (wanted[0].masked_fill(~valid[:, :, None, None], 0.0), *wanted[1:])
    for own, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_when_every_position_is_valid_nothing_changes(backend):
    value, locations, weights = case()
    plain, masked = (
        multi_scale_deformable_attention(value, SHAPES, locations, weights, valid=valid, backend=backend)
        for valid in (None, torch.ones(value.shape[:2], dtype=torch.bool))
    )
    assert torch.equal(plain, masked)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("place", [-1e30, -1.0, -1 / 6, -1e-9, 0.0, 1 / 6, 0.5, 1.0, 1 + 1 / 6, 2.0, 1e30])
def test_points_on_at_and_outside_the_border(backend, place):
    """One row of three cells: half a cell outside the border counts half, a whole cell nothing."""
    value = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).view(1, 3, 1, 1)
    locations = torch.tensor([place, 0.5], dtype=torch.float64).view(1, 1, 1, 1, 1, 2)
    result = multi_scale_deformable_attention(
        value, [(1, 3)], locations, torch.ones(1, 1, 1, 1, 1).double(), backend=backend
    )
    expected = {-1 / 6: 0.0, -1e-9: 0.5, 0.0: 0.5, 1 / 6: 1.0, 0.5: 2.0, 1.0: 2.0}.get(place, 0.0)
    assert result.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_x_is_the_column_and_comes_first(backend):
    value = torch.arange(6.0).view(1, 6, 1, 1)  # two rows of three
    locations = torch.tensor([5 / 6, 0.25]).view(1, 1, 1, 1, 1, 2)
    result = multi_scale_deformable_attention(value, [(2, 3)], locations, torch.ones(1, 1, 1, 1, 1), backend=backend)
    assert result.item() == pytest.approx(2.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_values_locations_and_weights(backend):
    inputs = [tensor.requires_grad_() for tensor in case(queries=2)]
    torch.autograd.gradcheck(
        lambda value, locations, weights: multi_scale_deformable_attention(
            value, SHAPES, locations, weights, backend=backend
        ),
        inputs,
    )


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1)])
def test_backends_give_the_same_gradients_whichever_are_wanted(wanted):
    gradients = []
    inputs = case(queries=5)
    for backend in BACKENDS:
        tensors = [tensor.clone().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
        result = multi_scale_deformable_attention(tensors[0], SHAPES, *tensors[1:], backend=backend)
        result.sin().sum().backward()
        gradients.append([tensors[index].grad for index in wanted])
    for one, other in zip(*gradients, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, other)


def test_bags_can_be_differentiated_once_only_and_say_so():
    value, locations, weights = case()
    result = multi_scale_deformable_attention(value.requires_grad_(), SHAPES, locations, weights, backend="bags")
    (gradient,) = torch.autograd.grad(result.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_may_be_a_tensor(backend):
    value, locations, weights = case()
    expected = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    shapes = torch.tensor(SHAPES)
    assert torch.equal(multi_scale_deformable_attention(value, shapes, locations, weights, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_nothing_in_nothing_out_with_gradients(backend, empty):
    value, locations, weights = case(**{empty: 0})
    result = multi_scale_deformable_attention(value.requires_grad_(), SHAPES, locations, weights, backend=backend)
    assert result.shape == (value.shape[0], locations.shape[1], 8)
    result.sum().backward()
    assert not value.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_values_are_sampled_in_float32(backend):
    """Trap: half-precision grid_sample on the CPU is garbage, and coordinates in bfloat16 are off by cells."""
    value, locations, weights = case(shapes=[(64, 64)], queries=16, dtype=torch.float32, dim=8)
    value = value.bfloat16()
    result = multi_scale_deformable_attention(value, [(64, 64)], locations, weights, backend=backend)
    expected = by_hand(value.double(), [(64, 64)], locations.double(), weights.double())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_change_a_bit(backend):
    value, locations, weights = case(shapes=[(16, 16)], dtype=torch.float32)
    plain = multi_scale_deformable_attention(value, [(16, 16)], locations, weights, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        result = multi_scale_deformable_attention(value, [(16, 16)], locations, weights, backend=backend)
    assert torch.equal(result, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_need_not_be_contiguous(backend):
    value, locations, weights = case()
    strided = value.transpose(1, 3).contiguous().transpose(1, 3)
    expected = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    torch.testing.assert_close(
        multi_scale_deformable_attention(strided, SHAPES, locations, weights, backend=backend), expected
    )


def test_a_nan_location_gives_nan_and_no_crash():
    value, locations, weights = case(dtype=torch.float32)
    locations[0, 0] = math.nan
    result = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend="bags")
    assert result[0, 0].isnan().all()
    assert result[0, 1:].isfinite().all()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 2),
    queries=st.integers(0, 4),
    heads=st.integers(1, 3),
    dim=st.integers(1, 5),
    points=st.integers(1, 3),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_backends_agree_and_invent_nothing(batch, queries, heads, dim, points, shapes, seed):
    torch.manual_seed(seed)
    value, locations, weights = case(batch, queries, heads, dim, points, shapes, spread=0.6)
    one, other = (
        multi_scale_deformable_attention(value, shapes, locations, weights, backend=backend) for backend in BACKENDS
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    # Constant values give at most the sum of the weights: borders only take away.
    ones = multi_scale_deformable_attention(torch.ones_like(value), shapes, locations, weights, backend="bags")
    most = weights.sum(dim=(3, 4)).repeat_interleave(dim, dim=2)
    assert bool((ones <= most + 1e-9).all())
    assert bool((ones >= -1e-9).all())


def test_levels_must_cover_the_values_and_match_the_locations():
    value, locations, weights = case()
    with pytest.raises(ValueError, match="hold 19 positions, value has 20"):
        multi_scale_deformable_attention(value, [(3, 5), (1, 3), (1, 1)], locations, weights)
    with pytest.raises(ValueError, match="3 levels, spatial_shapes 2"):
        multi_scale_deformable_attention(value, [(3, 5), (1, 5)], locations, weights)


def test_the_backend_goes_by_size(monkeypatch):
    small, large = case(dim=32), case(batch=1, queries=64, heads=8, dim=32, shapes=[(32, 32)])
    assert choose_backend(*small[:2]) == "reference"
    assert choose_backend(*large[:2]) == "bags"
    assert choose_backend(*case(batch=1, queries=2048, heads=8, dim=8, shapes=[(32, 32)])[:2]) == "reference"
    chosen, sample_bags = [], sampling_module.sample_bags
    monkeypatch.setattr(sampling_module, "sample_bags", lambda *inputs: chosen.append(1) or sample_bags(*inputs))
    multi_scale_deformable_attention(large[0], [(32, 32)], *large[1:])
    multi_scale_deformable_attention(small[0], SHAPES, *small[1:])
    assert chosen == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_cuda_as_on_the_cpu(backend):
    inputs = case(dtype=torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [tensor.to(device, copy=True).requires_grad_() for tensor in inputs]
        result = multi_scale_deformable_attention(leaves[0], SHAPES, *leaves[1:], backend=backend)
        result.sin().sum().backward()
        results.append([tensor.cpu() for tensor in (result, *(leaf.grad for leaf in leaves))])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-4, atol=1e-4)
