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


@pytest.mark.parametrize("train", [True, False])
def test_weights_in_bf16_beside_statistics_in_float32(train):
    """What DeepSpeed's bf16 mode makes of a model: it casts the parameters alone. Torch's own layer refuses it."""
    norm, wide = new_norm(RankBatchNorm2d).float().train(train), nn.BatchNorm2d(3).train(train)
    for parameter in norm.parameters():
        parameter.data = parameter.data.bfloat16()
    wide.load_state_dict(norm.state_dict())
    batch = data()[0].bfloat16()
    found = norm(batch)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wide(batch.float()).bfloat16())
    assert torch.equal(norm.running_mean, wide.running_mean)
    found.sum().backward()
    assert norm.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("cast", ["in place", "as it is built"])
def test_statistics_in_bf16_would_lose_their_small_steps(cast):
    if cast == "in place":
        norm = RankBatchNorm2d(1).bfloat16()
    else:
        torch.set_default_dtype(torch.bfloat16)
        try:
            norm = RankBatchNorm2d(1)
        finally:
            torch.set_default_dtype(torch.float32)
    assert norm.weight.dtype == torch.bfloat16
    wide = nn.BatchNorm2d(1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = torch.randn(8, 1, 4, 4, generator=generator).mul(0.01).add(1).bfloat16()
        norm(batch)
        wide(batch.float())
    # In bf16 the mean would stop at 0.984.
    assert norm.running_mean.item() == wide.running_mean.item() == pytest.approx(1, abs=1e-3)
    assert norm.running_var.item() == wide.running_var.item()


def test_a_cast_keeps_the_statistics_that_there_are():
    norm = RankBatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([1 / 3, 1000.1]))
    before = norm.running_mean.clone()
    assert torch.equal(norm.half().bfloat16().running_mean, before)
    assert norm.double().running_mean.dtype == torch.float64
    assert norm.to("meta").running_mean.is_meta


def test_without_momentum_the_statistics_are_the_mean_of_all_batches():  # torch.optim.swa_utils.update_bn
    batches = list(torch.randn(4, 2, 3, 2, 2))
    norms = [
        kind(3, momentum=None) if kind is nn.BatchNorm2d else kind(3) for kind in (nn.BatchNorm2d, RankBatchNorm2d)
    ]
    norms[1].momentum = None
    for batch in batches:
        first, second = (norm(batch) for norm in norms)
        assert torch.equal(first, second)
    assert torch.equal(norms[0].running_var, norms[1].running_var)
