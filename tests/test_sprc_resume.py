"""Runs of `sprc train` that must be equal to the bit on CPU: the same seed twice, and one that was killed."""

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
        import sprc.train
        from sprc.cli import main

        plain = sprc.train.run_training

        def interrupted(job, settings, run_dir):
            job.callbacks = [*job.callbacks, _KillAt(step)]
            return plain(job, settings, run_dir)

        sprc.train.run_training = interrupted  # in this fork alone
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
    for name in ("results.json", "retrieved.jsonl", "parts.json"):
        assert (first / name).read_text() == (second / name).read_text(), name


def test_the_same_seed_gives_the_same_run_and_another_does_not(sprc_trained, sprc_small, sprc_commands, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    commands = [sprc_small.train(again), sprc_small.train(other, "--training.seed", "1", "--training.max_steps", "1")]
    for code, output in sprc_commands(commands, tmp_path / "ranks"):
        assert code == 0, output
    _assert_same_run(sprc_trained, again)
    assert _log(other)[0]["loss/itc"] != _log(again)[0]["loss/itc"]


def test_killed_before_the_region_loss_set_in_and_resumed_equals_uninterrupted(
    sprc_trained, sprc_small, sprc_commands, tmp_path
):
    """The checkpoint is the last step of the first stage: the resumed run begins with the second."""
    run = tmp_path / "run"
    words = sprc_small.train(run)
    assert _killed(words, tmp_path / "ranks", 3) == -signal.SIGKILL
    assert not (run / "model").exists()
    assert (run / "checkpoint-2" / "MANIFEST.json").is_file()
    assert [line["step"] for line in _log(run)] == [1, 2]
    assert not any("loss/region" in line for line in _log(run))
    ((code, output),) = sprc_commands([words], tmp_path / "ranks")
    assert code == 0, output
    assert "continuing from" in output
    assert "checkpoint-2" in output
    _assert_same_run(sprc_trained, run)
