import pytest
import torch
from roi_region_loss import RegionContrastiveLoss, RegionLossConfig, compute_region_loss, extract_region_features

GRID = (4, 4)


def tokens(seed, batch_size=2, dtype=torch.float32):
    return torch.randn(batch_size, 17, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


A, B, C = [0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.5, 0.0, 1.0, 0.4]


def compute(reference, target, ref_boxes, target_boxes, **options):
    return compute_region_loss(reference, target, ref_boxes, target_boxes, grid=GRID, num_prefix_tokens=1, **options)


def test_the_smoke_test_of_the_guide():
    reference, target = torch.randn(2, 257, 32, requires_grad=True), torch.randn(2, 257, 32)
    ref_boxes, target_boxes = [boxes(A, B), boxes(C)], [boxes(B, C), boxes(A)]
    loss = compute_region_loss(reference, target, ref_boxes, target_boxes, grid=(16, 16), num_prefix_tokens=1)
    loss.backward()
    assert loss.shape == ()
    assert loss > 0
    assert reference.grad is not None
    assert reference.grad.any()


def test_it_is_the_mean_of_the_loss_over_the_pooled_regions():
    loss = RegionContrastiveLoss()
    ref_boxes, target_boxes = [boxes(A, B), boxes(C)], [boxes(B, C), boxes(A)]
    expected = loss(
        torch.cat(extract_region_features(tokens(0), ref_boxes, grid=GRID, num_prefix_tokens=1)),
        torch.cat(extract_region_features(tokens(1), target_boxes, grid=GRID, num_prefix_tokens=1)),
        reference_boxes=torch.cat(ref_boxes),
        target_boxes=torch.cat(target_boxes),
        pair_owner=torch.tensor([0, 0, 1]),
        reference_ids=torch.tensor([5, 6]),
        target_ids=torch.tensor([6, 9]),
    ).mean
    ids = {"reference_ids": torch.tensor([5, 6]), "target_ids": torch.tensor([6, 9])}
    torch.testing.assert_close(compute(tokens(0), tokens(1), ref_boxes, target_boxes, loss=loss, **ids), expected)
    assert not torch.isclose(compute(tokens(0), tokens(1), ref_boxes, target_boxes, loss=loss), expected)


def test_boxes_without_a_partner_are_left_out():  # trap: ref/target counts differ
    uneven = compute(tokens(0), tokens(1), [boxes(A, B, C), boxes(C)], [boxes(B), boxes(A, B)])
    even = compute(tokens(0), tokens(1), [boxes(A), boxes(C)], [boxes(B), boxes(A)])
    torch.testing.assert_close(uneven, even)


def test_degenerate_pairs_and_those_over_the_cap_are_left_out():  # trap: degenerate
    thin = [0.0, 0.0, 0.1, 1.0]
    expected = compute(tokens(0), tokens(1), [boxes(A), boxes(C)], [boxes(B), boxes(A)])
    thin_first = compute(tokens(0), tokens(1), [boxes(thin, A), boxes(C, B)], [boxes(C, B), boxes(A, thin)])
    torch.testing.assert_close(thin_first, expected)
    one = RegionContrastiveLoss(RegionLossConfig(max_pairs_per_triplet=1))
    capped = compute(tokens(0), tokens(1), [boxes(A, B), boxes(C)], [boxes(B, C), boxes(A)], loss=one)
    torch.testing.assert_close(capped, expected)


def test_no_pairs_give_a_zero_with_a_graph():  # trap: [] for images without annotation
    reference = tokens(0).requires_grad_()
    loss = compute(reference, tokens(1), [boxes(), boxes(A)], [boxes(B), boxes()])
    loss.backward()
    assert loss.item() == 0.0
    assert reference.grad is not None
    assert not reference.grad.any()


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([10.0, 20.0, 120.0, 200.0], "looks like pixel boxes"),
        ([0.6, 0.2, 0.4, 0.3], "expected x0 <= x1"),
        ([float("nan"), 0.2, 0.4, 0.3], "expected finite numbers"),
    ],
)
def test_bad_boxes_are_errors(box, message):  # traps: pixels, inverted, NaN
    with pytest.raises(ValueError, match=f"compute_region_loss.*box 2 .*{message}"):
        compute(tokens(0), tokens(1), [boxes(A), boxes(C)], [boxes(box), boxes(A)])


def test_lists_of_different_length_are_errors():
    with pytest.raises(ValueError, match="got boxes of 1 reference and 2 target images"):
        compute(tokens(0), tokens(1), [boxes(A)], [boxes(A), boxes(A)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_a_gpu():
    ref_boxes, target_boxes = [boxes(A, B), boxes(C)], [boxes(B, C), boxes(A)]
    expected = compute(tokens(0), tokens(1), ref_boxes, target_boxes)
    on_gpu = compute(tokens(0).cuda(), tokens(1).cuda(), ref_boxes, target_boxes)
    torch.testing.assert_close(on_gpu.cpu(), expected)
