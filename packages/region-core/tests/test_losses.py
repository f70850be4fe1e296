import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_core import LossTerms, drop_dummy, touch, with_dummy_row
from torch import nn


def example() -> LossTerms:
    terms = LossTerms()
    terms.add("mask", torch.tensor(6.0), 3, weight=0.5)
    terms.add("text", torch.tensor(8.0), torch.tensor(2), weight=2.0)
    terms.add("absent", torch.tensor(0.0), 0, weight=7.0)
    return terms


def test_terms_are_an_ordered_mapping():
    terms = example()
    assert list(terms) == ["mask", "text", "absent"]
    assert len(terms) == 3
    assert terms["text"].weight == 2.0
    assert "other" not in terms
    assert list(LossTerms(terms)) == list(terms)


def test_totals_are_float32_scalars():
    terms = LossTerms()
    terms.add("half", torch.tensor(1.5, dtype=torch.bfloat16), 2)
    assert terms["half"].total.dtype == torch.float32
    assert terms.weighted_total().shape == ()
    assert terms.weighted_total().dtype == torch.float32


def test_worked_by_hand():
    terms = example()
    assert terms.mean("mask").item() == 2.0
    assert terms.mean("absent").item() == 0.0
    assert terms.means() == {"mask": 2.0, "text": 4.0}
    assert terms.weighted_total().item() == 0.5 * 2.0 + 2.0 * 4.0
    counts = {"mask": 1.5, "text": torch.tensor(4.0), "absent": 1.0}
    assert terms.weighted_total(counts).item() == 0.5 * 6.0 / 1.5 + 2.0 * 8.0 / 4.0


def test_no_terms_give_zero():
    assert LossTerms().weighted_total().item() == 0.0
    assert LossTerms().means() == {}


def test_merge_with_prefix():
    terms = example()
    terms.merge(example(), prefix="second/")
    assert list(terms)[3:] == ["second/mask", "second/text", "second/absent"]
    with pytest.raises(ValueError, match="'mask' was added twice"):
        terms.merge(example())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", torch.tensor(1.0), 1), "needs a name"),
        (("mask", torch.tensor(1.0), 1), "added twice"),
        (("new", torch.tensor(1.0), -1), "count of 0 or more, got -1"),
        (("new", torch.tensor(1.0), 1, math.inf), "finite weight, got inf"),
    ],
)
def test_bad_terms_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        example().add(*arguments)


def test_mean_counts_must_name_every_term():
    with pytest.raises(ValueError, match=r"no entry for loss term 'text'; it names \['mask'\]"):
        example().weighted_total({"mask": 1.0})


@pytest.mark.parametrize("count", [0, torch.tensor(0)])
@pytest.mark.parametrize("mean_counts", [None, {"term": 0.5}, {"term": torch.tensor(0.0)}])
def test_count_zero_keeps_the_graph_with_zero_gradient(count, mean_counts):  # T38
    weight = torch.tensor(3.0, requires_grad=True)
    terms = LossTerms()
    terms.add("term", weight * 5.0, count)
    loss = terms.weighted_total(mean_counts)
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None
    assert weight.grad.item() == 0.0


@pytest.mark.parametrize("mean_count", [0.0, torch.tensor(0.0)])
def test_mean_count_zero_removes_a_term(mean_count):
    weight = torch.tensor(3.0, requires_grad=True)
    terms = LossTerms()
    terms.add("term", weight * 5.0, 2)
    terms.weighted_total({"term": mean_count}).backward()
    assert weight.grad is not None
    assert weight.grad.item() == 0.0


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any), st.integers(0, 1000))
def test_gradient_does_not_depend_on_the_split_of_a_step(counts, seed):
    """Averaged over micro-batches (and ranks), the gradient is that of the mean over all items of the step."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randn(sum(counts), generator=generator)
    parameter = torch.tensor(0.7, requires_grad=True)
    whole = LossTerms()
    whole.add("term", ((parameter * items) ** 2).sum(), len(items), weight=0.3)
    (expected,) = torch.autograd.grad(whole.weighted_total(), parameter)

    gradients = []
    for part in items.split(counts):
        terms = LossTerms()
        terms.add("term", ((parameter * part) ** 2).sum(), len(part), weight=0.3)
        loss = terms.weighted_total({"term": sum(counts) / len(counts)})
        gradients.append(torch.autograd.grad(loss, parameter)[0])
    torch.testing.assert_close(torch.stack(gradients).mean(), expected)


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_dummy_rows_come_and_go(num_rows):
    rows = torch.randn(num_rows, 4, dtype=torch.float64)
    padded, num_dummy = with_dummy_row(rows, minimum=2)
    assert len(padded) == max(num_rows, 2)
    assert padded.dtype == rows.dtype
    assert num_dummy == max(2 - num_rows, 0)
    assert torch.equal(drop_dummy(padded, num_dummy), rows)


@pytest.mark.parametrize("use_touch", [False, True])
def test_a_module_on_a_dummy_row_gets_zero_gradients(use_touch):  # T38
    module = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
    rows, num_dummy = with_dummy_row(torch.zeros(0, 4))
    output = module(rows)
    loss = touch(output) if use_touch else drop_dummy(output, num_dummy).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is not None and torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_touch_is_an_exact_zero_beside_nan_and_infinity():
    spoiled = torch.tensor([[math.nan, math.inf]], requires_grad=True)
    scalar = torch.tensor(2.0, requires_grad=True)
    zero = touch(spoiled, scalar)
    zero.backward()
    assert zero.item() == 0.0
    assert spoiled.grad is not None
    assert scalar.grad is not None
    assert torch.equal(spoiled.grad, torch.zeros(1, 2))
    assert scalar.grad.item() == 0.0
    assert touch().item() == 0.0


def test_a_count_may_be_a_sum_of_weights_below_one():
    terms = LossTerms()
    terms.add("weighted", torch.tensor(1.0), torch.tensor(0.25))
    terms.add("numbers", torch.tensor(1.0), 0.5)
    assert terms.means() == {"weighted": 4.0, "numbers": 2.0}
    assert terms.weighted_total().item() == 6.0
