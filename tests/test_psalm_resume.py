"""Runs of `psalm train` that must be equal to the bit on CPU: the same seed twice, and one that was killed."""

import json
import os
import signal

import pytest
import torch
from region_training.testing import start_ranks
from safetensors.torch import load_file
from transformers import TrainerCallback

pytestmark = pytest.mark.slow

VOLATILE = ("time/", "throughput/", "memory/")


class _KillAt(TrainerCallback):
    """Ends this process without a warning when a step has ended."""

    def __init__(self, step):
        self._step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def _killed(words, folder, step):
    """The exit code of the command on a forked rank that dies when a step has ended."""

    def run(rank):
        import psalm.train
        from psalm.cli import main

        plain = psalm.train.run_training

        def interrupted(job, settings, run_dir):
            job.callbacks = [*job.callbacks, _KillAt(step)]
            return plain(job, settings, run_dir)

        psalm.train.run_training = interrupted  # in this fork alone
        return main(words)

    (outcome,) = start_ranks(run, 1, folder).wait(180.0)
    return outcome.exit_code


def _log(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(VOLATILE)} for line in lines]


def _assert_same_run(first, second):
    mine, other = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
    assert _log(first) == _log(second)
    for name in ("results.json", "predictions/predictions.jsonl", "parts.json"):
        assert (first / name).read_text() == (second / name).read_text(), name


def test_the_same_seed_gives_the_same_run_and_another_does_not(psalm_trained, psalm_small, psalm_commands, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    fewer = ("--training.max_steps", "1", "--evaluation.max_samples", "1", "--evaluation.baselines", "false")
    commands = [psalm_small.train(again), psalm_small.train(other, "--training.seed", "1", *fewer)]
    for code, output in psalm_commands(commands, tmp_path / "ranks"):
        assert code == 0, output
    _assert_same_run(psalm_trained, again)
    assert _log(other)[0]["loss/loss_mask"] != _log(again)[0]["loss/loss_mask"]


def test_killed_and_resumed_equals_uninterrupted(psalm_trained, psalm_small, psalm_commands, tmp_path):
    """Dropout, drop path, prompts, orders of classes and points all go on where they were, amid an epoch."""
    run = tmp_path / "run"
    words = psalm_small.train(run)
    assert _killed(words, tmp_path / "ranks", 3) == -signal.SIGKILL
    assert not (run / "model").exists()
    assert (run / "checkpoint-2" / "MANIFEST.json").is_file()
    assert [line["step"] for line in _log(run)] == [1, 2]
    ((code, output),) = psalm_commands([words], tmp_path / "ranks")
    assert code == 0, output
    assert "continuing from" in output
    assert "checkpoint-2" in output
    _assert_same_run(psalm_trained, run)
