"""Features of frames that were seen before, from disk."""

import hashlib
import uuid
from pathlib import Path

import torch
from jaxtyping import Real
from torch import Tensor

from video_autoregressive.features import FrameFeatures
from video_autoregressive.teacher import Teacher


class CachedTeacher:
    """Remembers what a teacher said about each frame.

    A frame is known by its pixels, whatever video it comes from; the files of a teacher lie in a folder named by its
    fingerprint, so a teacher that changes starts anew. Ranks and loader processes may share a folder: files appear
    whole, and two that write the same frame write the same.

    Args:
        teacher: Asked for the frames that are not there.
        folder: Where features are kept, one file per frame.
    """

    kind = "cache"

    def __init__(self, teacher: Teacher, folder: Path | str) -> None:
        self.dim = teacher.dim
        self._teacher = teacher
        self._fingerprint = teacher.fingerprint()
        self._folder = Path(folder) / hashlib.blake2b(self._fingerprint.encode(), digest_size=8).hexdigest()

    def fingerprint(self) -> str:
        """That of the teacher whose features these are."""
        return self._fingerprint

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the teacher that is asked to the precision of a run; what is on disk stays as it was written."""
        self._teacher.cast(dtype)

    def encode(self, frames: Real[Tensor, "frames 3 height width"]) -> FrameFeatures:
        """Read the features of known frames, and encode and keep those of the others."""
        paths = [self._path(frame) for frame in frames]
        known = {path: _read(path, frames.device) for path in set(paths) if path.exists()}
        missing = {path: index for index, path in enumerate(paths) if path not in known}
        if missing:
            fresh = self._teacher.encode(frames[list(missing.values())])
            for path, rows, grid in zip(missing, fresh.split(), fresh.grids, strict=True):
                known[path] = FrameFeatures(rows, (grid,))
                _write(path, known[path])
        return FrameFeatures.concatenated([known[path] for path in paths])

    def _path(self, frame: Tensor) -> Path:
        """File of a frame, named by its pixels."""
        digest = hashlib.blake2b(f"{frame.dtype} {tuple(frame.shape)}".encode(), digest_size=16)
        digest.update(frame.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        name = digest.hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.pt"


def _read(path: Path, device: torch.device) -> FrameFeatures:
    stored = torch.load(path, map_location=device, weights_only=True)
    return FrameFeatures(stored["rows"], (tuple(stored["grid"]),))


def _write(path: Path, features: FrameFeatures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a disk may write the same frame in processes of the same number.
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    torch.save({"rows": features.rows.clone(), "grid": list(features.grids[0])}, partial)
    partial.replace(path)
