"""The gradient of a step is that of the mean over all its items, however the step is split."""

import json

import pytest
import torch
from region_training.engine import train
from region_training.testing import run_ranks

# Twenty records in steps of eight: the last step of an epoch has four, so its accumulation group is not full.
NUM_SAMPLES, STEP_SIZE, NUM_STEPS = 20, 8, 6
# A large epsilon makes AdamW's update nearly proportional to the gradient, so equal weights mean equal gradients.
PLAIN = {"max_steps": NUM_STEPS, "save_every": 0, "adam_epsilon": 1.0, "max_grad_norm": 0.0, "scheduler": "constant"}
SPLITS = {1: [(8, 1), (2, 4)], 2: [(4, 1), (2, 2), (1, 4)]}


def _reference(toy) -> dict[str, torch.Tensor]:
    """A plain loop over whole steps, without Trainer, DeepSpeed or splits."""
    torch.manual_seed(0)
    model = toy.Model(toy.Config(dropout=0.0))
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("bias")]
    others = [p for n, p in model.named_parameters() if p.ndim < 2 or n.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, eps=1.0)
    data, order = toy.Data(NUM_SAMPLES), toy.permutation(NUM_SAMPLES)
    for step in range(NUM_STEPS):
        epoch, begin = divmod(step, 3)
        order.set_epoch(epoch)
        batch = toy.collate([data[index] for index in list(order)[begin * STEP_SIZE : (begin + 1) * STEP_SIZE]])
        optimizer.zero_grad()
        model(batch["inputs"], batch["targets"], batch["labels"]).loss.backward()
        optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_any_split_gives_the_weights_of_a_plain_loop(toy, tmp_path, world_size, stage):
    def run(rank):
        for size, accumulation in SPLITS[world_size]:
            settings = toy.settings(
                **PLAIN, zero_stage=stage, micro_batch_size=size, gradient_accumulation_steps=accumulation
            )
            train(toy.job(NUM_SAMPLES, dropout=0.0), settings, tmp_path / f"{size}-{accumulation}")

    run_ranks(run, world_size, tmp_path / "ranks")
    expected = _reference(toy)
    for size, accumulation in SPLITS[world_size]:
        weights = toy.weights(tmp_path / f"{size}-{accumulation}" / "model")
        assert set(weights) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_counts_are_unequal_in_these_batches(toy):
    """The test above would pass with a wrong scaling if every micro-batch had the same number of labels."""
    data, order = toy.Data(NUM_SAMPLES), list(toy.permutation(NUM_SAMPLES))
    batches = [toy.collate([data[index] for index in order[begin : begin + 2]]) for begin in range(0, 20, 2)]
    assert len({batch["loss_counts"]["classify"] for batch in batches}) > 1


def test_log_values_do_not_depend_on_the_split(toy, tmp_path):
    """T42: terms are merged over micro-steps and ranks by their counts."""

    def run(rank, world_size):
        for size, accumulation in SPLITS[world_size]:
            settings = toy.settings(
                **PLAIN,
                micro_batch_size=size,
                gradient_accumulation_steps=accumulation,
                part_learning_rates={"body": 0.5},
            )
            train(toy.job(NUM_SAMPLES, dropout=0.0), settings, tmp_path / f"{world_size}-{size}")

    logs = []
    for world_size, splits in SPLITS.items():
        run_ranks(run, world_size, tmp_path / "ranks", world_size)
        for size, _ in splits:
            text = (tmp_path / f"{world_size}-{size}" / "metrics.jsonl").read_text()
            logs.append([json.loads(line) for line in text.splitlines()])
    for log in logs:
        assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
        for line, first in zip(log, logs[0], strict=True):
            for key in ("loss/total", "loss/regress", "loss/classify", "grad_norm", "lr/body", "lr/heads"):
                assert line[key] == pytest.approx(first[key], rel=2e-4), key
            assert line["loss/total"] == pytest.approx(line["loss/regress"] + 0.5 * line["loss/classify"], rel=1e-5)
            assert line["lr/body"] == 0.5
            assert line["skipped_steps"] == 0
            assert {"time/step_s", "time/data_s", "memory/peak_gib", "throughput/samples_per_s"} <= set(line)


def test_a_term_may_be_absent_on_one_rank_or_from_a_step(toy, tmp_path):
    """T38: every rank runs every head, so ZeRO-3 does not hang; an absent term is not logged."""
    order = list(toy.permutation(16))
    # Micro-batches of two: rank 0 has records 0-1 and 4-5 of the order, rank 1 the others. No label from 8 on.
    labelled = set(order[:2]) | set(order[6:8])

    def run(rank):
        data = toy.Data(16, labelled=lambda index: index in labelled)
        for stage in (2, 3):
            settings = toy.settings(zero_stage=stage, micro_batch_size=2, max_steps=4, save_every=0)
            train(toy.job(dataset=data), settings, tmp_path / f"stage-{stage}")

    run_ranks(run, 2, tmp_path / "ranks")
    for stage in (2, 3):
        log = [json.loads(line) for line in (tmp_path / f"stage-{stage}" / "metrics.jsonl").read_text().splitlines()]
        assert ["loss/classify" in line for line in log] == [True, True, False, False]


def test_activation_checkpointing_and_workers_change_nothing(toy, tmp_path):
    def run(rank):
        for name, changes in {
            "plain": {},
            "checkpointing": {"gradient_checkpointing": True},
            "workers": {"num_workers": 2},
        }.items():
            train(toy.job(), toy.settings(save_every=0, **changes), tmp_path / name)

    run_ranks(run, 1, tmp_path / "ranks")
    plain = toy.weights(tmp_path / "plain" / "model")
    for name in ("checkpointing", "workers"):
        for key, value in toy.weights(tmp_path / name / "model").items():
            assert torch.equal(value, plain[key]), (name, key)
