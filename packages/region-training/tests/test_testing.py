"""The harness itself: results, errors, deaths and hangs."""

import os
import signal
import threading
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from region_training.ranks import Ranks
from region_training.testing import RankError, run_ranks, start_ranks


def test_ranks_meet_and_answer(tmp_path):
    def run(rank, factor):
        total = torch.tensor([rank + 1.0])
        dist.all_reduce(total)
        warnings.warn("other people's warnings are no errors here", stacklevel=1)
        return rank * factor, total.item(), os.environ["WORLD_SIZE"]

    assert run_ranks(run, 3, tmp_path, 10) == [(0, 6.0, "3"), (10, 6.0, "3"), (20, 6.0, "3")]


def test_decisions_are_shared(tmp_path):
    def run(rank):
        ranks = Ranks(30.0)
        ranks.barrier()
        return ranks.gather({"rank": rank}), ranks.broadcast(f"from {rank}"), ranks.any_of([rank == 1, False])

    expected = ([{"rank": 0}, {"rank": 1}], "from 0", [True, False])
    assert run_ranks(run, 2, tmp_path) == [expected] * 2
    assert run_ranks(run, 1, tmp_path) == [([{"rank": 0}], "from 0", [False, False])]


def test_an_exception_is_raised_here_with_its_rank_and_output(tmp_path):
    def run(rank):
        os.write(2, b"a last word\n")
        if rank == 1:
            raise ValueError("no such box")
        time.sleep(30)

    # Rank 0 is ended by the timeout; what matters is what rank 1 said.
    with pytest.raises(RankError, match="rank 1 ended with 1") as caught:
        run_ranks(run, 2, tmp_path, timeout_s=2.0)
    assert "ValueError: no such box" in str(caught.value)
    assert "a last word" in str(caught.value)


def test_a_hanging_rank_leaves_its_stack(tmp_path):
    def wait_for_ever():
        threading.Event().wait()

    def run(rank):
        if rank == 0:
            wait_for_ever()

    with pytest.raises(RankError, match="did not answer in time") as caught:
        run_ranks(run, 2, tmp_path, timeout_s=2.0)
    assert "wait_for_ever" in str(caught.value)


def test_a_death_is_an_exit_code(tmp_path):
    def run(rank):
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    outcomes = start_ranks(run, 2, tmp_path).wait()
    assert [outcome.exit_code for outcome in outcomes] == [-signal.SIGKILL, 0]
    assert outcomes[0].error == ""


def test_a_signal_reaches_one_rank(tmp_path):
    def run(rank):
        (tmp_path / f"ready-{rank}").touch()
        if rank == 1:
            time.sleep(30)

    ranks = start_ranks(run, 2, tmp_path / "ranks")
    while not (tmp_path / "ready-1").exists():
        time.sleep(0.01)
    ranks.send_signal(1, signal.SIGTERM)
    assert [outcome.exit_code for outcome in ranks.wait()] == [0, -signal.SIGTERM]


def test_a_fork_computes_though_its_parent_used_threads(tmp_path):
    """A pool of OpenMP threads is not inherited; a child that asked for it would wait for ever."""
    matrix = torch.randn(600, 600)
    (matrix @ matrix).sum().item()

    def run(rank):
        product = torch.randn(600, 600, requires_grad=True) @ matrix
        product.exp().sum().backward()
        return torch.get_num_threads()

    assert run_ranks(run, 2, tmp_path, timeout_s=30.0) == [1, 1]
