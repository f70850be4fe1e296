"""Runs of `lmms train` that must be equal to the bit on CPU: the same seed twice, one that was killed, one stopped."""

import json
import shutil
import signal

import pytest

pytestmark = pytest.mark.slow

FILES = ("results.json", "answers.jsonl", "parts.json", "teacher.json")
NO_CONTROLS = ("--evaluation.controls", "false", "--evaluation.max_records", "1")


def test_the_same_seed_gives_the_same_run_and_another_does_not(
    lmms_trained, lmms_small, lmms_commands, assert_same_run, log_of, tmp_path
):
    again, other = tmp_path / "again", tmp_path / "other"
    commands = [
        lmms_small.train(again),
        lmms_small.train(other, "--training.seed", "1", "--training.max_steps", "1", *NO_CONTROLS),
    ]
    for code, output in lmms_commands(commands, tmp_path / "ranks"):
        assert code == 0, output
    assert_same_run(lmms_trained, again, *FILES)
    mine, others = log_of(again)[0], log_of(other)[0]
    assert mine["main_loss"] != others["main_loss"]
    assert mine["autoregressive_loss"] != others["autoregressive_loss"]


@pytest.fixture(scope="module")
def killed(lmms_small, train_ranks, log_of, tmp_path_factory):
    """A run that died in step 3, in the second epoch, after the checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("lmms-killed")
    (outcome,) = train_ranks("lmms", lmms_small.train(folder / "run"), folder / "ranks", at=(3, signal.SIGKILL))
    assert outcome.exit_code == -signal.SIGKILL
    run = folder / "run"
    assert not (run / "model").exists()
    assert (run / "checkpoint-2" / "MANIFEST.json").is_file()
    assert [line["step"] for line in log_of(run)] == [1, 2]
    return run


def test_killed_and_resumed_equals_uninterrupted(
    lmms_trained, lmms_small, lmms_commands, killed, assert_same_run, tmp_path
):
    """The snapshot of the tower is none of the checkpoint's tensors: it is taken again, and is the same."""
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    ((code, output),) = lmms_commands([lmms_small.train(run)], tmp_path / "ranks")
    assert code == 0, output
    assert "continuing from" in output
    assert "checkpoint-2" in output
    assert_same_run(lmms_trained, run, *FILES)


def test_a_resumed_run_refuses_another_teacher(lmms_small, lmms_commands, killed, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    teacher = json.loads((run / "teacher.json").read_text())
    (run / "teacher.json").write_text(json.dumps({**teacher, "fingerprint": "another"}))
    ((code, output),) = lmms_commands([lmms_small.train(run)], tmp_path / "ranks")
    assert code == 1, output
    message = " ".join(output[output.rindex("lmms: ") :].split())
    assert "the teacher of this run has the fingerprint another" in message
    assert teacher["fingerprint"] in message
    assert "Traceback" not in output


def test_told_to_stop_it_saves_leaves_and_goes_on(
    lmms_trained, lmms_small, lmms_commands, train_ranks, assert_same_run, tmp_path
):
    run = tmp_path / "run"
    (outcome,) = train_ranks("lmms", lmms_small.train(run), tmp_path / "ranks", at=(1, signal.SIGTERM))
    assert outcome.result == 0, f"{outcome.error}\n{outcome.output}"
    # The signal comes after the agreement of its own step, so the next step is the one that is saved.
    assert "stopped at step 2 of 4; run the same command to go on" in outcome.output
    assert not (run / "model").exists()
    assert not (run / "process.json").exists()
    ((code, output),) = lmms_commands([lmms_small.train(run)], tmp_path / "ranks")
    assert code == 0, output
    assert_same_run(lmms_trained, run, *FILES)
