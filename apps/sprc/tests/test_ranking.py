import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from sprc.ranking import ABSENT, best_first, check_finite, count_ranks, mask_of


def test_best_first_orders_equal_scores_by_position():
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.9, 0.1]])
    positions, values = best_first(scores, 3)
    assert positions.tolist() == [[1, 3, 0]]
    assert values[0].tolist() == pytest.approx([0.9, 0.9, 0.5])
    assert positions.dtype == torch.int64


def test_places_that_nothing_is_left_for_are_absent():
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    positions, values = best_first(torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]), 4, allowed=allowed)
    assert positions.tolist() == [[2, 0, ABSENT, ABSENT], [ABSENT] * 4]
    assert values.tolist() == [[2.0, 1.0, -torch.inf, -torch.inf], [-torch.inf] * 4]


def test_ranks_count_the_better_and_the_equal_before():
    scores = torch.tensor([[0.2, 0.7, 0.7, 0.9]] * 4)
    assert count_ranks(scores, torch.tensor([0, 1, 2, 3])).tolist() == [4, 2, 3, 1]


def test_ranks_among_the_allowed():
    allowed = torch.tensor([[True, False, True, True]])
    assert count_ranks(torch.tensor([[0.2, 0.9, 0.5, 0.7]]), torch.tensor([2]), allowed=allowed).tolist() == [2]


def test_positions_decide_between_equal_scores():
    scores, columns = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([0])
    assert count_ranks(scores, columns).tolist() == [1]
    assert count_ranks(scores, columns, positions=torch.tensor([[7, 3, 5]])).tolist() == [3]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    scores = torch.tensor([[0.1, 0.2], [0.3, bad]])
    with pytest.raises(ValueError, match=r"1 of 4 scores are not finite, the first is .* of query 1 and item 1"):
        best_first(scores, 1)
    with pytest.raises(ValueError, match="of query 1 and item 1"):
        count_ranks(scores, torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="of query 31 and item 1"):
        check_finite(scores, first_query=30)


def test_k_must_be_positive():
    with pytest.raises(ValueError, match="got k = 0"):
        best_first(torch.zeros(1, 2), 0)


def test_mask_of_a_table():
    table = torch.tensor([[1, ABSENT], [0, 2]])
    assert mask_of(table, 3).tolist() == [[False, True, False], [True, False, True]]
    assert mask_of(torch.empty(2, 0, dtype=torch.int64), 3).tolist() == [[False] * 3] * 2


@given(
    rows=st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=4),
    allowed=st.lists(st.booleans(), min_size=6, max_size=6),
    k=st.integers(1, 8),
)
@settings(max_examples=40, deadline=None)
def test_both_agree_with_a_stable_sort(rows, allowed, k):
    # Few different values: most rows hold ties.
    scores = torch.tensor(rows, dtype=torch.float32)
    mask = torch.tensor([allowed] * len(rows))
    positions, _ = best_first(scores, k, allowed=mask)
    for row, found in zip(rows, positions.tolist(), strict=True):
        order = sorted((item for item in range(6) if allowed[item]), key=lambda item: (-row[item], item))
        assert found == (order + [ABSENT] * k)[:k]
        for place, item in enumerate(order, start=1):
            (rank,) = count_ranks(torch.tensor([row]).float(), torch.tensor([item]), allowed=mask[:1]).tolist()
            assert rank == place
