"""Checkpoints that are whole or absent, and the search for the newest one that is sound.

A checkpoint is written to `.staging/`, listed with size and SHA-256 of every file in MANIFEST.json, flushed to the disk
and then renamed in one step: a folder named `checkpoint-<step>` is complete, whenever the process was killed. Resuming
reads a folder only after its manifest has verified, since DeepSpeed's own files are pickles: a checkpoint is code, and
one from a stranger must never be opened.

The manifest also holds what must stay the same for an exact continuation. The run folder must be one shared folder for
all ranks.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from region_training.settings import ConfigError

MANIFEST = "MANIFEST.json"
STAGING = ".staging"
_FORMAT = 1
_RUN_ID = "run_id"
_PREFIX = "checkpoint-"
_HASH_THREADS = 8


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or is damaged; the message names the folder and the file."""


@dataclass(frozen=True)
class Conditions:
    """What must not change between a checkpoint and its continuation.

    Attributes:
        world_size: Number of ranks; their optimizer states are partitioned by it.
        seed: Seed of the run.
        micro_batch_size: Samples per rank and micro-step.
        gradient_accumulation_steps: Micro-steps per step.
        zero_stage: Stage of the partitioning.
        precision: "bf16" or "fp32".
        num_samples: Size of the training data.
        dataset_fingerprint: Whatever tells the training data from other data; empty where the job gives none.
        frozen_parts: Names of the frozen parts, which have no optimizer state.
    """

    world_size: int
    seed: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    zero_stage: int
    precision: str
    num_samples: int
    dataset_fingerprint: str
    frozen_parts: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: Its folder.
        step: Optimizer steps it has behind it.
        run_id: The run that wrote it.
        conditions: The conditions it was written under, as plain values.
    """

    path: Path
    step: int
    run_id: str
    conditions: dict[str, object]


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Attributes:
        found: The newest sound checkpoint, or None.
        skipped: Folder name -> why it was not taken, for every newer one.
    """

    found: Checkpoint | None
    skipped: dict[str, str]


def checkpoint_name(step: int) -> str:
    """Return the folder name of a step's checkpoint."""
    return f"{_PREFIX}{step}"


def run_id(run_dir: Path, *, renew: bool = False) -> str:
    """Return the identity of the run in this folder, and write one if there is none.

    Args:
        run_dir: The run folder.
        renew: Begin another run in the same folder; the checkpoints of the former are then never taken.
    """
    path = run_dir / _RUN_ID
    if not renew and path.exists():
        known = path.read_text(encoding="utf-8").strip()
        if known:
            return known
    identity = uuid.uuid4().hex
    path.write_text(identity + "\n", encoding="utf-8")
    return identity


def find_checkpoint(run_dir: Path, *, identity: str | None = None) -> Search:
    """Find the newest sound checkpoint of a run.

    Args:
        run_dir: The run folder.
        identity: Take only checkpoints of this run; None takes any.

    Returns:
        The checkpoint, and the reason for every newer folder that was skipped.
    """
    skipped: dict[str, str] = {}
    for step, folder in sorted(_folders(run_dir), reverse=True):
        try:
            found = read_checkpoint(folder)
        except CheckpointError as error:
            skipped[folder.name] = str(error)
            continue
        if identity is not None and found.run_id != identity:
            skipped[folder.name] = f"it was written by another run ({found.run_id})"
        elif found.step != step:
            skipped[folder.name] = f"its manifest says step {found.step}; the folder was renamed"
        else:
            return Search(found, skipped)
    return Search(None, skipped)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Verify every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: A file is missing, was changed, or was added; the message names it.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
        found = Checkpoint(folder, int(manifest["step"]), str(manifest["run_id"]), dict(manifest["conditions"]))
        version = manifest["format"]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); the checkpoint is not complete") from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is no manifest: {error!r}") from error
    if version != _FORMAT:
        raise CheckpointError(f"{path} has format {version!r}, expected {_FORMAT}")
    if manifest.get("digest") != _manifest_digest(manifest):
        raise CheckpointError(f"{path} was changed after it was written")
    present = set(_files_under(folder))
    for what, names in (("missing", set(files) - present), ("not in the manifest", present - set(files))):
        if names:
            raise CheckpointError(f"{folder.name}: {sorted(names)[0]} is {what}")
    for name, (size, _) in files.items():
        actual = (folder / name).stat().st_size
        if actual != size:
            raise CheckpointError(f"{folder.name}: {name} has {actual} bytes, expected {size}")
    digests = hash_files(folder, sorted(files))
    for name, digest in digests.items():
        if digest != files[name]:
            raise CheckpointError(f"{folder.name}: the content of {name} was changed (SHA-256 differs)")
    return found


def check_conditions(found: Checkpoint, now: Conditions) -> None:
    """Refuse to continue under other conditions.

    Raises:
        ConfigError: Something changed; the message lists it, then and now.
    """
    changed = [
        f"{name} was {found.conditions.get(name)!r}, is now {value!r}"
        for name, value in _plain(now).items()
        if found.conditions.get(name) != value
    ]
    if changed:
        raise ConfigError(
            f"{found.path} cannot be continued exactly: {'; '.join(changed)}. Set it back, or begin anew in another "
            "run folder (or with training.resume=never)"
        )


def new_staging(run_dir: Path, name: str) -> Path:
    """Return an empty staging folder; what a killed process has left there is removed."""
    staging = run_dir / STAGING
    if staging.exists():
        shutil.rmtree(staging)
    (staging / name).mkdir(parents=True)
    return staging / name


def drop_staging(run_dir: Path) -> None:
    """Remove whatever is staged."""
    shutil.rmtree(run_dir / STAGING, ignore_errors=True)


def check_free_space(run_dir: Path, *, needed_bytes: int) -> None:
    """Refuse a save that the disk has no room for.

    Raises:
        CheckpointError: Less than `needed_bytes` are free.
    """
    free = shutil.disk_usage(run_dir).free
    if free < needed_bytes:
        raise CheckpointError(
            f"no checkpoint was written: {run_dir} has {free / 2**30:.2f} GiB free, expected "
            f"{needed_bytes / 2**30:.2f} GiB (twice a checkpoint). Earlier checkpoints are intact; free space and run "
            "the same command again"
        )


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum((folder / name).stat().st_size for name in _files_under(folder))


def hash_files(folder: Path, names: Sequence[str], *, flush: bool = False) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of files, several at a time.

    Args:
        folder: Where the files are.
        names: Paths below it.
        flush: Also wait until each file is on the disk.
    """

    def describe(name: str) -> tuple[int, str]:
        with (folder / name).open("rb") as file:
            if flush:
                os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), digest

    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        return dict(zip(names, pool.map(describe, names), strict=True))


def commit(
    staged: Path, final: Path, *, files: dict[str, tuple[int, str]], step: int, identity: str, conditions: Conditions
) -> None:
    """Turn a staged folder into a checkpoint; by one process, after all have written.

    Args:
        staged: The complete folder, its files flushed.
        final: Its name from now on.
        files: Size and SHA-256 of every file.
        step: Optimizer steps behind it.
        identity: The run.
        conditions: What must stay the same.
    """
    manifest: dict[str, object] = {
        "format": _FORMAT,
        "step": step,
        "run_id": identity,
        "conditions": _plain(conditions),
        "files": {name: list(entry) for name, entry in sorted(files.items())},
    }
    manifest["digest"] = _manifest_digest(manifest)
    with (staged / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for folder in [staged, *(path for path in staged.rglob("*") if path.is_dir())]:
        _flush_folder(folder)
    publish(staged, final)


def publish(staged: Path, final: Path) -> None:
    """Rename a staged folder; a former folder of that name is replaced."""
    if final.exists():
        # A damaged or foreign folder of the same name: a rename needs the place to be free.
        shutil.rmtree(final)
    staged.replace(final)
    _flush_folder(final.parent)


def rotate(run_dir: Path, *, identity: str, keep: int) -> list[Path]:
    """Delete all but the newest checkpoints of a run; those of other runs are left alone.

    Returns:
        The folders that were deleted.
    """
    own = [folder for _, folder in sorted(_folders(run_dir)) if _written_by(folder) == identity]
    surplus = own[:-keep] if keep < len(own) else []
    for folder in surplus:
        # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
        doomed = run_dir / STAGING / f"old-{folder.name}"
        doomed.parent.mkdir(exist_ok=True)
        folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return surplus


def _written_by(folder: Path) -> str | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _folders(run_dir: Path) -> list[tuple[int, Path]]:
    """Every folder with a checkpoint's name, with its step."""
    if not run_dir.is_dir():
        return []
    named = [(path.name.removeprefix(_PREFIX), path) for path in run_dir.glob(f"{_PREFIX}*") if path.is_dir()]
    return [(int(step), path) for step, path in named if step.isdecimal()]


def list_files(folder: Path) -> list[str]:
    """Return the paths of all files below a folder, sorted, without the manifest."""
    return sorted(_files_under(folder))


def _files_under(folder: Path) -> list[str]:
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / MANIFEST
    ]


def _plain(conditions: Conditions) -> dict[str, object]:
    """The conditions as JSON gives them back."""
    return json.loads(json.dumps(asdict(conditions)))


def _manifest_digest(manifest: dict[str, object]) -> str:
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
