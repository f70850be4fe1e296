import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from roi_region_loss import RegionContrastiveLoss, RegionLossConfig
from roi_region_loss.contrastive import LogitScale

APART = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.3, 0.0, 0.5, 0.2], [0.6, 0.0, 0.8, 0.2], [0.0, 0.5, 0.2, 0.9]])


def random_pairs(owner, seed=0, dim=6, dtype=torch.float64):
    """Pairs of random vectors and boxes for a batch of triplets that share some images."""
    generator = torch.Generator().manual_seed(seed)
    num_pairs, batch_size = len(owner), max(owner, default=-1) + 1

    def boxes():
        low = 0.5 * torch.rand(num_pairs, 2, generator=generator, dtype=torch.float64)
        size = 0.1 + 0.4 * torch.rand(num_pairs, 2, generator=generator, dtype=torch.float64)
        return torch.cat([low, low + size], dim=1)

    return {
        "reference_features": torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64).to(dtype),
        "target_features": torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64).to(dtype),
        "reference_boxes": boxes(),
        "target_boxes": boxes(),
        "pair_owner": torch.tensor(owner, dtype=torch.int64),
        "reference_ids": torch.randint(-(2**62), -(2**62) + 4, (batch_size,), generator=generator),
        "target_ids": torch.randint(-(2**62), -(2**62) + 4, (batch_size,), generator=generator),
        "pair_weights": torch.rand(num_pairs, generator=generator, dtype=torch.float64),
    }


def simple_pairs(reference, target, *, owner=None, boxes=None):
    """Pairs of weight 1, each of its own two images unless `owner` says otherwise."""
    owner = list(range(len(reference))) if owner is None else owner
    boxes = APART[: len(reference)] if boxes is None else boxes
    batch_size = max(owner, default=-1) + 1
    return {
        "reference_features": reference,
        "target_features": target,
        "reference_boxes": boxes,
        "target_boxes": boxes,
        "pair_owner": torch.tensor(owner, dtype=torch.int64),
        "reference_ids": torch.arange(batch_size),
        "target_ids": torch.arange(batch_size) + batch_size,
    }


# Contract


def test_the_output_is_a_sum_with_the_sum_of_weights():
    loss = RegionContrastiveLoss()
    pairs = random_pairs([0, 0, 1, 2], dtype=torch.float32)
    output = loss(**pairs)
    assert output.total.dtype == torch.float32
    assert (output.num_pairs, output.num_pairs_global) == (4, 4)
    torch.testing.assert_close(output.count, pairs["pair_weights"].sum().float())
    torch.testing.assert_close(output.mean, output.total / output.count)
    assert not output.count.requires_grad


def test_different_numbers_of_rows_are_an_error():
    # jaxtyping would refuse the call before the loss does, so the check is called with its own words.
    from roi_region_loss.contrastive import _check_rows

    with pytest.raises(ValueError, match=r"expected one row per pair in each, got \{'first': 2, 'second': 3\}"):
        _check_rows(first=torch.zeros(2, 1), second=torch.zeros(3, 1))


def test_the_scale_starts_at_the_inverse_temperature_and_is_bounded():
    assert RegionContrastiveLoss().scale().item() == pytest.approx(1 / 0.07)
    scale = LogitScale(0.07, 100.0)
    assert scale.log_scale.shape == (1,)  # DeepSpeed cannot broadcast a parameter without dimensions
    with torch.no_grad():
        scale.log_scale.fill_(10.0)
    assert scale().item() == pytest.approx(100.0)
    scale().backward()
    assert scale.log_scale.grad is not None
    assert scale.log_scale.grad.item() == pytest.approx(100.0)  # it can come back
    scale.reset_parameters()
    assert scale().item() == pytest.approx(1 / 0.07)


# Reference


def overlaps(box, other, config):
    shared = 1.0
    for axis in (0, 1):
        shared *= max(0.0, min(box[axis + 2], other[axis + 2]) - max(box[axis], other[axis]))
    area, other_area = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (box, other))
    iou, containment = shared / (area + other_area - shared), shared / min(area, other_area)
    return iou > config.overlap_iou or containment > config.overlap_containment


def plain_loss(pairs, config):
    """The definition as loops; returns the sum over rows of weight x loss."""
    owners = pairs["pair_owner"].tolist()
    images = {
        "reference": [int(pairs["reference_ids"][owner]) for owner in owners],
        "target": [int(pairs["target_ids"][owner]) for owner in owners],
    }
    total = 0.0
    for side, other in (("reference", "target"), ("target", "reference")):
        rows, columns = pairs[f"{side}_features"], pairs[f"{other}_features"]
        boxes = pairs[f"{other}_boxes"].tolist()
        for i, owner in enumerate(owners):
            terms = []
            for j, other_owner in enumerate(owners):
                cosine = rows[i] @ columns[j] / (rows[i].norm() * columns[j].norm())
                own_image = images[other][j] in (images["reference"][i], images["target"][i])
                if owner == other_owner:
                    is_negative = config.negatives == "cross_region" and not overlaps(boxes[i], boxes[j], config)
                else:
                    is_negative = not own_image
                if i == j or is_negative:
                    terms.append((cosine / config.temperature).exp())
                if i == j:
                    positive = terms[-1]
            total = total - 0.5 * pairs["pair_weights"][i] * (positive / sum(terms)).log()
    return total


@pytest.mark.parametrize("negatives", ["cross_region", "cross_image"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_plain_loops_with_its_gradients(negatives, seed):
    config = RegionLossConfig(negatives=negatives)
    pairs = random_pairs([0, 0, 0, 1, 2, 2, 3], seed=seed)
    names = ("reference_features", "target_features")
    for name in names:
        pairs[name].requires_grad_()
    loss = RegionContrastiveLoss(config).double()
    loss.scale.reset_parameters()
    expected = plain_loss(pairs, config)
    got = loss(**pairs).total
    torch.testing.assert_close(got, expected)
    features = [pairs[name] for name in names]
    for got_gradient, wanted in zip(
        torch.autograd.grad(got, features), torch.autograd.grad(expected, features), strict=True
    ):
        torch.testing.assert_close(got_gradient, wanted)


def test_gradients_of_features_and_scale():
    pairs = random_pairs([0, 0, 1, 2])
    loss = RegionContrastiveLoss().double()

    def total(reference, target, log_scale):
        inputs = pairs | {"reference_features": reference, "target_features": target}
        return torch.func.functional_call(loss, {"scale.log_scale": log_scale}, kwargs=inputs, args=()).total

    inputs = (
        pairs["reference_features"].requires_grad_(),
        pairs["target_features"].requires_grad_(),
        loss.scale.log_scale.detach().clone().requires_grad_(),
    )
    assert torch.autograd.gradcheck(total, inputs)


# Edges


def test_no_pairs_give_a_zero_with_zero_gradients():  # trap: zero-pair batch gives a graph-connected 0
    loss = RegionContrastiveLoss()
    head = torch.nn.Linear(3, 3)
    features = head(torch.zeros(1, 3))[:0]
    output = loss(
        **simple_pairs(features, features) | {"reference_ids": torch.arange(2), "target_ids": torch.arange(2)}
    )
    assert output.total.item() == 0.0
    assert output.mean.item() == 0.0
    assert output.total.requires_grad
    assert output.count.item() == 0.0
    assert output.monitors.means() == {}
    output.mean.backward()
    for parameter in (*head.parameters(), *loss.parameters()):
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_one_pair_has_nothing_to_be_contrasted_with():
    loss = RegionContrastiveLoss()
    reference, target = torch.randn(1, 5, requires_grad=True), torch.randn(1, 5, requires_grad=True)
    output = loss(**simple_pairs(reference, target))
    output.total.backward()
    assert output.total.item() == 0.0
    for tensor in (reference, target, loss.scale.log_scale):
        assert tensor.grad is not None
        assert not tensor.grad.any()
    assert "hardest_negative" not in output.monitors.means()
    assert output.monitors.means()["recall_at_1"] == 1.0


def test_a_row_without_negatives_is_zero_and_not_nan():
    loss = RegionContrastiveLoss(RegionLossConfig(negatives="cross_image"))
    reference, target = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    output = loss(**simple_pairs(reference, target, owner=[0, 0, 0]))
    output.total.backward()
    assert output.total.item() == 0.0
    for tensor in (reference, target, loss.scale.log_scale):
        assert tensor.grad is not None
        assert not tensor.grad.any()  # a masked column reached no gradient, the scale's neither


def test_orthogonal_pairs_of_equal_regions():
    eye = torch.eye(4, dtype=torch.float64)
    loss = RegionContrastiveLoss().double()
    loss.scale.reset_parameters()
    expected = math.log(1 + 3 * math.exp(-1 / 0.07))
    assert loss(**simple_pairs(eye, eye)).mean.item() == pytest.approx(expected, rel=1e-6)


def test_equal_embeddings_give_the_log_of_the_columns_left():
    same = torch.ones(4, 5)
    assert RegionContrastiveLoss()(**simple_pairs(same, same)).mean.item() == pytest.approx(math.log(4))
    # Rows 0 and 1 are of one triplet and lie on each other: each has three columns left, the others four.
    boxes = APART[[0, 0, 2, 3]]
    output = RegionContrastiveLoss()(**simple_pairs(same, same, owner=[0, 0, 1, 2], boxes=boxes))
    assert output.mean.item() == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4)


def test_vectors_without_length_are_neither_nan_nor_explode():  # trap: degenerate
    loss = RegionContrastiveLoss()
    reference = torch.cat([torch.zeros(1, 4), torch.randn(2, 4)]).requires_grad_()
    output = loss(**simple_pairs(reference, torch.randn(3, 4)))
    output.total.backward()
    assert output.total.isfinite()
    assert reference.grad is not None
    assert not reference.grad[0].any()
    assert reference.grad[1:].abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_stay_near_float32(dtype):
    pairs = random_pairs([0, 0, 1, 2], dtype=dtype)
    loss = RegionContrastiveLoss()
    wanted = loss(**pairs | {name: pairs[name].float() for name in ("reference_features", "target_features")}).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(**pairs).total
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(loss(**pairs).total, wanted, atol=1e-2, rtol=1e-2)


# Weights


def test_a_pair_of_weight_zero_has_no_row_but_is_a_negative():  # trap: positive pairs that should differ
    pairs = random_pairs([0, 1, 2])
    pairs |= {"reference_ids": torch.tensor([0, 1, 2]), "target_ids": torch.tensor([3, 4, 5])}
    loss = RegionContrastiveLoss().double()
    full = loss(**pairs | {"pair_weights": torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)})
    without = loss(
        **{name: value[:2] for name, value in pairs.items()} | {"pair_weights": torch.ones(2, dtype=torch.float64)}
    )
    assert full.count.item() == 2.0
    assert full.total > without.total
    pairs["reference_features"].requires_grad_()
    pairs["target_features"].requires_grad_()
    only = loss(**pairs | {"pair_weights": torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)})
    only.total.backward()
    assert pairs["target_features"].grad[2].any()


def test_monitors_count_weighted_rows_only():
    reference = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pairs = simple_pairs(reference, target) | {"pair_weights": torch.tensor([1.0, 0.5, 0.0])}
    output = RegionContrastiveLoss()(**pairs)
    means = output.monitors.means()
    # Row 0 finds its target at cosine 1, tied with target 1: a miss. Row 1 has cosine 0 and prefers target 2.
    assert means == pytest.approx({"positive_similarity": 0.5, "hardest_negative": 1.0, "recall_at_1": 0.0})
    assert {term.weight for term in output.monitors.values()} == {0.0}


# Invariance


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_pairs_and_triplets_does_not_matter(owner, seed, random):
    pairs = random_pairs(owner, seed=seed)
    batch_size = len(pairs["reference_ids"])
    order, images = random.sample(range(len(owner)), len(owner)), random.sample(range(batch_size), batch_size)
    shuffled = {name: value[order] for name, value in pairs.items() if not name.endswith("_ids")}
    shuffled["pair_owner"] = torch.tensor(images).argsort()[shuffled["pair_owner"]]
    shuffled |= {name: pairs[name][images] for name in ("reference_ids", "target_ids")}
    loss = RegionContrastiveLoss().double()
    torch.testing.assert_close(loss(**shuffled).total, loss(**pairs).total)


def test_swapping_reference_and_target_does_not_matter():
    pairs = random_pairs([0, 0, 1, 2])
    swapped = {
        name.replace("reference", "other").replace("target", "reference").replace("other", "target"): value
        for name, value in pairs.items()
    }
    loss = RegionContrastiveLoss().double()
    torch.testing.assert_close(loss(**swapped).total, loss(**pairs).total)


# Ranks


OWNERS = [0, 0, 1, 2]
SPLITS = {"three and one": [[0, 1, 2], [3]], "four and none": [[0, 1, 2, 3], []]}


def share_of(pairs, rows):
    """The batch of one rank that holds some rows: its triplets numbered anew, one triplet without pairs besides."""
    owners = pairs["pair_owner"][rows]
    triplets = owners.unique()
    share = {name: value[rows] for name, value in pairs.items() if not name.endswith("_ids")}
    share["pair_owner"] = torch.searchsorted(triplets, owners)
    extra = torch.tensor([99])
    return share | {name: torch.cat([pairs[name][triplets], extra]) for name in ("reference_ids", "target_ids")}


def gradients_of_rank(split):
    def run(rank):
        pairs = random_pairs(OWNERS, seed=5)
        share = share_of(pairs, torch.tensor(SPLITS[split][rank], dtype=torch.int64))
        weight = torch.eye(6, dtype=torch.float64).requires_grad_()
        for name in ("reference_features", "target_features"):
            share[name] = share[name] @ weight if len(share[name]) else share[name]
        loss = RegionContrastiveLoss().double()
        output = loss(**share)
        # A rank whose features need no gradient must not leave the others waiting in backward.
        output.total.backward()
        assert loss.scale.log_scale.grad is not None
        own = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        return (
            output.total.item(),
            output.count.item(),
            own.tolist(),
            loss.scale.log_scale.grad.item(),
            (output.num_pairs, output.num_pairs_global),
        )

    return run


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_equal_one_process(run_ranks, split):  # traps: negatives on one GPU only; a rank without pairs
    pairs = random_pairs(OWNERS, seed=5)
    weight = torch.eye(6, dtype=torch.float64).requires_grad_()
    for name in ("reference_features", "target_features"):
        pairs[name] = pairs[name] @ weight
    loss = RegionContrastiveLoss().double()
    expected = loss(**pairs)
    expected.total.backward()
    assert weight.grad is not None
    assert loss.scale.log_scale.grad is not None

    totals, counts, gradients, scale_gradients, numbers = zip(*run_ranks(gradients_of_rank(split)), strict=True)
    assert sum(totals) == pytest.approx(expected.total.item(), rel=1e-12)
    assert sum(counts) == pytest.approx(expected.count.item(), rel=1e-12)
    torch.testing.assert_close(torch.tensor(gradients, dtype=torch.float64).sum(0), weight.grad)
    assert sum(scale_gradients) == pytest.approx(loss.scale.log_scale.grad.item(), rel=1e-9)
    assert [pair[0] for pair in numbers] == [len(rows) for rows in SPLITS[split]]
    assert {pair[1] for pair in numbers} == {4}


def _no_rank_has_pairs(rank):
    loss = RegionContrastiveLoss()
    none = torch.zeros(0, 6, requires_grad=True)
    output = loss(**simple_pairs(none, none))
    output.total.backward()
    assert loss.scale.log_scale.grad is not None
    return output.total.item(), output.num_pairs_global, loss.scale.log_scale.grad.item()


def test_two_ranks_without_any_pair(run_ranks):
    assert run_ranks(_no_rank_has_pairs) == [(0.0, 0, 0.0)] * 2
