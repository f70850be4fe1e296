"""Manifests, the search for a sound checkpoint, and rotation, on folders written by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from region_training import checkpoints
from region_training.checkpoints import CheckpointError, Conditions, check_conditions, find_checkpoint, read_checkpoint
from region_training.settings import ConfigError

CONDITIONS = Conditions(
    world_size=2,
    seed=0,
    micro_batch_size=2,
    gradient_accumulation_steps=1,
    zero_stage=2,
    precision="bf16",
    num_samples=12,
    dataset_fingerprint="abc",
    frozen_parts=("tower",),
)
FILES = {"trainer_state.json": b'{"step": 1}', "latest": b"global_step1", "global_step1/rank_0.pt": bytes(range(256))}


def _write(run_dir: Path, step: int, identity: str = "me") -> Path:
    staged = checkpoints.new_staging(run_dir, checkpoints.checkpoint_name(step))
    for name, content in FILES.items():
        (staged / name).parent.mkdir(exist_ok=True)
        (staged / name).write_bytes(content + str(step).encode())
    files = checkpoints.hash_files(staged, checkpoints.list_files(staged), flush=True)
    final = run_dir / staged.name
    checkpoints.commit(staged, final, files=files, step=step, identity=identity, conditions=CONDITIONS)
    return final


def _damage(path: Path, kind: str, other: Path) -> None:
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "swapped":
        shutil.copy(other, path)
    else:
        path.unlink()


def test_what_was_written_is_read(tmp_path):
    folder = _write(tmp_path, 7)
    found = read_checkpoint(folder)
    assert (found.path, found.step, found.run_id) == (folder, 7, "me")
    check_conditions(found, CONDITIONS)
    assert set(checkpoints.list_files(folder)) == set(FILES)
    assert checkpoints.folder_bytes(folder) == sum(len(content) + 1 for content in FILES.values())


@pytest.mark.parametrize("kind", ["truncated", "flipped", "emptied", "deleted", "swapped"])
@pytest.mark.parametrize("name", [*FILES, checkpoints.MANIFEST])
def test_every_damage_of_every_file_falls_back(tmp_path, kind, name):
    good, newest = _write(tmp_path, 3), _write(tmp_path, 12)
    _damage(newest / name, kind, good / name)
    search = find_checkpoint(tmp_path, identity="me")
    assert search.found is not None
    assert search.found.step == 3
    assert list(search.skipped) == ["checkpoint-12"]
    # Another checkpoint's manifest is itself sound: then it is the files that do not fit.
    told = "rank_0.pt has 258 bytes" if (kind, name) == ("swapped", checkpoints.MANIFEST) else name
    assert told in search.skipped["checkpoint-12"]


def test_an_added_file_is_noticed(tmp_path):
    folder = _write(tmp_path, 1)
    (folder / "global_step1" / "extra.pt").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"global_step1/extra\.pt is not in the manifest"):
        read_checkpoint(folder)


def test_a_manifest_cannot_be_edited(tmp_path):
    folder = _write(tmp_path, 1)
    manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
    manifest["conditions"]["world_size"] = 1
    (folder / checkpoints.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        read_checkpoint(folder)


def test_folders_without_manifest_or_of_other_runs_are_skipped_with_a_reason(tmp_path):
    _write(tmp_path, 2)
    _write(tmp_path, 9, identity="somebody else")
    (tmp_path / "checkpoint-20").mkdir()
    _write(tmp_path, 4).rename(tmp_path / "checkpoint-30")
    (tmp_path / "checkpoint-final").mkdir()
    search = find_checkpoint(tmp_path, identity="me")
    assert search.found is not None
    assert search.found.step == 2
    assert "another run (somebody else)" in search.skipped["checkpoint-9"]
    assert "not complete" in search.skipped["checkpoint-20"]
    assert "says step 4" in search.skipped["checkpoint-30"]
    assert list(search.skipped) == ["checkpoint-30", "checkpoint-20", "checkpoint-9"]
    assert find_checkpoint(tmp_path / "nothing").found is None


def test_every_changed_condition_is_named(tmp_path):
    found = read_checkpoint(_write(tmp_path, 1))
    changes = {
        "world_size": 1,
        "seed": 3,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "zero_stage": 3,
        "precision": "fp32",
        "num_samples": 13,
        "dataset_fingerprint": "xyz",
        "frozen_parts": (),
    }
    for name, value in changes.items():
        with pytest.raises(ConfigError, match=f"{name} was .*, is now "):
            check_conditions(found, replace(CONDITIONS, **{name: value}))
    with pytest.raises(ConfigError) as caught:
        check_conditions(found, replace(CONDITIONS, **changes))
    assert all(f"{name} was" in str(caught.value) for name in changes)


def test_rotation_keeps_the_newest_by_step_and_leaves_other_runs(tmp_path):
    for step in (2, 10, 4, 30):
        _write(tmp_path, step)
    _write(tmp_path, 1, identity="somebody else")
    deleted = checkpoints.rotate(tmp_path, identity="me", keep=2)
    assert [path.name for path in deleted] == ["checkpoint-2", "checkpoint-4"]
    left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert left == ["checkpoint-1", "checkpoint-10", "checkpoint-30"]
    assert checkpoints.rotate(tmp_path, identity="me", keep=2) == []


def test_staging_is_emptied_and_a_stale_folder_of_the_same_name_replaced(tmp_path):
    stale = checkpoints.new_staging(tmp_path, "checkpoint-1") / "half"
    stale.write_text("half")
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "rubbish").write_text("rubbish")
    assert read_checkpoint(_write(tmp_path, 5)).step == 5
    assert not stale.exists()
    checkpoints.drop_staging(tmp_path)
    checkpoints.drop_staging(tmp_path)
    assert not (tmp_path / checkpoints.STAGING).exists()


def test_free_space_is_checked(tmp_path):
    checkpoints.check_free_space(tmp_path, needed_bytes=1)
    with pytest.raises(CheckpointError, match="GiB free, expected"):
        checkpoints.check_free_space(tmp_path, needed_bytes=1 << 60)


def test_run_id_lasts_until_renewed(tmp_path):
    first = checkpoints.run_id(tmp_path)
    assert checkpoints.run_id(tmp_path) == first
    assert checkpoints.run_id(tmp_path, renew=True) != first
    (tmp_path / "run_id").write_text("")
    assert len(checkpoints.run_id(tmp_path)) == 32
