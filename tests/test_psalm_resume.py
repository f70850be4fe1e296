"""Runs of `psalm train` that must be equal to the bit on CPU: the same seed twice, and one that was killed."""

import signal

import pytest

pytestmark = pytest.mark.slow

FILES = ("results.json", "predictions/predictions.jsonl", "parts.json")


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    psalm_trained, psalm_small, psalm_commands, assert_same_run, log_of, tmp_path
):
    again, other = tmp_path / "again", tmp_path / "other"
    fewer = ("--training.max_steps", "1", "--evaluation.max_samples", "1", "--evaluation.baselines", "false")
    commands = [psalm_small.train(again), psalm_small.train(other, "--training.seed", "1", *fewer)]
    for code, output in psalm_commands(commands, tmp_path / "ranks"):
        assert code == 0, output
    assert_same_run(psalm_trained, again, *FILES)
    assert log_of(other)[0]["loss/loss_mask"] != log_of(again)[0]["loss/loss_mask"]


def test_killed_and_resumed_equals_uninterrupted(
    psalm_trained, psalm_small, psalm_commands, train_ranks, assert_same_run, log_of, tmp_path
):
    """Dropout, drop path, prompts, orders of classes and points all go on where they were, amid an epoch."""
    run = tmp_path / "run"
    words = psalm_small.train(run)
    (killed,) = train_ranks("psalm", words, tmp_path / "ranks", at=(3, signal.SIGKILL))
    assert killed.exit_code == -signal.SIGKILL
    assert not (run / "model").exists()
    assert (run / "checkpoint-2" / "MANIFEST.json").is_file()
    assert [line["step"] for line in log_of(run)] == [1, 2]
    ((code, output),) = psalm_commands([words], tmp_path / "ranks")
    assert code == 0, output
    assert "continuing from" in output
    assert "checkpoint-2" in output
    assert_same_run(psalm_trained, run, *FILES)
