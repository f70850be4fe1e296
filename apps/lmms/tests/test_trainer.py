"""`AutoregressiveTrainer`: what it logs, how its gradients scale, and ranks with unlike batches."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lmms.building import build_model, parts_of
from lmms.sample import VideoSample
from lmms.trainer import JUDGED_LINES, AutoregressiveTrainer, VideoLossLog
from region_core.losses import LossTerms
from region_training.deepspeed_presets import deepspeed_config
from region_training.engine import TrainingJob, train
from region_training.ranks import Ranks
from region_training.settings import TrainingSettings
from region_training.testing import run_ranks
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from video_autoregressive.config import AutoregressiveConfig


class Alone(Ranks):
    """One rank without a process group."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1


# A large epsilon makes AdamW's update nearly proportional to the gradient, so equal weights mean equal gradients.
PLAIN = {
    "device": "cpu",
    "max_steps": 2,
    "save_every": 0,
    "log_every": 1,
    "learning_rate": 0.1,
    "adam_epsilon": 1.0,
    "max_grad_norm": 0.0,
    "warmup": 0.0,
    "scheduler": "constant",
    "frozen_parts": ["vision_tower"],
    "communication_timeout_s": 60.0,
}


def job_of(toy, samples: Sequence[VideoSample], *, frozen_parts=("vision_tower",), **changes: object) -> TrainingJob:
    config = toy.config(**changes)
    return TrainingJob(
        build_model=lambda: build_model(toy.settings(**changes), toy.processor, frozen_parts=frozen_parts),
        train_dataset=toy.dataset(samples),
        collate=toy.collator(autoregressive=config.autoregressive),
        parts=parts_of(config),
        sampler=SequentialSampler(samples),
        trainer_class=AutoregressiveTrainer,
        processor=toy.processor,
    )


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def zero3(tmp_path) -> str:
    """ZeRO-3 that partitions even the tensors of a toy."""
    config = deepspeed_config(TrainingSettings(zero_stage=3))
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(config))
    return str(path)


SPLITS = {1: [(4, 1, 0), (1, 4, 2)], 2: [(2, 1, 2), (1, 2, 3)]}


def test_any_split_of_a_step_gives_the_same_gradients_and_the_same_log(toy, tmp_path, zero3):
    samples = [
        toy.sample(videos, images=images, seed=seed, answer="3" * (1 + 2 * seed))
        for seed, (videos, images) in enumerate([((4,), 0), ((), 0), ((2, 5), 0), ((), 1)] * 2)
    ]
    assert len({toy.collator()([sample])["loss_counts"]["autoregressive"] for sample in samples}) > 2

    def run(rank, world_size):
        for size, accumulation, stage in SPLITS[world_size]:
            settings = TrainingSettings(
                **PLAIN,
                micro_batch_size=size,
                gradient_accumulation_steps=accumulation,
                zero_stage=stage,
                deepspeed_config=zero3 if stage == 3 else None,
            )
            train(job_of(toy, samples), settings, tmp_path / f"{world_size}-{size}")

    for world_size in SPLITS:
        run_ranks(run, world_size, tmp_path / "ranks", world_size)
    runs = [tmp_path / f"{world_size}-{size}" for world_size, splits in SPLITS.items() for size, _, _ in splits]
    before = toy.model().state_dict()
    for part in ("model/model.safetensors", "model/autoregressive/model.safetensors"):
        first = load_file(runs[0] / part)
        moved = [name for name, value in first.items() if not torch.equal(value, before[full(name)])]
        assert len(moved) > len(first) / 3
        assert not any("vision_tower" in name for name in moved)
        for other in runs[1:]:
            weights = load_file(other / part)
            assert weights.keys() == first.keys()
            for name, value in first.items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=3e-6, msg=lambda t, n=name: f"{n}: {t}")
    logs = [log_of(run) for run in runs]
    names = ("main_loss", "autoregressive_loss", "total_loss", "autoregressive_loss_raw", "ar_copy_loss", "ar_skill")
    for log in logs:
        for line, expected in zip(log, logs[0], strict=True):
            for name in (*names, "ar_ratio", "ar_targets", "loss/total", "grad_norm"):
                assert line[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
            assert line["main_loss"] + line["autoregressive_loss"] == pytest.approx(line["total_loss"])
            assert line["total_loss"] == pytest.approx(line["loss/total"], rel=1e-5)
            assert line["autoregressive_loss"] == pytest.approx(0.1 * line["autoregressive_loss_raw"])
            assert line["ar_skill"] == pytest.approx(1 - line["autoregressive_loss_raw"] / line["ar_copy_loss"])
            assert line["decode_ms"] == pytest.approx(1.0)
            assert line["frames_per_s"] > 0


def full(name: str) -> str:
    return name if name.startswith(("lmm.", "autoregressive_module.")) else f"lmm.{name}"


RUNS = [("llava_onevision", ["vision_tower"]), ("llava_onevision", []), ("qwen2_5_vl", []), ("qwen3_vl", [])]


@pytest.mark.slow
def test_text_on_one_rank_and_video_on_the_other_do_not_wait_for_each_other(toy, tmp_path, zero3):
    """Under ZeRO-3 every rank has to call every module equally often: with a tower of its own, trained or frozen."""

    def run(rank):
        for model_type, frozen in RUNS:
            own = toy.of(model_type)
            samples = [own.sample(()), own.sample((3,), images=1, seed=1)]
            settings = TrainingSettings(
                **{**PLAIN, "frozen_parts": frozen, "max_steps": 1},
                micro_batch_size=1,
                zero_stage=3,
                deepspeed_config=zero3,
            )
            job = job_of(own, samples, frozen_parts=frozen)
            train(job, settings, tmp_path / f"{model_type}-{len(frozen)}")

    run_ranks(run, 2, tmp_path / "ranks")
    for model_type, frozen in RUNS:
        (line,) = log_of(tmp_path / f"{model_type}-{len(frozen)}")
        assert line["ar_targets"] > 0


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(toy, tmp_path):
    samples = [toy.sample((3,), seed=seed) for seed in range(8)]
    settings = TrainingSettings(
        **{**PLAIN, "max_steps": 4, "save_every": 2, "frozen_parts": []}, micro_batch_size=2, zero_stage=2
    )
    config = toy.autoregressive(weight_schedule="warmup", weight_warmup=0.75)

    def run(rank):
        whole, half = tmp_path / "whole", tmp_path / "half"
        job = job_of(toy, samples, frozen_parts=(), autoregressive_config=config)
        train(job, settings, whole)
        shutil.copytree(whole, half, ignore=shutil.ignore_patterns("checkpoint-4", "model"))
        return train(job, settings, half).global_step

    assert run_ranks(run, 1, tmp_path / "ranks") == [4]
    for part in ("model/model.safetensors", "model/autoregressive/model.safetensors"):
        whole = load_file(tmp_path / "whole" / part)
        for name, value in load_file(tmp_path / "half" / part).items():
            assert torch.equal(value, whole[name]), name
    for line, expected in zip(log_of(tmp_path / "half"), log_of(tmp_path / "whole"), strict=True):
        assert line["total_loss"] == expected["total_loss"]
    shares = [line["autoregressive_loss"] / line["autoregressive_loss_raw"] for line in log_of(tmp_path / "whole")]
    assert shares == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    for path in (tmp_path / "whole").rglob("*states.pt"):
        assert "teacher" not in str(torch.load(path, weights_only=False).keys())
    stored = torch.load(next((tmp_path / "whole").rglob("mp_rank_00_model_states.pt")), weights_only=False)
    assert set(stored["module"]) == set(toy.model(frozen_parts=()).state_dict())


def two_scale_log() -> VideoLossLog:
    return VideoLossLog(Alone(), 1.0, AutoregressiveConfig(enable_multiscale_pooling=True))


def log_a_step(log: VideoLossLog, weight: float) -> dict[str, float]:
    """Log a step whose main loss is 2 and whose reconstruction loss, before its weight, is 1."""
    terms = LossTerms()
    terms.add("main", torch.tensor(8.0), 4)
    for name, total in (
        ("autoregressive/stride1", 3.0),
        ("autoregressive/stride2", 1.0),
        ("autoregressive_copy", 6.0),
    ):
        terms.add(name, torch.tensor(total), 2)
    log.weight = weight
    log.note_batch(6, [2.0, 4.0])
    log.add(torch.tensor(0.0), terms, None)
    return log.drain()[0]


def test_a_weight_that_rises_between_two_lines_counts_step_by_step():
    log = VideoLossLog(Alone(), 1.0, AutoregressiveConfig())
    total, weights, errors = 0.0, (0.1, 0.2, 0.3), (1.0, 5.0, 3.0)
    for weight, error in zip(weights, errors, strict=True):
        terms = LossTerms()
        terms.add("main", torch.tensor(8.0), 4)
        terms.add("autoregressive", torch.tensor(2 * error), 2, weight)
        terms.add("autoregressive_copy", torch.tensor(6.0), 2, 0.0)
        log.weight = weight
        log.add(terms.weighted_total(), terms, None)
        total += 2.0 + weight * error
    values, _ = log.drain()
    assert values["total_loss"] == pytest.approx(values["loss/total"]) == pytest.approx(total / 3)
    assert values["autoregressive_loss"] == pytest.approx((0.1 + 1.0 + 0.9) / 3)
    assert values["autoregressive_loss_raw"] == pytest.approx(3.0)
    assert not any("weighted" in name for name in values)


def test_a_ratio_that_is_unusual_is_said_once(caplog):
    log = two_scale_log()
    for _ in range(JUDGED_LINES.start - 1):
        log_a_step(log, 0.1)
    for weight, expected in ((0.1, 0), (2.0, 1), (2.0, 1)):
        values = log_a_step(log, weight)
        assert values["autoregressive_loss_raw"] == pytest.approx((1.5 + 0.5) / 2)
        assert values["total_loss"] == pytest.approx(2.0 + weight)
        assert values["ar_skill"] == pytest.approx(1 - 1.5 / 3.0)
        assert (values["ar_targets"], values["decode_ms"]) == (2.0, 3.0)
        assert caplog.text.count("change loss_weight") == expected
    assert log.drain()[0] == {}


def test_a_ratio_is_judged_neither_at_the_start_nor_once_the_answers_are_learned(caplog):
    log = two_scale_log()
    for line in range(1, JUDGED_LINES.stop + 3):
        log_a_step(log, 0.1 if line in JUDGED_LINES else 2.0)
    assert "change loss_weight" not in caplog.text
