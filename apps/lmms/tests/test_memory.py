"""Bytes of weights, gradients and optimizer: exact beside torch, and what DeepSpeed was measured to hold."""

import pytest
import torch
from lmms.memory import built_bytes, checkpoint_bytes, estimate_memory
from lmms.model_sizes import ModelSizes, PartSize, measure_model
from region_training.deepspeed_presets import deepspeed_config
from region_training.settings import TrainingSettings

SIZES = ModelSizes((PartSize("a", 1000, 0), PartSize("b", 7000, 7000)), largest_tensor=500, teacher=100)


def _estimate(sizes=SIZES, stage=0, world_size=1, precision="fp32", **zero):
    config = deepspeed_config(TrainingSettings(zero_stage=stage))
    config["zero_optimization"].update(zero)
    return estimate_memory(sizes, config, world_size=world_size, precision=precision, activations=50, device="cpu")


def _bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_it_is_exact_beside_torchs_adamw(toy):
    model = toy.model(frozen_parts=("vision_tower",)).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    model(**toy.batch([toy.sample((3,)), toy.sample((), images=2, seed=3)])).loss.backward()
    optimizer.step()
    estimate = _estimate(measure_model(model.config, ["vision_tower"]))
    assert estimate.weights == _bytes(model.parameters())
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    # A weight that no sample of the batch reaches has no gradient and no moments yet.
    unreached = [weight for weight in model.parameters() if weight.requires_grad and weight.grad is None]
    assert estimate.optimizer == _bytes(moments) + 2 * _bytes(unreached)
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert estimate.gradients == _bytes(gradients) + _bytes(unreached)


@pytest.mark.parametrize(
    ("precision", "stage", "weights", "gradients", "optimizer"),
    [
        ("fp32", 0, 4, 4, 8),
        ("fp32", 1, 4, 4, 12),
        ("fp32", 2, 4, 4, 12),
        ("fp32", 3, 4, 4, 12),
        ("bf16", 0, 2, 2, 12),
        ("bf16", 1, 2, 2, 12),
        ("bf16", 2, 2, 4, 12),
        ("bf16", 3, 2, 4, 12),
    ],
)
def test_bytes_per_element_are_those_that_deepspeed_holds(precision, stage, weights, gradients, optimizer):
    """Measured: all tensors alive after backward under DeepSpeed 0.19, one rank, 7/8 of a model trained."""
    estimate = _estimate(stage=stage, precision=precision)
    assert (estimate.weights, estimate.gradients) == (8000 * weights, 7000 * gradients)
    assert estimate.optimizer == 7000 * optimizer
    assert estimate.teacher == 100 * weights
    parts = (estimate.weights, estimate.gradients, estimate.optimizer, 100 * weights, 50, estimate.buffers)
    assert estimate.total == sum(parts)


def test_a_stage_divides_what_it_partitions():
    alone = [_estimate(stage=stage, precision="bf16") for stage in range(4)]
    shared = [_estimate(stage=stage, precision="bf16", world_size=4) for stage in range(4)]
    for kind, first in (("optimizer", 1), ("gradients", 2), ("weights", 3)):
        ratios = [vars(one)[kind] / vars(four)[kind] for one, four in zip(alone, shared, strict=True)]
        assert ratios == [4.0 if stage >= first else 1.0 for stage in range(4)]
    assert {estimate.teacher for estimate in shared} == {200}
    assert [estimate.buffers > 0 for estimate in alone] == [False, True, True, True]


def test_buffers_follow_the_configuration():
    assert _estimate(stage=2).buffers == 2 * 7000 * 4
    assert _estimate(stage=2, reduce_bucket_size=100).buffers == 2 * 100 * 4
    assert _estimate(stage=2, reduce_bucket_size=100, overlap_comm=False).buffers == 100 * 4
    own = {"reduce_bucket_size": 100, "stage3_prefetch_bucket_size": 50}
    assert _estimate(stage=3, world_size=2, **own).buffers == (100 + 50 + 500) * 4
    assert _estimate(stage=3, reduce_bucket_size="auto").buffers == 7000 * 4


def test_what_is_offloaded_is_in_main_memory():
    plain, away = _estimate(stage=2), _estimate(stage=2, offload_optimizer={"device": "cpu"})
    assert (away.optimizer, away.offloaded) == (0, plain.optimizer)
    assert away.total == plain.total - plain.optimizer
    assert _estimate(stage=3, offload_param={"device": "cpu"}).weights == 0


def test_largest_first_leaves_out_what_is_empty():
    assert _estimate().largest_first() == ["optimizer", "weights", "gradients", "teacher", "activations"]
    assert _estimate().as_plain()["total"] == _estimate().total


def test_building_and_checkpoints():
    assert built_bytes(SIZES) == 32_000
    assert checkpoint_bytes(SIZES, "bf16") == 8000 * 2 + 7000 * 12
