"""A run of the real command that was killed or told to stop, continued by the same command: equal to the bit on CPU."""

import os
import shutil
import signal

import pytest
import torch

FILES = ("results.json", "answers.jsonl", "parts.json")


def _done(outcomes):
    assert [outcome.result for outcome in outcomes] == [0] * len(outcomes), "\n".join(
        f"{outcome.error}\n{outcome.output}" for outcome in outcomes
    )
    return outcomes[0].output


@pytest.fixture(scope="module")
def killed(small, train_ranks, tmp_path_factory):
    """A run that died in step 3, after the checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("killed")
    outcomes = train_ranks("spatialrgpt", small.train(folder / "run"), folder / "ranks", at=(3, signal.SIGKILL))
    assert [outcome.exit_code for outcome in outcomes] == [-signal.SIGKILL]
    assert not (folder / "run" / "model").exists()
    assert (folder / "run" / "checkpoint-2" / "MANIFEST.json").is_file()
    return folder / "run"


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(trained, killed, small, train_ranks, assert_same_run, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    output = _done(train_ranks("spatialrgpt", small.train(tmp_path / "run"), tmp_path / "ranks"))
    assert "continuing from" in output
    assert_same_run(trained, tmp_path / "run", *FILES)


@pytest.mark.slow
def test_zero3_on_two_ranks_killed_and_resumed_equals_uninterrupted(small, train_ranks, assert_same_run, tmp_path):
    changes = ("--training.zero_stage", "3", "--training.micro_batch_size", "2")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _done(train_ranks("spatialrgpt", small.train(whole, *changes), tmp_path / "ranks", world_size=2))
    outcomes = train_ranks(
        "spatialrgpt", small.train(cut, *changes), tmp_path / "ranks", world_size=2, at=(3, signal.SIGKILL)
    )
    assert [outcome.exit_code for outcome in outcomes] == [-signal.SIGKILL] * 2
    output = _done(train_ranks("spatialrgpt", small.train(cut, *changes), tmp_path / "ranks", world_size=2))
    assert "continuing from" in output
    assert_same_run(whole, cut, *FILES)


@pytest.mark.slow
def test_told_to_stop_it_saves_leaves_and_goes_on(trained, small, train_ranks, assert_same_run, tmp_path):
    words = small.train(tmp_path / "run")
    output = _done(train_ranks("spatialrgpt", words, tmp_path / "ranks", at=(1, signal.SIGTERM)))
    # The signal comes after the agreement of its own step, so the next step is the one that is saved.
    assert "stopped at step 2 of 4; run the same command to go on" in output
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "results.json").exists()
    _done(train_ranks("spatialrgpt", words, tmp_path / "ranks"))
    assert_same_run(trained, tmp_path / "run", *FILES)


class _Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.slow
def test_a_checkpoint_from_a_stranger_is_never_opened(killed, small, train_ranks, tmp_path):
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
    output = _done(train_ranks("spatialrgpt", small.train(run), tmp_path / "ranks"))
    assert "checkpoint-2 was not used" in output
    assert "checkpoint-9 was not used" in output
    assert not canary.exists()
    # The canary does sing where it is let loose.
    torch.save(_Canary(canary), tmp_path / "loose.pt")
    torch.load(tmp_path / "loose.pt", weights_only=False)
    assert canary.is_dir()
