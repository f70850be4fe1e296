"""Ranks whose batches ask for different things in every step: nobody hangs, and the step is that of one process.

Every tensor is partitioned under ZeRO-3 here: with the usual threshold a toy's small tensors would stay whole on both
ranks, and a module that one of them skips would go unnoticed.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from psalm.building import build_config, build_model, build_processor, parts_of
from psalm.cli import APPLICATION
from psalm.collate import SegmentationCollator
from psalm.config import Settings
from psalm.data import open_dataset
from psalm.train import training_of
from region_training.command_line import resolve_settings
from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.testing import run_ranks
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler, Subset

pytestmark = pytest.mark.slow

# Modes of each sample, step by step: first those of rank 0, then those of rank 1. A minus: nothing is to be found.
STEPS = (
    (("panoptic", "semantic"), ("region", "region")),
    (("instance", "panoptic"), ("cross_image", "cross_image")),
    (("semantic", "instance"), ("referring", "referring")),
    (("panoptic", "instance"), ("referring-", "region-")),
    (("panoptic-", "instance-"), ("cross_image-", "referring-")),
    (("semantic", "panoptic-"), ("cross_image", "region")),
)
# How far one weight of two runs may lie apart.
TOLERANCE = 5e-6
CONDITIONS = ("loss_class_name_class", "loss_SEG_class", "loss_region_class")


def _samples(dataset):
    """Samples as `STEPS` says, each with a seed of its own for its points."""
    found = [dataset[index] for index in range(len(dataset))]
    by_mode = {}
    for sample in found:
        if len(sample.masks):
            by_mode.setdefault(sample.mode, []).append(sample)
    samples = []
    for ranks in STEPS:
        for name in (name for rank in ranks for name in rank):
            pool = by_mode[name.removesuffix("-")]
            sample = pool[len(samples) % len(pool)]
            if name.endswith("-"):
                nothing = {"masks": sample.masks[:0], "target_conditions": sample.target_conditions[:0]}
                sample = dataclasses.replace(sample, **nothing)
            samples.append(dataclasses.replace(sample, seed=100 + len(samples)))
    return samples


def _quiet(model):
    """The model's settings without dropout and drop path: nothing random is left but the samples' own points.

    Points are anywhere: which ones are the least certain would hang on the last bit of a weight. Regions are known by
    their image tokens: beside all maps the projector's gradients are so small that Adam steps by their rounding errors.
    """
    swin = {**(model.swin or {}), "drop_path_rate": 0.0}
    language = {**(model.language or {}), "resid_pdrop": 0.0}
    criterion = dataclasses.replace(model.criterion, importance_ratio=0.0)
    return dataclasses.replace(model, swin=swin, language=language, criterion=criterion, region_levels=False)


@pytest.fixture(scope="module")
def runs(psalm_small, zero3, tmp_path_factory) -> dict[str, Path]:
    """The same steps in one process (stage 2), and on two ranks in stages 2 and 3; and the model before them."""
    folder = tmp_path_factory.mktemp("psalm-two-ranks")
    settings = resolve_settings(APPLICATION, "train", psalm_small.train(folder)[1:])
    assert isinstance(settings, Settings)
    dataset = open_dataset(settings.data, "train", training=True)
    model = _quiet(settings.model)
    processor = build_processor(model, settings.data, dataset.texts())
    parts = parts_of(build_config(model, processor.tokenizer, processor.image_size))
    samples = _samples(dataset)
    # A large epsilon makes AdamW's update nearly proportional to the gradient, so equal weights mean equal gradients.
    training = dataclasses.replace(
        training_of(settings, parts),
        max_steps=len(STEPS),
        save_every=0,
        learning_rate=0.05,
        # The deformable residual starts at zero, and what lies behind it hardly moves at first.
        part_learning_rates={"projector": 1.0, "sampling_offsets": 50.0},
        adam_epsilon=10.0,
        max_grad_norm=0.0,
        scheduler="constant",
    )

    def build():
        built = build_model(model, processor)
        if not (folder / "before").exists():
            # The first that is built is the one process's own, and whole.
            built.save_pretrained(folder / "before")
        return built

    def run(rank, world_size, stages):
        for stage in stages:
            job = TrainingJob(
                build_model=build,
                train_dataset=Subset(samples, range(len(samples))),
                collate=SegmentationCollator(processor, model),
                parts=parts,
                sampler=SequentialSampler(samples),
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
    return {name: folder / name for name in ("before", "1-2", "2-2", "2-3")}


def _log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _weights(folder):
    return load_file(folder / "model.safetensors")


def test_one_process_has_the_losses_that_the_steps_ask_for(runs):
    """Else the comparisons below would compare nothing."""
    lines = _log(runs["1-2"])
    found = [{name.removeprefix("loss_") for name in CONDITIONS if f"loss/{name}" in line} for line in lines]
    region, sentence = {"class_name_class", "region_class"}, {"class_name_class", "SEG_class"}
    assert found == [region, region, sentence, region | sentence, region | sentence, region]
    # In the fifth step nobody has a target, in the fourth only the first rank has.
    assert ["loss/loss_mask" in line for line in lines] == [True, True, True, True, False, True]
    assert all(value > 0.01 for line in lines for key, value in line.items() if key.startswith("loss/"))
    # Zeros would be equal as well.
    assert all(line["grad_norm"] > 0.01 for line in lines)


@pytest.mark.parametrize("name", ["2-2", "2-3"])
def test_losses_and_gradient_norms_equal_one_process(runs, name):
    one, two = _log(runs["1-2"]), _log(runs[name])
    assert len(one) == len(two) == len(STEPS)
    for line, other in zip(one, two, strict=True):
        losses = {key for key in line if key.startswith("loss/")}
        assert losses == {key for key in other if key.startswith("loss/")}
        for key in (*losses, "grad_norm"):
            assert other[key] == pytest.approx(line[key], rel=1e-4, abs=1e-6), (line["step"], key)


@pytest.mark.parametrize("name", ["2-2", "2-3"])
def test_weights_equal_one_process(runs, name):
    before, one, two = (_weights(folder) for folder in (runs["before"], runs["1-2"] / "model", runs[name] / "model"))
    assert before.keys() == one.keys() == two.keys()
    moved = {key: (value - before[key]).norm().item() for key, value in one.items() if value.is_floating_point()}
    # Weights that stay where they were would be equal as well; some biases have no gradient by nature.
    assert sum(distance > 1e-4 for distance in moved.values()) > 0.9 * len(moved)
    assert all(distance > 10 * TOLERANCE for key, distance in moved.items() if key.startswith("projector."))
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-5, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_the_command_under_zero3_evaluates_on_both_ranks_as_one_process_does(
    psalm_small, psalm_commands, zero3, tmp_path
):
    from psalm.cli import main

    run, alone = tmp_path / "run", tmp_path / "alone"
    words = psalm_small.train(
        run,
        *("--training.zero_stage", "3", "--training.deepspeed_config", str(zero3)),
        *("--training.micro_batch_size", "3"),
    )
    assert run_ranks(lambda rank: main(words), 2, tmp_path / "ranks") == [0, 0]
    shutil.copytree(run, alone)
    # What was saved is whole, and is what was evaluated; the untrained model is evaluated again as well.
    (alone / "untrained_scores.json").unlink()
    ((code, output),) = psalm_commands(
        [["evaluate", str(alone), "--device", "cpu", "--batch_size", "4"]], tmp_path / "ranks"
    )
    assert code == 0, output
    (scores, records), (other_scores, other_records) = _found(run), _found(alone)
    assert scores.keys() == other_scores.keys() == {"model", "untrained", "trivial"}
    # No rank leaves a record out or counts one twice: trivial answers need no model, and are the same to the bit.
    assert scores["trivial"] == other_scores["trivial"]
    # Other batches round otherwise, which may turn a pixel.
    for who, values in scores.items():
        assert values == pytest.approx(other_scores[who], abs=0.05), who
    assert len(records) == len(other_records) > 40
    for record, other in zip(records, other_records, strict=True):
        assert record["record_id"] == other["record_id"]
        assert record["position"] == other["position"]
        assert len(record["masks"]) == len(other["masks"])


def _found(run):
    lines = (run / "predictions" / "predictions.jsonl").read_text().splitlines()
    return json.loads((run / "results.json").read_text())["scores"], [json.loads(line) for line in lines]
