"""Ranks whose batches show different things in every step: nobody hangs, and the step is that of one process.

Every tensor is partitioned under ZeRO-3 here: with the usual threshold a toy's small tensors would stay whole on both
ranks, and a module that one of them skips would go unnoticed.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from lmms.building import build_config, build_model, build_processor, parts_of
from lmms.cli import APPLICATION
from lmms.collate import VideoCollator
from lmms.config import Settings
from lmms.records import read_texts
from lmms.rows import read_rows
from lmms.train import open_data
from lmms.trainer import AutoregressiveTrainer
from region_training.command_line import resolve_settings
from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.testing import run_ranks
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler, Subset

pytestmark = pytest.mark.slow

# What each sample shows, step by step: first those of rank 0, then those of rank 1. A number is frames of a clip.
STEPS = (
    ((4, 3), ("text", "text")),
    (("text", "text"), (4, "picture")),
    (("picture", "text"), (1, 2)),
    (("text", 1), ("picture", "text")),
    ((2, 4), (4, 4)),
)
# Frames that have one before them, by step; each is compared at its four tokens.
TARGETS = tuple(4 * sum(shown - 1 for rank in ranks for shown in rank if isinstance(shown, int)) for ranks in STEPS)
LOSSES = ("main_loss", "autoregressive_loss", "total_loss", "autoregressive_loss_raw", "ar_copy_loss", "ar_targets")
SPLITS = {
    "1-2": (1, 2, 1),
    "1-2 accumulated": (1, 2, 4),
    "2-2": (2, 2, 1),
    "2-3": (2, 3, 1),
    "2-3 accumulated": (2, 3, 2),
}
OTHERS = tuple(SPLITS)[1:]
WEIGHTS = ("model.safetensors", "autoregressive/model.safetensors")


def _samples(dataset):
    """Samples as `STEPS` says."""
    records = [dataset.record(index) for index in range(len(dataset))]
    clips = [index for index, record in enumerate(records) if record.videos]
    pictures = [index for index, record in enumerate(records) if record.images]
    texts = [index for index, record in enumerate(records) if not record.videos and not record.images]
    samples = []
    for shown in (shown for ranks in STEPS for rank in ranks for shown in rank):
        pool = {"text": texts, "picture": pictures}.get(shown, clips)
        index = pool[len(samples) % len(pool)]
        frames = shown if isinstance(shown, int) else None
        media = dataset.reader.read(records[index], dataset.where(index), frames)
        samples.append(dataset.make_sample(records[index], media, index=index, where=dataset.where(index)))
    return samples


def _quiet(model):
    """The model's settings without dropout: nothing random is left."""
    config = dict(model.config)
    config["text_config"] = {**config["text_config"], "attention_dropout": 0.0}
    module = dataclasses.replace(model.autoregressive_config, dropout=0.0)
    return dataclasses.replace(model, config=config, autoregressive_config=module)


@pytest.fixture(scope="module")
def runs(lmms_small, zero3, tmp_path_factory) -> dict[str, Path]:
    """The same steps split in several ways, with a tower that is trained and so a snapshot; and the model before."""
    folder = tmp_path_factory.mktemp("lmms-two-ranks")
    settings = resolve_settings(APPLICATION, "train", lmms_small.train(folder)[1:])
    assert isinstance(settings, Settings)
    settings = dataclasses.replace(settings, model=_quiet(settings.model))
    model = settings.model
    processor = build_processor(model, read_texts(read_rows(lmms_small.root, settings.data.train_files)))
    data = open_data(settings, processor)
    samples = _samples(data.train)
    # A large epsilon makes AdamW's update nearly proportional to the gradient, so equal weights mean equal gradients.
    training = dataclasses.replace(
        settings.training,
        max_steps=len(STEPS),
        save_every=0,
        learning_rate=0.1,
        adam_epsilon=1.0,
        max_grad_norm=0.0,
        scheduler="constant",
    )

    def build():
        built = build_model(model, processor)
        if not (folder / "before").exists():
            # The first that is built is the one process's own, and whole.
            built.save_pretrained(folder / "before")
        return built

    def run(rank, world_size):
        for name, (ranks, stage, accumulation) in SPLITS.items():
            if ranks != world_size:
                continue
            job = TrainingJob(
                build_model=build,
                train_dataset=Subset(samples, range(len(samples))),
                collate=VideoCollator(
                    processor.tokenizer.pad_token_id, data.family, autoregressive=model.autoregressive_config
                ),
                parts=parts_of(build_config(model, processor)),
                sampler=SequentialSampler(samples),
                trainer_class=AutoregressiveTrainer,
            )
            chosen = dataclasses.replace(
                training,
                micro_batch_size=4 // world_size // accumulation,
                gradient_accumulation_steps=accumulation,
                zero_stage=stage,
                deepspeed_config=str(zero3) if stage == 3 else None,
            )
            run_training(job, chosen, folder / name)

    for world_size in (1, 2):
        run_ranks(run, world_size, folder / "ranks", world_size)
    return {name: folder / name for name in ("before", *SPLITS)}


def _log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_process_has_the_losses_that_the_steps_ask_for(runs):
    """Else the comparisons below would compare nothing."""
    lines = _log(runs["1-2"])
    assert [line.get("ar_targets", 0) for line in lines] == list(TARGETS)
    assert 0 in TARGETS
    assert [("autoregressive_loss" in line) for line in lines] == [targets > 0 for targets in TARGETS]
    assert all(line["main_loss"] > 0.1 for line in lines)
    assert all(line["autoregressive_loss"] > 0.01 for line in lines if "autoregressive_loss" in line)
    # Zeros would be equal as well.
    assert all(line["grad_norm"] > 0.01 for line in lines)


@pytest.mark.parametrize("name", OTHERS)
def test_losses_and_gradient_norms_equal_one_process(runs, name):
    one, other = _log(runs["1-2"]), _log(runs[name])
    assert len(one) == len(other) == len(STEPS)
    for line, its in zip(one, other, strict=True):
        assert {key for key in line if key in LOSSES} == {key for key in its if key in LOSSES}
        for key in (*(key for key in LOSSES if key in line), "grad_norm"):
            assert its[key] == pytest.approx(line[key], rel=1e-4, abs=1e-6), (line["step"], key)


@pytest.mark.parametrize("name", OTHERS)
def test_weights_equal_one_process(runs, name):
    for file in WEIGHTS:
        before, one, other = (
            load_file(folder / file) for folder in (runs["before"], runs["1-2"] / "model", runs[name] / "model")
        )
        assert before.keys() == one.keys() == other.keys()
        moved = [key for key, value in one.items() if (value - before[key]).norm() > 1e-4]
        # Weights that stay where they were would be equal as well; some biases have no gradient by nature.
        assert len(moved) > 0.8 * len(one)
        assert file != WEIGHTS[0] or any("vision_tower" in key for key in moved)
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_the_command_under_zero3_evaluates_on_both_ranks_as_one_process_does(
    lmms_small, lmms_commands, zero3, tmp_path
):
    """With a frozen tower, which is its own teacher: what was saved computes all losses again."""
    from lmms.cli import main

    run, alone = tmp_path / "run", tmp_path / "alone"
    words = lmms_small.train(
        run,
        *("--training.zero_stage", "3", "--training.deepspeed_config", str(zero3)),
        *("--training.micro_batch_size", "2", "--training.frozen_parts", "[vision_tower]"),
    )
    assert run_ranks(lambda rank: main(words), 2, tmp_path / "ranks") == [0, 0]
    assert json.loads((run / "teacher.json").read_text())["kind"] == "shared"
    shutil.copytree(run, alone)
    ((code, output),) = lmms_commands(
        [["evaluate", str(alone), "--device", "cpu", "--batch_size", "8"]], tmp_path / "ranks"
    )
    assert code == 0, output
    (scores, answers), (other_scores, other_answers) = _found(run), _found(alone)
    assert answers == other_answers
    assert scores.keys() == other_scores.keys()
    assert "ar_skill" in scores["model"]
    for who, values in scores.items():
        assert values == pytest.approx(other_scores[who], rel=1e-4, abs=1e-5), who


def _found(run):
    answers = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    return json.loads((run / "results.json").read_text())["scores"], answers
