"""A rank whose batch lacks regions, images or depth: nobody hangs, and the step is that of one process (T38).

Every tensor is partitioned under ZeRO-3 here: with the usual threshold a toy's small tensors would stay whole on both
ranks, and a module that one of them skips would go unnoticed.
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from region_core.config import RegionEnhancerConfig
from region_heads.config import HeadConfig, RegionHeadsConfig
from region_training.command_line import resolve_settings
from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.testing import run_ranks
from safetensors.torch import load_file
from spatialrgpt.building import PARTS, build_model, build_processor
from spatialrgpt.cli import APPLICATION
from spatialrgpt.collate import RegionDataCollator
from spatialrgpt.data import RegionDataset, make_sample, read_texts
from torch.utils.data import SequentialSampler, Subset

NONE = torch.zeros(0, dtype=torch.long)
STEPS = (
    ("whole", "text only"),
    ("whole", "no regions"),
    ("whole", "no depth"),
    ("text only", "whole"),
    ("no depth", "no regions"),
    ("text only", "text only"),
)


def _samples(small, processor):
    """Two samples per rank and step."""
    records = RegionDataset(small.root, "train", processor)
    talk = [{"role": "user", "content": "What is this?"}, {"role": "assistant", "content": "A warehouse."}]
    position = 0
    samples = []
    for kind in (kind for step in STEPS for kind in step for _ in range(2)):
        frames = records.frames(position)
        masks, region_images = records.masks(position, frames)
        if kind == "whole":
            samples.append(records[position])
        elif kind == "text only":
            samples.append(make_sample(processor, talk, [], [], NONE, task_type=-1, where=kind))
        elif kind == "no regions":
            samples.append(make_sample(processor, talk, frames, [None], NONE, task_type=-1, where=kind))
        else:
            flat = [dataclasses.replace(frame, depth=None) for frame in frames]
            label, messages = records.label(position), records.messages(position)
            task = records.task_types[position]
            sample = make_sample(
                processor, messages, flat, masks, region_images, task_type=task, where=kind, label=label
            )
            samples.append(sample)
        position = (position + 1) % len(records)
    return samples


@pytest.fixture(scope="module")
def runs(small, zero3, tmp_path_factory) -> dict[str, Path]:
    """The same steps in one process (stage 2), and on two ranks in stages 2 and 3."""
    folder = tmp_path_factory.mktemp("two-ranks")
    settings = resolve_settings(APPLICATION, "train", small.train(folder)[1:])
    quiet = HeadConfig(dropout=0.0)
    model = dataclasses.replace(
        settings.model,
        region_enhancer_cfg=RegionEnhancerConfig(2, 1, 1, dropout=0.0),
        region_heads_cfg=RegionHeadsConfig(quiet, quiet, quiet, quiet, hidden_dim=32),
    )
    processor = build_processor(model, read_texts(small.root / "train.json"))
    samples = _samples(small, processor)
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

    def run(rank, world_size, stages):
        for stage in stages:
            job = TrainingJob(
                build_model=lambda: build_model(model, processor.tokenizer),
                train_dataset=Subset(samples, range(len(samples))),
                collate=RegionDataCollator(processor.tokenizer.pad_token_id, heads=model.region_heads_cfg),
                parts=PARTS,
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
    return {name: folder / name for name in ("1-2", "2-2", "2-3")}


def _log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2-2", "2-3"])
def test_losses_and_gradient_norms_equal_one_process(runs, name):
    one, two = _log(runs["1-2"]), _log(runs[name])
    assert len(one) == len(two) == len(STEPS)
    # Zeros would be equal as well.
    assert all(line["grad_norm"] > 0.01 for line in one)
    for line, other in zip(one, two, strict=True):
        losses = {key for key in line if key.startswith("loss/")}
        assert losses == {key for key in other if key.startswith("loss/")}
        for key in (*losses, "grad_norm"):
            assert other[key] == pytest.approx(line[key], rel=1e-4, abs=1e-6), (line["step"], key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2-2", "2-3"])
def test_weights_equal_one_process(runs, name):
    one, two = (load_file(runs[which] / "model" / "model.safetensors") for which in ("1-2", name))
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
def test_a_step_without_regions_reports_no_typed_loss(runs):
    last = _log(runs["2-3"])[-1]
    assert {key for key in last if key.startswith("loss/")} == {"loss/total", "loss/lm"}
