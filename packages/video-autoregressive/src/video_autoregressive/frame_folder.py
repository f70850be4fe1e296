"""Videos that are stored as a folder of pictures, one per frame, as some datasets ship them."""

import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from video_autoregressive.errors import VideoDecodeError, VideoEmptyError, VideoOpenError
from video_autoregressive.frames import DecodedFrames, FrameChoice, VideoInfo, chosen_indices, resize_frames

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Pictures; other files in the folder are passed over."""


class FrameFolder:
    """Reads folders of pictures.

    Frames are in the order of their names, in which numbers count as numbers: `frame_2.jpg` comes before
    `frame_10.jpg`.

    Args:
        fps: Frames per second, which a folder does not say.
    """

    name = "folder"

    def __init__(self, fps: float = 1.0) -> None:
        if not fps > 0:
            raise ValueError(f"fps of a frame folder: got {fps}, expected a rate above 0")
        self.fps = fps

    def probe(self, path: str | Path) -> VideoInfo:
        """What the folder holds; the size is that of the first picture.

        Raises:
            VideoOpenError: No such folder.
            VideoEmptyError: No pictures in it.
            VideoDecodeError: The first picture cannot be read.
        """
        return self._info(path, self._files(path))

    def frame_times(self, path: str | Path) -> Float[Tensor, " all"]:
        """Seconds of all frames after the first."""
        return self._times(self._files(path))

    def read(
        self, path: str | Path, wanted: Int[Tensor, " frames"] | FrameChoice, size: tuple[int, int] | None = None
    ) -> DecodedFrames:
        """Read frames.

        Args:
            path: Folder.
            wanted: Strictly increasing positions in the order of names, or what chooses them by the times of all
                pictures.
            size: (height, width) to resize to; by default all pictures must have one size.

        Raises:
            VideoOpenError: No such folder.
            VideoEmptyError: No pictures in it.
            VideoDecodeError: The first picture or one of those cannot be read, or has another size than the first that
                was asked for.
        """
        files = self._files(path)
        info, times = self._info(path, files), self._times(files)
        indices = chosen_indices(wanted, times, f"{path} ({self.name})")
        frames: list[Tensor] = []
        for position in indices.tolist():
            pixels = torch.from_numpy(self._picture(path, files, position)).permute(2, 0, 1)[None]
            frame = pixels if size is None else resize_frames(pixels, size)
            if frames and frame.shape != frames[0].shape:
                got, expected = (f"{shape[-1]} x {shape[-2]}" for shape in (frame.shape, frames[0].shape))
                reason = f"{files[position].name} is {got} pixels, expected {expected} as in the first; give a size"
                raise VideoDecodeError(path, self.name, reason, position, position / self.fps)
            frames.append(frame)
        empty = torch.zeros(0, 3, *(size or (1, 1)), dtype=torch.uint8)
        return DecodedFrames(torch.cat(frames) if frames else empty, times[indices], indices, info)

    def _info(self, path: str | Path, files: list[Path]) -> VideoInfo:
        height, width = self._picture(path, files, 0).shape[:2]
        return VideoInfo(
            num_frames=len(files),
            fps=self.fps,
            duration_s=len(files) / self.fps,
            width=width,
            height=height,
            rotation=0,
            codec=files[0].suffix[1:].lower(),
            is_vfr=False,
            kind="folder",
        )

    def _times(self, files: list[Path]) -> Float[Tensor, " all"]:
        return torch.arange(len(files), dtype=torch.float64) / self.fps

    def _files(self, path: str | Path) -> list[Path]:
        folder = Path(path)
        if not folder.is_dir():
            raise VideoOpenError(path, self.name, "expected a folder of pictures")
        files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
        if not files:
            raise VideoEmptyError(path, self.name, f"no pictures, expected files that end in {', '.join(SUFFIXES)}")
        return sorted(files, key=_natural)

    def _picture(self, path: str | Path, files: list[Path], position: int) -> np.ndarray:
        try:
            with Image.open(files[position]) as picture:
                return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = f"{files[position].name} cannot be read: {error}"
            raise VideoDecodeError(path, self.name, reason, position, position / self.fps) from error


def _natural(file: Path) -> list[tuple[int, str]]:
    """Key by which numbers in names count as numbers."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
