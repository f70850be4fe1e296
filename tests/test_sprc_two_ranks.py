"""Ranks whose batches hold different numbers of region pairs: nobody hangs, and the step is that of one process.

Every tensor is partitioned under ZeRO-3 here: with the usual threshold a toy's small tensors would stay whole on both
ranks, and a module that one of them skips would go unnoticed.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from region_training.command_line import resolve_settings
from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.testing import run_ranks
from safetensors.torch import load_file
from sprc.building import PARTS, build_config, build_model, build_tokenizer
from sprc.cli import APPLICATION
from sprc.collate import TripletCollator
from sprc.config import Settings
from sprc.region_schedule import RegionSchedule
from sprc.train import open_splits, training_captions, training_of
from torch.utils.data import SequentialSampler, Subset

pytestmark = pytest.mark.slow

# Pairs of each triplet, step by step: first those of rank 0, then those of rank 1.
STEPS = (
    ((1, 1), (1, 1)),  # still without the region loss
    ((2, 1), (1, 0)),
    ((2, 2), (0, 0)),
    ((0, 0), (1, 2)),
    ((0, 0), (0, 0)),
    ((2, 1), (1, 1)),
)


def _samples(dataset):
    """Triplets with as many pairs as `STEPS` says; weights differ, and in the last step a rank's are 0 (`changed`)."""
    rich = [sample for sample in dataset if len(sample.pair_weights) >= 2]
    samples = []
    for step, ranks in enumerate(STEPS):
        for rank, counts in enumerate(ranks):
            for count in counts:
                sample = rich[len(samples) % len(rich)]
                weights = torch.tensor([1.0, 0.25])[:count]
                if step == len(STEPS) - 1 and rank == 1:
                    weights = torch.zeros(count)
                sample = sample._replace(
                    reference_boxes=sample.reference_boxes[:count],
                    target_boxes=sample.target_boxes[:count],
                    pair_weights=weights,
                )
                samples.append(sample)
    return samples


@pytest.fixture(scope="module")
def runs(sprc_small, zero3, tmp_path_factory) -> dict[str, Path]:
    """The same steps in one process (stage 2), and on two ranks in stages 2 and 3."""
    folder = tmp_path_factory.mktemp("sprc-two-ranks")
    settings = resolve_settings(APPLICATION, "train", sprc_small.train(folder)[1:])
    assert isinstance(settings, Settings)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    late = dataclasses.replace(settings.model.region_loss, start_epoch=0.9 / len(STEPS))
    model = dataclasses.replace(settings.model, qformer={**(settings.model.qformer or {}), **quiet}, region_loss=late)
    tokenizer = build_tokenizer(model, training_captions(settings))
    samples = _samples(open_splits(settings, build_config(model, tokenizer))[0])
    # A large epsilon makes AdamW's update nearly proportional to the gradient, so equal weights mean equal gradients.
    training = dataclasses.replace(
        training_of(settings),
        max_steps=len(STEPS),
        save_every=0,
        learning_rate=0.1,
        adam_epsilon=1.0,
        max_grad_norm=0.0,
        scheduler="constant",
    )

    def run(rank, world_size, stages):
        for stage in stages:
            job = TrainingJob(
                build_model=lambda: build_model(model, tokenizer),
                train_dataset=Subset(samples, range(len(samples))),
                collate=TripletCollator(tokenizer, max_length=model.max_caption_tokens),
                parts=PARTS,
                sampler=SequentialSampler(samples),
                callbacks=[RegionSchedule(late, model.loss_region)],
            )
            chosen = dataclasses.replace(
                training,
                micro_batch_size=4 // world_size,
                zero_stage=stage,
                deepspeed_config=str(zero3) if stage == 3 else None,
            )
            run_training(job, chosen, folder / f"{world_size}-{stage}")

    run_ranks(run, 1, folder / "ranks", 1, (2,))
    run_ranks(run, 2, folder / "ranks", 2, (2, 3))
    return {name: folder / name for name in ("1-2", "2-2", "2-3")}


def _log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(folder):
    return load_file(folder / "model.safetensors")


def test_one_process_has_the_losses_that_the_steps_ask_for(runs):
    """Else the comparisons below would compare nothing."""
    lines = _log(runs["1-2"])
    assert ["loss/region" in line for line in lines] == [False, True, True, True, False, True]
    assert [line.get("loss/region_pairs") for line in lines] == [None, 4, 4, 3, 0, 5]
    assert all(line["loss/region"] > 0.01 for line in lines if "loss/region" in line)
    # Zeros would be equal as well.
    assert all(line["grad_norm"] > 0.01 for line in lines)


@pytest.mark.parametrize("name", ["2-2", "2-3"])
def test_losses_and_gradient_norms_equal_one_process(runs, name):
    one, two = _log(runs["1-2"]), _log(runs[name])
    assert len(one) == len(two) == len(STEPS)
    for line, other in zip(one, two, strict=True):
        losses = {key for key in line if key.startswith("loss/")}
        assert losses == {key for key in other if key.startswith("loss/")}
        # A mean per rank: two ranks share the pairs of one process.
        assert other.get("loss/region_pairs", 0) * 2 == line.get("loss/region_pairs", 0)
        for key in (*(losses - {"loss/region_pairs"}), "grad_norm"):
            assert other[key] == pytest.approx(line[key], rel=1e-4, abs=1e-6), (line["step"], key)


@pytest.mark.parametrize("name", ["2-2", "2-3"])
def test_weights_equal_one_process(runs, name):
    one, two = _weights(runs["1-2"] / "model"), _weights(runs[name] / "model")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_the_command_under_zero3_evaluates_on_both_ranks_as_one_process_does(
    sprc_small, sprc_commands, zero3, tmp_path
):
    from sprc.cli import main

    run = tmp_path / "run"
    words = sprc_small.train(
        run,
        *("--training.zero_stage", "3", "--training.deepspeed_config", str(zero3)),
        *("--training.micro_batch_size", "2"),
    )
    assert run_ranks(lambda rank: main(words), 2, tmp_path / "ranks") == [0, 0]
    scores, found = _found(run)
    assert [line["step"] for line in _log(run) if "loss/region" in line] == [3, 4]
    # What was saved is whole, and is what was evaluated.
    ((code, output),) = sprc_commands([["evaluate", str(run), "--device", "cpu"]], tmp_path / "ranks")
    assert code == 0, output
    again_scores, again_found = _found(run)
    assert again_scores == scores
    assert len(again_found) == len(found) == 18
    for record, other in zip(found, again_found, strict=True):
        similarities = record.pop("similarities"), other.pop("similarities")
        subset_similarities = record.pop("subset_similarities"), other.pop("subset_similarities")
        assert record == other
        assert similarities[0] == pytest.approx(similarities[1], abs=1e-5)
        assert subset_similarities[0] == pytest.approx(subset_similarities[1], abs=1e-5)


def _found(run):
    records = [json.loads(line) for line in (run / "retrieved.jsonl").read_text().splitlines()]
    return json.loads((run / "results.json").read_text())["scores"], records
