"""Runs of `sprc train` that must be equal to the bit on CPU: the same seed twice, and one that was killed."""

import signal

import pytest

pytestmark = pytest.mark.slow

FILES = ("results.json", "retrieved.jsonl", "parts.json")


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    sprc_trained, sprc_small, sprc_commands, assert_same_run, log_of, tmp_path
):
    again, other = tmp_path / "again", tmp_path / "other"
    commands = [sprc_small.train(again), sprc_small.train(other, "--training.seed", "1", "--training.max_steps", "1")]
    for code, output in sprc_commands(commands, tmp_path / "ranks"):
        assert code == 0, output
    assert_same_run(sprc_trained, again, *FILES)
    assert log_of(other)[0]["loss/itc"] != log_of(again)[0]["loss/itc"]


def test_killed_before_the_region_loss_set_in_and_resumed_equals_uninterrupted(
    sprc_trained, sprc_small, sprc_commands, train_ranks, assert_same_run, log_of, tmp_path
):
    """The checkpoint is the last step of the first stage: the resumed run begins with the second."""
    run = tmp_path / "run"
    words = sprc_small.train(run)
    (killed,) = train_ranks("sprc", words, tmp_path / "ranks", at=(3, signal.SIGKILL))
    assert killed.exit_code == -signal.SIGKILL
    assert not (run / "model").exists()
    assert (run / "checkpoint-2" / "MANIFEST.json").is_file()
    assert [line["step"] for line in log_of(run)] == [1, 2]
    assert not any("loss/region" in line for line in log_of(run))
    ((code, output),) = sprc_commands([words], tmp_path / "ranks")
    assert code == 0, output
    assert "continuing from" in output
    assert "checkpoint-2" in output
    assert_same_run(sprc_trained, run, *FILES)
