import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_region_loss import extract_region_features
from roi_region_loss.features import _pack

GRID = (3, 5)
PREFIX = 1
NUM_TOKENS = PREFIX + GRID[0] * GRID[1]


def random_tokens(batch_size=2, dim=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, NUM_TOKENS, dim, generator=generator, dtype=torch.float64).to(dtype)


BOXES = [
    torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.1, 0.2, 0.45, 0.7]], dtype=torch.float64),
    torch.tensor([[0.3, 0.0, 0.9, 0.95]], dtype=torch.float64),
]


def extract(tokens, boxes, **options):
    return extract_region_features(tokens, boxes, grid=GRID, num_prefix_tokens=PREFIX, **options)


# Contract


def test_a_list_in_gives_a_list_out():
    features = extract(random_tokens(), BOXES)
    assert [tuple(of_image.shape) for of_image in features] == [(2, 4), (1, 4)]
    bins = extract(random_tokens(), BOXES, output_size=2)
    assert [tuple(of_image.shape) for of_image in bins] == [(2, 4, 4), (1, 4, 4)]


def test_one_box_of_one_image_keeps_its_dimensions():  # trap: .squeeze()
    box = torch.tensor([[0.1, 0.2, 0.5, 0.9]], dtype=torch.float64)
    assert extract(random_tokens(1), [box])[0].shape == (1, 4)
    assert extract(random_tokens(1, dim=1), box, owner=torch.tensor([0])).shape == (1, 1)


def test_packed_in_gives_packed_out_in_the_order_given():
    expected = extract(random_tokens(), BOXES, output_size=2)
    packed = torch.cat([BOXES[1], BOXES[0]])
    features = extract(random_tokens(), packed, owner=torch.tensor([1, 0, 0]), output_size=2)
    torch.testing.assert_close(features, torch.cat([expected[1], expected[0]]))


def test_sequences_that_do_not_fit_the_grid_are_errors():  # traps: CLS in the patch sequence, wrong patch comment
    tokens = torch.zeros(1, 257, 4)
    boxes = [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
    with pytest.raises(ValueError, match="got 257 tokens, expected 256"):
        extract_region_features(tokens, boxes, grid=(16, 16), num_prefix_tokens=0)
    with pytest.raises(ValueError, match="got 257 tokens, expected 197"):
        extract_region_features(tokens, boxes, grid=(14, 14), num_prefix_tokens=1)
    assert extract_region_features(tokens, boxes, grid=(16, 16), num_prefix_tokens=1)[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([10.0, 20.0, 120.0, 200.0], "looks like pixel boxes"),  # trap: not normalised
        ([0.6, 0.2, 0.4, 0.9], "expected x0 <= x1"),  # trap: inverted
        ([0.1, float("nan"), 0.4, 0.9], "expected finite numbers"),  # trap: NaN box
    ],
)
def test_boxes_that_roi_align_would_misread_are_errors(box, message):
    with pytest.raises(ValueError, match=message):
        extract(random_tokens(1), [torch.tensor([box], dtype=torch.float64)])


def test_boxes_and_images_that_do_not_match_are_errors():
    with pytest.raises(ValueError, match="got 1 tensors for 2 images"):
        extract(random_tokens(), BOXES[:1])
    with pytest.raises(ValueError, match=r"packed boxes .* owner None"):
        extract(random_tokens(), torch.cat(BOXES))
    with pytest.raises(ValueError, match=r"owner must index the 2 images of the batch, got \[0, 0, 2\]"):
        extract(random_tokens(), torch.cat(BOXES), owner=torch.tensor([0, 0, 2]))
    with pytest.raises(ValueError, match="output_size must be at least 1"):
        extract(random_tokens(), BOXES, output_size=0)


def test_an_image_without_boxes_is_zero_rows():  # trap: [] for images without annotation
    tokens = random_tokens().requires_grad_()
    features = extract(tokens, [torch.zeros(0, 4), torch.zeros(0, 4)])
    assert [tuple(of_image.shape) for of_image in features] == [(0, 4), (0, 4)]
    torch.cat(features).sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad.any()
    with pytest.raises(ValueError, match=r"boxes of image 0 have shape \(0,\), expected \(regions, 4\); no boxes is"):
        _pack([torch.tensor([])], None, random_tokens(1))  # called directly: the types of the whole forbid it here


def test_a_box_without_area_gives_zeros():  # trap: degenerate
    assert not extract(random_tokens(1), [torch.tensor([[0.4, 0.2, 0.4, 0.9]])])[0].any()


# Reference


def plain_roi_align(tokens, box, output_size):
    """RoIAlign of one box with adaptive sampling, as loops."""
    height, width = GRID
    cells = tokens[PREFIX:].reshape(height, width, -1)
    x0, y0, x1, y1 = (float(number) for number in box * torch.tensor([width, height, width, height]))
    bin_width, bin_height = (x1 - x0) / output_size, (y1 - y0) / output_size
    samples_x, samples_y = math.ceil(bin_width), math.ceil(bin_height)
    bins = []
    for row in range(output_size):
        for column in range(output_size):
            total = torch.zeros(cells.shape[-1], dtype=cells.dtype)
            for sample_y in range(samples_y):
                for sample_x in range(samples_x):
                    # Edges to centres of cells: half a cell less (aligned=True).
                    x = x0 + (column + (sample_x + 0.5) / samples_x) * bin_width - 0.5
                    y = y0 + (row + (sample_y + 0.5) / samples_y) * bin_height - 0.5
                    total = total + bilinear(cells, min(max(x, 0.0), width - 1), min(max(y, 0.0), height - 1))
            bins.append(total / (samples_x * samples_y))
    return torch.stack(bins)


def bilinear(cells, x, y):
    left, top = int(x), int(y)
    right, bottom = min(left + 1, cells.shape[1] - 1), min(top + 1, cells.shape[0] - 1)
    upper = cells[top, left] * (1 - x + left) + cells[top, right] * (x - left)
    lower = cells[bottom, left] * (1 - x + left) + cells[bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


@pytest.mark.parametrize("output_size", [2, 3])
def test_pooling_equals_plain_loops_on_a_grid_that_is_not_square(output_size):  # trap: non-square grids
    tokens = random_tokens()
    features = extract(tokens, BOXES, output_size=output_size)
    for image, boxes in enumerate(BOXES):
        for region, box in enumerate(boxes):
            torch.testing.assert_close(features[image][region], plain_roi_align(tokens[image], box, output_size))


def test_the_box_of_the_whole_image_gives_the_mean_of_the_grid():
    tokens = random_tokens()
    features = extract(tokens, [torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)] * 2)
    torch.testing.assert_close(torch.cat(features), tokens[:, PREFIX:].mean(dim=1))


def test_the_prefix_has_no_influence():
    tokens = random_tokens()
    changed = tokens.clone()
    changed[:, :PREFIX] = 100.0
    torch.testing.assert_close(extract(tokens, BOXES), extract(changed, BOXES))


# Invariance


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.sampled_from([1, 2]), st.integers(0, 1000))
def test_a_batch_equals_one_image_at_a_time(counts, output_size, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(len(counts), seed=seed)
    low = 0.6 * torch.rand(sum(counts), 2, generator=generator, dtype=torch.float64)
    packed = torch.cat([low, low + 0.05 + 0.3 * torch.rand(sum(counts), 2, generator=generator)], dim=1)
    boxes = list(packed.split(counts))
    together = extract(tokens, boxes, output_size=output_size)
    for image in range(len(counts)):
        (alone,) = extract(tokens[image : image + 1], [boxes[image]], output_size=output_size)
        torch.testing.assert_close(together[image], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_it_came_and_near_float32(dtype):  # trap: fp16/bf16
    tokens = random_tokens(dtype=dtype)
    expected = extract(tokens.float(), BOXES)
    for got, wanted in zip(extract(tokens, BOXES), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), wanted, atol=1e-2, rtol=1e-2)


def test_autocast_changes_nothing():  # trap: fp16/bf16
    tokens = random_tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = extract(tokens, BOXES)
    torch.testing.assert_close(under_autocast, extract(tokens, BOXES))


# Gradients


def test_gradients():
    tokens = random_tokens().requires_grad_()
    assert torch.autograd.gradcheck(lambda tokens: torch.cat(extract(tokens, BOXES, output_size=2)), (tokens,))


def test_the_gradient_reaches_only_the_cells_under_the_box():
    tokens = random_tokens(1).requires_grad_()
    extract(tokens, [torch.tensor([[0.0, 0.0, 0.2, 1 / 3]], dtype=torch.float64)])[0].sum().backward()
    assert tokens.grad is not None
    reached = tokens.grad[0].abs().sum(dim=1)
    assert reached[PREFIX] > 0
    assert reached.sum() == reached[PREFIX]
