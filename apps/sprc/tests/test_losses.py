"""SPRC's losses as sums: similarity, candidates, masking, alignment."""

import math

import pytest
import torch
from sprc.losses import Temperature, align_sum, best_similarity, contrastive_sum, gather_candidates
from torch.nn import functional as F


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(4, 5, generator=generator, dtype=torch.float64), dim=-1)
    targets = F.normalize(torch.randn(4, 3, 5, generator=generator, dtype=torch.float64), dim=-1)
    return queries, targets


def test_similarity_is_that_of_the_best_feature(features):
    queries, targets = features
    expected = [[max(float(query @ feature) for feature in target) for target in targets] for query in queries]
    torch.testing.assert_close(best_similarity(queries, targets), torch.tensor(expected, dtype=torch.float64))


def test_similarity_keeps_little_for_backward():
    """A broadcast product keeps every target once per query."""
    kept = {"flat": 0, "broadcast": 0}
    queries = torch.randn(16, 32, requires_grad=True)
    targets = torch.randn(16, 8, 32, requires_grad=True)

    def count(name):
        def pack(tensor):
            kept[name] += tensor.numel()
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)

    with count("flat"):
        flat = best_similarity(queries, targets)
    with count("broadcast"):
        broadcast = torch.matmul(queries[:, None, None], targets.mT).squeeze(2).amax(-1)
    torch.testing.assert_close(flat, broadcast)
    assert kept["broadcast"] > 8 * kept["flat"]


def test_cross_entropy_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    total = contrastive_sum(queries, gather_candidates(targets), torch.tensor(2.0))
    assert total.item() == pytest.approx(2 * math.log(1 + math.exp(-2.0)))


def test_another_row_with_the_same_target_is_no_negative(features):
    queries, targets = features
    targets[2] = targets[0]
    ids = torch.tensor([7, 8, 7, 9])
    candidates = gather_candidates(targets, ids)
    assert candidates.correct.tolist() == [0, 1, 2, 3]
    assert candidates.excluded.nonzero().tolist() == [[0, 2], [2, 0]]
    found = contrastive_sum(queries, candidates, torch.tensor(1.0))
    similarity = best_similarity(queries, targets)
    expected = 0.0
    for row in range(4):
        kept = [column for column in range(4) if column == row or ids[column] != ids[row]]
        expected += F.cross_entropy(similarity[row, kept][None], torch.tensor([kept.index(row)])).item()
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("number", [0, -1, 2**63 - 1, -(2**63), 0x7FF8000000000001])
def test_any_64_bit_number_identifies_an_image(features, number):
    """Ids travel as the bits of floats, some of which are not numbers."""
    ids = torch.tensor([number, 5, number, 6])
    assert gather_candidates(features[1], ids).excluded.nonzero().tolist() == [[0, 2], [2, 0]]


def test_only_one_target_costs_nothing(features):
    queries, targets = features
    candidates = gather_candidates(targets, torch.tensor([7, 7, 7, 7]))
    assert contrastive_sum(queries, candidates, torch.tensor(14.0)).item() == pytest.approx(0.0, abs=1e-12)


def test_order_of_rows_does_not_matter(features):
    queries, targets = features
    order = torch.tensor([2, 0, 3, 1])
    ids = torch.tensor([7, 8, 7, 9])
    found = contrastive_sum(queries[order], gather_candidates(targets[order], ids[order]), torch.tensor(3.0))
    assert found.item() == pytest.approx(
        contrastive_sum(queries, gather_candidates(targets, ids), torch.tensor(3.0)).item()
    )


def test_gradients_are_right(features):
    queries, targets = (tensor.requires_grad_() for tensor in features)
    ids = torch.tensor([7, 8, 7, 9])
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(queries, targets, scale):
        return contrastive_sum(queries, gather_candidates(targets, ids), scale)

    assert torch.autograd.gradcheck(loss, (queries, targets, scale))


def test_half_precision_stays_close(features):
    queries, targets = (tensor.float() for tensor in features)
    expected = contrastive_sum(queries, gather_candidates(targets), torch.tensor(14.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrastive_sum(queries, gather_candidates(targets), torch.tensor(14.0))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_alignment_by_hand():
    fused = torch.tensor([[[1.0, 3.0], [3.0, 5.0]], [[0.0, 0.0], [0.0, 2.0]]])
    assert align_sum(fused, torch.tensor([0.0, 1.0])).item() == pytest.approx((4 + 9) / 2 + 0)


def test_temperature_starts_as_in_blip2():
    assert Temperature()().item() == pytest.approx(1 / 0.07)
    assert Temperature().value.shape == (1,)  # DeepSpeed cannot broadcast a parameter without dimensions
