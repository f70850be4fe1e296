import pytest
import torch
from region_core import all_gather_with_grad, all_reduce_sum, gather_objects, own_slice
from region_core.testing import run_forked_ranks

WORLD_SIZE = 2


@pytest.fixture
def run_ranks(tmp_path):
    return lambda function: run_forked_ranks(function, tmp_path, num_ranks=WORLD_SIZE)


def test_without_a_process_group_there_is_one_rank():
    rows = torch.randn(3, 2, requires_grad=True)
    assert all_gather_with_grad(rows) is rows
    assert own_slice(3) == slice(0, 3)
    assert gather_objects("mine") == ["mine"]
    total = all_reduce_sum(rows)
    assert torch.equal(total, rows.detach())
    assert not total.requires_grad
    assert total.data_ptr() != rows.data_ptr()


ALL_ROWS = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FACTORS = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of_rank(rows, rank):
    """Different on each rank and not linear, so that a lost or doubled gradient shows."""
    return ((rows * FACTORS[rank]).sum(dim=1) ** 2).sum()


def _gather_unequal(rank):
    counts = [4, 1]
    start = sum(counts[:rank])
    own = ALL_ROWS[start : start + counts[rank]].clone().requires_grad_()
    gathered = all_gather_with_grad(own)
    loss_of_rank(gathered, rank).backward()
    assert own.grad is not None
    return gathered.detach().tolist(), own.grad.tolist(), (own_slice(len(own)).start, own_slice(len(own)).stop)


def test_rows_and_gradients_of_all_ranks(run_ranks):
    rows = ALL_ROWS.clone().requires_grad_()
    sum(loss_of_rank(rows, rank) for rank in range(WORLD_SIZE)).backward()
    gathered, gradients, own = zip(*run_ranks(_gather_unequal), strict=True)
    assert gathered[0] == gathered[1] == ALL_ROWS.tolist()
    torch.testing.assert_close(torch.tensor(gradients[0] + gradients[1], dtype=torch.float64), rows.grad)
    assert own == ((0, 4), (4, 5))


def _gather_from_one_rank_only(rank):
    own = (ALL_ROWS if rank == 1 else ALL_ROWS[:0]).clone().requires_grad_()
    gathered = all_gather_with_grad(own)
    gathered.sum().backward()
    with torch.no_grad():
        empty = all_gather_with_grad(own[:0])
    assert own.grad is not None
    return len(gathered), list(own.grad.shape), own.grad.sum().item(), list(empty.shape)


def test_a_rank_without_rows_takes_part(run_ranks):  # T38
    assert run_ranks(_gather_from_one_rank_only) == [(5, [0, 3], 0.0, [0, 3]), (5, [5, 3], 30.0, [0, 3])]


def _gather_with_gradient_on_one_rank(rank):
    with pytest.raises(ValueError, match=r"some ranks only \(\[True, False\]\)"):
        all_gather_with_grad(torch.zeros(2, 3, requires_grad=rank == 0))
    return True


def test_gradients_on_some_ranks_only_are_refused_on_all(run_ranks):
    assert run_ranks(_gather_with_gradient_on_one_rank) == [True, True]


def _sums_and_objects(rank):
    own = torch.tensor([1.0, 10.0 * rank])
    total = all_reduce_sum(own)
    return own.tolist(), total.tolist(), gather_objects({"rank": rank})


def test_sums_and_objects(run_ranks):
    first, second = run_ranks(_sums_and_objects)
    assert first == ([1.0, 0.0], [2.0, 10.0], [{"rank": 0}, {"rank": 1}])
    assert second[1:] == first[1:]
