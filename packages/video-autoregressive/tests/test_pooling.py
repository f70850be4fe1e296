import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from video_autoregressive.pooling import pooled_grid, resample_to_grid, spatial_pool

MODES = ["average", "max", "bilinear"]

# grid, stride, tokens of average and max, of bilinear, rounded up
COUNTS = [
    ((27, 27), 2, 169, 196, 196),
    ((27, 27), 4, 36, 49, 49),
    ((27, 27), 8, 9, 16, 16),
    ((24, 24), 2, 144, 144, 144),
    ((24, 24), 4, 36, 36, 36),
    ((16, 16), 2, 64, 64, 64),
    ((16, 16), 3, 25, 36, 36),
    ((37, 37), 2, 324, 361, 361),
    ((5, 8), 2, 8, 12, 12),
]


def windows(features, grid, stride, reduce, ceil_mode=False):
    """Pooling by hand: one window after another."""
    height, width = grid
    round_size = math.ceil if ceil_mode else math.floor
    maps = features.view(len(features), height, width, -1)
    pooled = [
        reduce(maps[:, stride * row : stride * (row + 1), stride * column : stride * (column + 1)].flatten(1, 2))
        for row in range(round_size(height / stride))
        for column in range(round_size(width / stride))
    ]
    return torch.stack(pooled, dim=1)


def copied_bilinear(features, grid, stride):
    """LLaVA-NeXT's way: copy into a channel-first map, interpolate, copy back."""
    height, width = grid
    maps = features.view(len(features), height, width, -1).permute(0, 3, 1, 2).contiguous()
    maps = F.interpolate(maps, size=[math.ceil(height / stride), math.ceil(width / stride)], mode="bilinear")
    return maps.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def mean(window):
    return window.mean(1)


def largest(window):
    return window.amax(1)


@pytest.mark.parametrize(("grid", "stride", "floor", "bilinear", "ceil"), COUNTS)
def test_token_counts(grid, stride, floor, bilinear, ceil):
    features = torch.randn(2, grid[0] * grid[1], 3)
    for mode, ceil_mode, count in (
        ("average", False, floor),
        ("max", False, floor),
        ("bilinear", False, bilinear),
        ("average", True, ceil),
        ("max", True, ceil),
        ("bilinear", True, ceil),
    ):
        assert math.prod(pooled_grid(grid, stride, mode, ceil_mode)) == count
        assert spatial_pool(features, grid, stride, mode, ceil_mode).shape == (2, count, 3)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("mode", "reduce"), [("average", mean), ("max", largest)])
@pytest.mark.parametrize(("grid", "stride"), [((7, 5), 2), ((5, 8), 3), ((4, 4), 4), ((6, 3), 2)])
def test_average_and_max_are_those_of_every_window(grid, stride, mode, reduce, ceil_mode):
    """With `ceil_mode` the last windows are smaller, and no padding is counted in their averages."""
    features = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    pooled = spatial_pool(features, grid, stride, mode, ceil_mode)
    torch.testing.assert_close(pooled, windows(features, grid, stride, reduce, ceil_mode), rtol=0, atol=1e-14)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("grid", "stride"), [((27, 27), 2), ((27, 27), 4), ((24, 24), 2), ((7, 10), 3), ((1, 5), 2)])
def test_bilinear_without_copies_is_that_with_copies_to_the_bit(grid, stride, dtype, frames):
    features = torch.randn(frames, grid[0] * grid[1], 40).to(dtype)
    assert torch.equal(spatial_pool(features, grid, stride, "bilinear"), copied_bilinear(features, grid, stride))


@pytest.mark.parametrize(("stride", "read"), [(2, 729), (4, 169), (8, 64)])
def test_bilinear_reads_only_some_patches_at_larger_strides(stride, read):
    features = torch.zeros(1, 729, 1, requires_grad=True)
    spatial_pool(features, (27, 27), stride, "bilinear").sum().backward()
    assert int((features.grad != 0).sum()) == read


@pytest.mark.parametrize(("ceil_mode", "read"), [(False, 676), (True, 729)])
def test_rounding_down_drops_the_last_row_and_column(ceil_mode, read):
    features = torch.zeros(1, 729, 1, requires_grad=True)
    spatial_pool(features, (27, 27), 2, "average", ceil_mode).sum().backward()
    assert int((features.grad != 0).sum()) == read


@pytest.mark.parametrize("mode", MODES)
def test_stride_one_changes_nothing(mode):
    features = torch.randn(2, 12, 3)
    assert torch.equal(spatial_pool(features, (3, 4), 1, mode), features)


@pytest.mark.parametrize("mode", MODES)
def test_no_frames(mode):
    assert spatial_pool(torch.zeros(0, 12, 3), (3, 4), 2, mode).shape[0] == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_stays(mode, dtype):
    assert spatial_pool(torch.randn(2, 12, 3).to(dtype), (3, 4), 2, mode).dtype == dtype


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_its_frames_one_by_one(mode):
    features = torch.randn(5, 35, 6)
    alone = torch.cat([spatial_pool(frame[None], (5, 7), 2, mode) for frame in features])
    assert torch.equal(spatial_pool(features, (5, 7), 2, mode), alone)


@pytest.mark.parametrize("mode", MODES)
def test_gradients(mode):
    features = torch.randn(2, 15, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: spatial_pool(rows, (3, 5), 2, mode, ceil_mode=True), features)


@pytest.mark.parametrize("patches", [577, 581, 575])
def test_tokens_that_are_no_patches_are_refused(patches):
    with pytest.raises(ValueError, match=rf"got {patches} patches.*expected 576.*class and register tokens"):
        spatial_pool(torch.zeros(1, patches, 2), (24, 24))
    with pytest.raises(ValueError, match=rf"got {patches} patches"):
        resample_to_grid(torch.zeros(1, patches, 2), (24, 24), (12, 12))


@pytest.mark.parametrize(
    ("grid", "stride", "message"),
    [
        ((3, 8), 4, "no window of stride 4 fits a grid of 3 x 8"),
        ((4, 4), 0, "got stride 0"),
        ((0, 4), 1, "grid of 0 x 4"),
    ],
)
def test_windows_must_fit(grid, stride, message):
    with pytest.raises(ValueError, match=message):
        pooled_grid(grid, stride, "average")


def test_with_ceil_mode_a_window_may_be_larger_than_the_grid():
    features = torch.randn(1, 6, 2)
    torch.testing.assert_close(spatial_pool(features, (2, 3), 4, "average", True), features.mean(1, keepdim=True))


# resample_to_grid


@pytest.mark.parametrize(
    ("grid", "to_grid", "stride"),
    [((27, 27), (14, 14), 2), ((27, 27), (7, 7), 4), ((6, 8), (3, 4), 2), ((5, 3), (1, 1), 5)],
)
def test_a_whole_stride_is_pooling_that_counts_no_padding(grid, to_grid, stride):
    features = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    expected = windows(features, grid, stride, mean, ceil_mode=True)
    torch.testing.assert_close(resample_to_grid(features, grid, to_grid), expected, rtol=0, atol=1e-14)


def test_the_same_grid_changes_nothing():
    features = torch.randn(2, 12, 3)
    assert resample_to_grid(features, (3, 4), (3, 4)) is features


def test_other_sizes_share_patches_between_windows():
    """Three patches on two: the middle one belongs half to each. Numbers by hand."""
    features = torch.tensor([3.0, 6.0, 9.0]).view(1, 3, 1)
    expected = torch.tensor([(3 + 0.5 * 6) / 1.5, (0.5 * 6 + 9) / 1.5]).view(1, 2, 1)
    torch.testing.assert_close(resample_to_grid(features.repeat(1, 4, 1), (4, 3), (4, 2)), expected.repeat(1, 4, 1))


def test_a_finer_grid_repeats_patches():
    features = torch.tensor([1.0, 2.0]).view(1, 2, 1)
    assert resample_to_grid(features, (1, 2), (2, 4)).flatten().tolist() == [1, 1, 2, 2, 1, 1, 2, 2]


@settings(max_examples=50, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), to_height=st.integers(1, 9), to_width=st.integers(1, 9))
def test_every_patch_counts_and_constants_stay(height, width, to_height, to_width):
    features = torch.ones(1, height * width, 1, dtype=torch.float64, requires_grad=True)
    resampled = resample_to_grid(features, (height, width), (to_height, to_width))
    assert resampled.shape == (1, to_height * to_width, 1)
    torch.testing.assert_close(resampled, torch.ones_like(resampled))
    resampled.sum().backward()
    assert (features.grad > 0).all()


def test_gradients_of_resampling():
    features = torch.randn(1, 15, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: resample_to_grid(rows, (3, 5), (2, 4)), features)
