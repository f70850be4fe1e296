"""A run that was killed, stopped, damaged or finished, and what the same command makes of it."""

import json
import os
import resource
import shutil
import signal
import time

import pytest
import torch
from region_training import checkpoints
from region_training.engine import train
from region_training.stopping import StopRequest
from region_training.testing import RankError, run_ranks, start_ranks

# Twelve records make epochs of three steps: step 4 lies inside epoch 2, step 6 at its edge.
NUM_SAMPLES = 12
BASE = {"max_steps": 8, "micro_batch_size": 2, "save_every": 2, "keep_checkpoints": 3}


def _log(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    volatile = ("time/", "throughput/", "memory/")
    return [{key: value for key, value in line.items() if not key.startswith(volatile)} for line in lines]


def _assert_same_run(toy, first, second, stage=2):
    """The exported weights, the fp32 master shards and every logged number are equal to the bit."""
    for name, value in toy.weights(first / "model").items():
        assert torch.equal(value, toy.weights(second / "model")[name]), name
    assert _log(first) == _log(second)
    if stage == 3:
        # The shards end with padding that nobody initialises: compare the master weights that they make up.
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as master_weights

        _assert_equal(*(master_weights(str(run / "checkpoint-8")) for run in (first, second)), "master weights")
        return
    shards = sorted(path.relative_to(first) for path in first.glob("checkpoint-8/global_step8/*.pt"))
    assert shards
    for shard in shards:
        mine, other = (torch.load(run / shard, weights_only=False) for run in (first, second))
        _assert_equal(mine, other, str(shard))


def _assert_equal(mine, other, where):
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other), where
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys(), where
        for key in mine:
            _assert_equal(mine[key], other[key], f"{where}.{key}")
    elif isinstance(mine, (list, tuple)):
        for index, pair in enumerate(zip(mine, other, strict=True)):
            _assert_equal(*pair, f"{where}[{index}]")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """The uninterrupted run of two ranks under ZeRO-2, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")

    def run(rank):
        train(toy.job(NUM_SAMPLES), toy.settings(**BASE), folder / "run")

    run_ranks(run, 2, folder / "ranks")
    return folder / "run"


def _cut(whole, run_dir, step):
    """A copy of the uninterrupted run as it was after `step`."""
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "model")
    for path in run_dir.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    return run_dir


def _go_on(toy, run_dir, world_size=2, job=None, **changes):
    def run(rank):
        result = train(job or toy.job(NUM_SAMPLES), toy.settings(**{**BASE, **changes}), run_dir)
        return result.global_step, result.stopped_by_signal, str(result.model_dir)

    return run_ranks(run, world_size, run_dir.parent / "ranks")


@pytest.mark.parametrize(
    ("stage", "precision", "killed_at"),
    [(0, "fp32", 5), (1, "fp32", 5), (2, "fp32", 7), (3, "fp32", 5), (1, "bf16", 5), (2, "bf16", 5), (3, "bf16", 7)],
)
def test_killed_and_resumed_equals_uninterrupted(toy, tmp_path, stage, precision, killed_at):
    settings = toy.settings(**BASE, zero_stage=stage, precision=precision, gradient_accumulation_steps=1)

    def run(rank, run_dir, killed_at):
        callbacks = [toy.At(killed_at, _die)] if killed_at else []
        train(toy.job(NUM_SAMPLES, callbacks=callbacks), settings, run_dir)

    run_ranks(run, 2, tmp_path / "ranks", tmp_path / "whole", 0)
    killed = start_ranks(run, 2, tmp_path / "ranks", tmp_path / "run", killed_at).wait()
    assert [outcome.exit_code for outcome in killed] == [-signal.SIGKILL] * 2
    assert not (tmp_path / "run" / "model").exists()
    run_ranks(run, 2, tmp_path / "ranks", tmp_path / "run", 0)
    _assert_same_run(toy, tmp_path / "whole", tmp_path / "run", stage)


def test_a_kill_inside_a_save_leaves_the_former_checkpoint(toy, whole, tmp_path, monkeypatch):
    run_dir = _cut(whole, tmp_path / "run", 4)
    true_commit = checkpoints.commit

    def die_before_the_rename(staged, final, **rest):
        if final.name == "checkpoint-6":
            (staged / checkpoints.MANIFEST).write_text('{"format": 1, "fil')
            _die()
        true_commit(staged, final, **rest)

    monkeypatch.setattr(checkpoints, "commit", die_before_the_rename)
    with pytest.raises(RankError):
        _go_on(toy, run_dir)
    monkeypatch.undo()
    assert (run_dir / checkpoints.STAGING / "checkpoint-6").is_dir()
    assert not (run_dir / "checkpoint-6").exists()
    _go_on(toy, run_dir)
    assert not (run_dir / checkpoints.STAGING).exists()
    _assert_same_run(toy, whole, run_dir)


@pytest.mark.parametrize("told", [(0,), (1,), (0, 1)])
def test_sigterm_to_any_rank_stops_all_and_the_rest_is_exact(toy, whole, tmp_path, told):
    def run(rank):
        def tell():
            if rank in told:
                time.sleep(0.05 * rank)
                os.kill(os.getpid(), signal.SIGTERM)

        result = train(toy.job(NUM_SAMPLES, callbacks=[toy.At(3, tell)]), toy.settings(**BASE), tmp_path / "run")
        return result.stopped_by_signal, result.global_step, result.model_dir

    # The callback comes after the agreement of its own step, so the next step is the one that is saved.
    assert run_ranks(run, 2, tmp_path / "ranks") == [(True, 4, None)] * 2
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    assert _go_on(toy, tmp_path / "run")[0][:2] == (8, False)
    _assert_same_run(toy, whole, tmp_path / "run")


def test_a_second_interrupt_ends_at_once(tmp_path):
    def run(rank, pause_s):
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(pause_s)
            os.kill(os.getpid(), signal.SIGINT)
            return str(stop.received)

    hasty = start_ranks(run, 1, tmp_path, 1.2).wait()
    assert hasty[0].exit_code == 128 + signal.SIGINT
    # A launcher passes the terminal's Ctrl-C on: two within a second are one.
    assert run_ranks(run, 1, tmp_path, 0.1) == [str(signal.SIGINT)]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy, whole, tmp_path, damage):
    """The file that DeepSpeed would load in silence with other weights."""
    run_dir = _cut(whole, tmp_path / "run", 6)
    victim = run_dir / "checkpoint-6" / "global_step6" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    if damage == "truncated":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "deleted":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    _go_on(toy, run_dir)
    output = "".join(path.read_text() for path in (tmp_path / "ranks").glob("*rank-0.log"))
    assert "checkpoint-6 was not used" in output
    assert victim.name in output
    _assert_same_run(toy, whole, run_dir)


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        ({}, 1, "world_size was 2, is now 1"),
        ({"seed": 1}, 2, "seed was 0, is now 1"),
        ({"gradient_accumulation_steps": 2}, 2, "gradient_accumulation_steps was 1, is now 2"),
        ({"zero_stage": 3}, 2, "zero_stage was 2, is now 3"),
    ],
)
def test_other_conditions_are_refused(toy, whole, tmp_path, changes, world_size, message):
    run_dir = _cut(whole, tmp_path / "run", 4)
    with pytest.raises(RankError, match=message):
        _go_on(toy, run_dir, world_size, **changes)


def test_other_data_is_refused(toy, whole, tmp_path):
    run_dir = _cut(whole, tmp_path / "run", 4)
    with pytest.raises(RankError, match="dataset_fingerprint was '', is now 'other'"):
        _go_on(toy, run_dir, job=toy.job(NUM_SAMPLES, dataset_fingerprint="other"))


def test_a_finished_run_is_only_exported_again(toy, whole, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "model")
    assert _go_on(toy, run_dir)[0][:2] == (8, False)
    _assert_same_run(toy, whole, run_dir)


def test_never_begins_anew_and_a_path_continues_from_there(toy, whole, tmp_path):
    run_dir = _cut(whole, tmp_path / "run", 6)
    _go_on(toy, run_dir, resume=str(run_dir / "checkpoint-4"))
    _assert_same_run(toy, whole, run_dir)
    before = checkpoints.run_id(run_dir)
    _go_on(toy, run_dir, resume="never", max_steps=2)
    assert checkpoints.run_id(run_dir) != before
    assert [line["step"] for line in _log(run_dir)] == [1, 2]
    # Its own checkpoint is taken from now on, not the higher numbers of the former run.
    assert _go_on(toy, run_dir, max_steps=3)[0][0] == 3


def test_a_damaged_checkpoint_that_was_asked_for_is_refused(toy, whole, tmp_path):
    run_dir = _cut(whole, tmp_path / "run", 6)
    (run_dir / "checkpoint-4" / "trainer_state.json").write_text("{}")
    with pytest.raises(RankError, match=r"trainer_state\.json has 2 bytes"):
        _go_on(toy, run_dir, resume=str(run_dir / "checkpoint-4"))


def test_old_checkpoints_are_deleted_and_no_pickled_arguments_are_left(whole):
    assert sorted(path.name for path in whole.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert not list(whole.rglob("training_args.bin"))
    # The weights are stored once: in DeepSpeed's files, not in a second copy beside them.
    assert not list(whole.glob("checkpoint-*/*.safetensors"))


@pytest.mark.parametrize("limit", [3_000, 12_000])
def test_a_full_disk_keeps_the_earlier_checkpoints(toy, whole, tmp_path, limit):
    run_dir = _cut(whole, tmp_path / "run", 4)

    def run(rank):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        def fill():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        train(toy.job(NUM_SAMPLES, callbacks=[toy.At(5, fill)]), toy.settings(**BASE), run_dir)

    outcomes = start_ranks(run, 2, tmp_path / "full").wait()
    assert all(outcome.exit_code not in (0, None) for outcome in outcomes)
    assert not (run_dir / "checkpoint-6").exists()
    found = checkpoints.find_checkpoint(run_dir)
    assert found.found is not None
    assert found.found.step == 4
    _go_on(toy, run_dir)
    for name, value in toy.weights(whole / "model").items():
        assert torch.equal(value, toy.weights(run_dir / "model")[name])


def test_a_last_evaluation_that_fails_costs_neither_checkpoint_nor_export(toy, tmp_path):
    run_dir, mended = tmp_path / "run", tmp_path / "mended"

    def evaluate(model, step):
        assert (run_dir / "model").is_dir()
        assert (run_dir / f"checkpoint-{step}").is_dir()
        if not mended.exists():
            raise ValueError("a held-out record cannot be read")
        return {"score": 1.0}

    def run(rank):
        def again():
            return train(toy.job(NUM_SAMPLES, evaluate=evaluate), toy.settings(**BASE), run_dir).metrics

        with pytest.raises(ValueError, match="a held-out record"):
            again()
        mended.touch()
        return [again(), again()]

    assert run_ranks(run, 1, tmp_path / "ranks") == [[{"score": 1.0}] * 2]
    assert [line["step"] for line in _log(run_dir) if "eval/score" in line] == [8]
