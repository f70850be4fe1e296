"""Batch normalisation over ranks: two ranks with unequal batches are one process with both."""

import pytest
import torch
from deformable_projector.batch_norm import RankBatchNorm2d
from region_core.testing import run_forked_ranks
from torch import nn


def run(norm: nn.BatchNorm2d, batch: torch.Tensor, target: torch.Tensor) -> dict[str, list]:
    """Gradients of a summed loss, and the running statistics."""
    batch = batch.clone().requires_grad_()
    ((norm(batch) - target) ** 3).sum().backward()
    found = {
        "input": batch.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "steps": norm.num_batches_tracked,
    }
    return {name: value.tolist() for name, value in found.items() if value is not None}


def new_norm(kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    norm = kind(3).double()
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    return norm


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch, target = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, generator=generator)
    return 100 + batch, target


def on_rank(rank: int) -> dict[str, list]:
    batch, target = data()
    own = slice(0, 1) if rank == 0 else slice(1, 5)
    return run(new_norm(RankBatchNorm2d), batch[own], target[own])


def test_one_rank_is_torchs_own():
    expected, found = (run(new_norm(kind), *data()) for kind in (nn.BatchNorm2d, RankBatchNorm2d))
    for name, value in expected.items():
        assert found[name] == value, name


def test_two_ranks_are_one_process(tmp_path):
    expected = run(new_norm(nn.BatchNorm2d), *data())
    first, second = run_forked_ranks(on_rank, tmp_path)
    close = {"rtol": 1e-3, "atol": 1e-3}  # the statistics are float32
    torch.testing.assert_close(torch.tensor(first["input"] + second["input"]), torch.tensor(expected["input"]), **close)
    for name in ("weight", "bias"):
        total = torch.tensor(first[name]) + torch.tensor(second[name])
        torch.testing.assert_close(total, torch.tensor(expected[name]), **close)
    for name in ("mean", "var", "steps"):
        assert first[name] == second[name]
        assert first[name] == pytest.approx(expected[name], rel=1e-5)


def test_evaluation_asks_no_other_rank(tmp_path):
    def evaluate(rank: int) -> list | None:
        # A collective of one rank alone would wait for ever.
        return RankBatchNorm2d(3).eval()(torch.ones(1, 3, 2, 2)).flatten().tolist() if rank == 0 else None

    assert run_forked_ranks(evaluate, tmp_path)[0] == pytest.approx([(1 + 1e-5) ** -0.5] * 12)
