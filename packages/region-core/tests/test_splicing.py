import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_core import drop_dummy, splice, with_dummy_row
from torch import nn

MASK, DEPTH = 7, 8


def slow_splice(token_embeds, input_ids, rows):
    """Plain version: walk over all tokens, taking the next row of each placeholder."""
    result = token_embeds.clone()
    queues = {placeholder: iter(embeddings) for placeholder, embeddings in rows.items()}
    for sample in range(len(input_ids)):
        for place, token in enumerate(input_ids[sample].tolist()):
            if token in queues:
                result[sample, place] = next(queues[token])
    return result


def example(dtype=torch.float32):
    input_ids = torch.tensor([[1, MASK, DEPTH, MASK, DEPTH], [2, 3, 4, 5, 6], [MASK, DEPTH, 1, 1, 1]])
    embeds = torch.randn(3, 5, 4, dtype=dtype)
    return embeds, input_ids, {MASK: torch.randn(3, 4, dtype=dtype), DEPTH: torch.randn(3, 4, dtype=dtype)}


def test_equals_the_plain_version_and_changes_nothing_in_place():
    embeds, input_ids, rows = example()
    before = embeds.clone()
    spliced = splice(embeds, input_ids, rows, counts={MASK: [2, 0, 1]}, names={MASK: "<mask>"})
    assert torch.equal(spliced, slow_splice(embeds, input_ids, rows))
    assert torch.equal(embeds, before)


def test_no_placeholders():
    embeds, input_ids, _ = example()
    assert torch.equal(splice(embeds, input_ids, {}), embeds)
    assert torch.equal(splice(embeds, input_ids, {99: torch.zeros(0, 4)}, counts={99: [0, 0, 0]}), embeds)


def test_rows_take_the_type_of_the_tokens():
    embeds, input_ids, rows = example()
    spliced = splice(embeds.bfloat16(), input_ids, rows)
    assert spliced.dtype == torch.bfloat16
    assert torch.equal(spliced[0, 1], rows[MASK][0].bfloat16())


@pytest.mark.parametrize("num_rows", [0, 2, 4])
def test_too_few_and_too_many_rows_are_errors(num_rows):  # T46
    embeds, input_ids, _ = example()
    message = rf"<mask>: found 3 in the batch, expected {num_rows} .* occurs \[2, 0, 1\] times"
    with pytest.raises(ValueError, match=message):
        splice(embeds, input_ids, {MASK: torch.zeros(num_rows, 4)}, names={MASK: "<mask>"})


def test_counts_find_mistakes_that_cancel_out():  # T46
    embeds, input_ids, rows = example()
    with pytest.raises(ValueError, match="placeholder 7: sample 0 has 2, expected 1"):
        splice(embeds, input_ids, rows, counts={MASK: [1, 1, 1]})


@pytest.mark.parametrize("counts", [[2, 1], [2, 0, 2]])
def test_counts_must_fit_batch_and_rows(counts):
    embeds, input_ids, rows = example()
    with pytest.raises(ValueError, match="one number for each of 3 samples and add up to the 3 rows"):
        splice(embeds, input_ids, rows, counts={MASK: counts})


def test_gradcheck():
    embeds, input_ids, rows = example(torch.float64)
    assert torch.autograd.gradcheck(
        lambda e, m, d: splice(e, input_ids, {MASK: m, DEPTH: d}),
        (embeds.requires_grad_(), rows[MASK].requires_grad_(), rows[DEPTH].requires_grad_()),
    )


def test_gradients_do_not_reach_the_placeholders_embeddings():
    embeds, input_ids, rows = example()
    embeds.requires_grad_()
    splice(embeds, input_ids, rows).sum().backward()
    placeholders = (input_ids == MASK) | (input_ids == DEPTH)
    assert torch.equal(embeds.grad.sum(-1), (~placeholders).float() * 4)


def test_an_empty_splice_keeps_a_module_in_the_graph():  # T38
    connector = nn.Linear(6, 4)
    embeds, input_ids, _ = example()
    padded, num_dummy = with_dummy_row(torch.zeros(0, 6))
    splice(embeds, input_ids, {99: drop_dummy(connector(padded), num_dummy)}).sum().backward()
    assert connector.weight.grad is not None
    assert torch.equal(connector.weight.grad, torch.zeros(4, 6))


def test_batch_equals_one_by_one():
    embeds, input_ids, rows = example()
    first = splice(embeds[:1], input_ids[:1], {key: value[:2] for key, value in rows.items()})
    last = splice(embeds[2:], input_ids[2:], {key: value[2:] for key, value in rows.items()})
    spliced = splice(embeds, input_ids, rows)
    assert torch.equal(spliced[0], first[0])
    assert torch.equal(spliced[2], last[0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.integers(0, 9), st.integers(0, 10_000))
def test_any_ids(batch, length, seed):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 10, (batch, length), generator=generator)
    embeds = torch.randn(batch, length, 3, generator=generator)
    rows = {key: torch.randn(int((input_ids == key).sum()), 3, generator=generator) for key in (MASK, DEPTH)}
    assert torch.equal(splice(embeds, input_ids, rows), slow_splice(embeds, input_ids, rows))
