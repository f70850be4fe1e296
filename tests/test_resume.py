"""A run of the real command that was killed or told to stop, continued by the same command: equal to the bit on CPU."""

import json
import os
import shutil
import signal

import pytest
import torch
from region_training.testing import start_ranks
from safetensors.torch import load_file
from transformers import TrainerCallback

VOLATILE = ("time/", "throughput/", "memory/")


class _At(TrainerCallback):
    """Sends this process a signal when a step has ended."""

    def __init__(self, step, number):
        self._step, self._number = step, number

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self._step:
            os.kill(os.getpid(), self._number)


def _train(words, world_size, folder, at=None):
    """Outcomes of the command on forked ranks; `at` is the step that ends with a signal, and the signal."""

    def run(rank):
        import spatialrgpt.train
        from spatialrgpt.cli import main

        plain = spatialrgpt.train.run_training

        def interrupted(job, settings, run_dir):
            job.callbacks = [] if at is None else [_At(*at)]
            return plain(job, settings, run_dir)

        spatialrgpt.train.run_training = interrupted  # in this fork alone
        return main(words)

    return start_ranks(run, world_size, folder).wait(180.0)


def _log(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(VOLATILE)} for line in lines]


def _assert_same_run(first, second):
    mine, other = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name
    assert _log(first) == _log(second)
    for name in ("results.json", "answers.jsonl", "parts.json"):
        assert (first / name).read_text() == (second / name).read_text(), name


def _done(outcomes):
    assert [outcome.result for outcome in outcomes] == [0] * len(outcomes), "\n".join(
        f"{outcome.error}\n{outcome.output}" for outcome in outcomes
    )
    return outcomes[0].output


@pytest.fixture(scope="module")
def killed(small, tmp_path_factory):
    """A run that died in step 3, after the checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("killed")
    outcomes = _train(small.train(folder / "run"), 1, folder / "ranks", (3, signal.SIGKILL))
    assert [outcome.exit_code for outcome in outcomes] == [-signal.SIGKILL]
    assert not (folder / "run" / "model").exists()
    assert (folder / "run" / "checkpoint-2" / "MANIFEST.json").is_file()
    return folder / "run"


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(trained, killed, small, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    output = _done(_train(small.train(tmp_path / "run"), 1, tmp_path / "ranks"))
    assert "continuing from" in output
    _assert_same_run(trained, tmp_path / "run")


@pytest.mark.slow
def test_zero3_on_two_ranks_killed_and_resumed_equals_uninterrupted(small, tmp_path):
    changes = ("--training.zero_stage", "3", "--training.micro_batch_size", "2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _done(_train(small.train(whole, *changes), 2, tmp_path / "ranks"))
    outcomes = _train(small.train(cut, *changes), 2, tmp_path / "ranks", (3, signal.SIGKILL))
    assert [outcome.exit_code for outcome in outcomes] == [-signal.SIGKILL] * 2
    output = _done(_train(small.train(cut, *changes), 2, tmp_path / "ranks"))
    assert "continuing from" in output
    _assert_same_run(whole, cut)


@pytest.mark.slow
def test_told_to_stop_it_saves_leaves_and_goes_on(trained, small, tmp_path):
    words = small.train(tmp_path / "run")
    output = _done(_train(words, 1, tmp_path / "ranks", (1, signal.SIGTERM)))
    # The signal comes after the agreement of its own step, so the next step is the one that is saved.
    assert "stopped at step 2 of 4; run the same command to go on" in output
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    _done(_train(words, 1, tmp_path / "ranks"))
    _assert_same_run(trained, tmp_path / "run")


class _Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.slow
def test_a_checkpoint_from_a_stranger_is_never_opened(killed, small, tmp_path):
    """DeepSpeed's files are pickles, which run what stands in them: only what the manifest vouches for is read."""
    run, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(killed, run)
    victims = sorted((run / "checkpoint-2").rglob("*.pt"))
    assert victims
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-9")
    for victim in victims:
        torch.save(_Canary(canary), victim)
        torch.save(_Canary(canary), run / "checkpoint-9" / victim.relative_to(run / "checkpoint-2"))
    (run / "checkpoint-9" / "MANIFEST.json").unlink()
    output = _done(_train(small.train(run), 1, tmp_path / "ranks"))
    assert "checkpoint-2 was not used" in output
    assert "checkpoint-9 was not used" in output
    assert not canary.exists()
    # The canary does sing where it is let loose.
    torch.save(_Canary(canary), tmp_path / "loose.pt")
    torch.load(tmp_path / "loose.pt", weights_only=False)
    assert canary.is_dir()
