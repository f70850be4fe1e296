"""The files of a record: its videos, decoded and sampled, and its pictures.

Frames are decoded at the size of the model's frames, where it has one, and stay bytes.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import UInt8
from region_training.images import read_image
from region_training.records import resolve_under
from video_autoregressive.backends import BackendName, backend_of
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.loader import MultiScaleVideoFrameLoader, VideoClip

from lmms.config import DataSettings
from lmms.manifest import Manifest
from lmms.records import Record


@dataclass(frozen=True)
class RecordMedia:
    """What the files of a record hold.

    Attributes:
        clips: Sampled frames of its videos.
        images: Its pictures.
        decode_ms: Time that the videos took.
    """

    clips: tuple[VideoClip, ...] = ()
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()
    decode_ms: float = 0.0


@cache
def chosen_backend(name: BackendName) -> BackendName:
    """The decoder that a setting stands for; why `auto` is not torchcodec is said once per process in the log.

    Raises:
        ImportError: It cannot be used here.
    """
    return cast("BackendName", backend_of(name).name)


class MediaReader:
    """Reads the files of records.

    Args:
        settings: Where the files are, and how frames are drawn.
        frame_size: (height, width) that frames are decoded to; None decodes them as they are.
        autoregressive: Settings of the reconstruction loss, whose stream may decide which frames are drawn.
        manifest: What is known of the videos.
    """

    def __init__(
        self,
        settings: DataSettings,
        frame_size: tuple[int, int] | None,
        *,
        autoregressive: AutoregressiveConfig | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        self.settings = settings
        self.frame_size = frame_size
        self.manifest = manifest
        self.root = Path(settings.root)
        self.loader = MultiScaleVideoFrameLoader(
            chosen_backend(settings.backend),
            timeout_s=settings.decode_timeout_s,
            frame_folder_fps=settings.frame_folder_fps,
        )
        self._stream = autoregressive if autoregressive and autoregressive.stream == "recent_plus_global" else None

    @property
    def max_frames(self) -> int:
        """Most frames of a clip."""
        if self._stream is None:
            return self.settings.max_frames
        return min(self.settings.max_frames, self._stream.num_fast + self._stream.num_slow)

    def read(self, record: Record, where: str, max_frames: int | None = None) -> RecordMedia:
        """Decode the videos and read the pictures of a record.

        Args:
            record: Names the files.
            where: What to call it in errors.
            max_frames: Most frames of a clip; `self.max_frames` by default.

        Raises:
            ValueError: A file cannot be read, or a clip has too few frames; the message names record and file.
        """
        begin = time.perf_counter()
        clips = tuple(self.read_clip(name, where, max_frames or self.max_frames) for name in record.videos)
        decode_ms = 1000 * (time.perf_counter() - begin) if clips else 0.0
        return RecordMedia(clips, tuple(self.read_image(name, where) for name in record.images), decode_ms)

    def read_image(self, name: str, where: str) -> UInt8[np.ndarray, "_ _ 3"]:
        """Read one picture.

        Raises:
            ValueError: It cannot be read.
        """
        try:
            return read_image(resolve_under(self.root, name, "picture"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}, picture {name!r}: {error}") from error

    def read_clip(self, name: str, where: str, max_frames: int) -> VideoClip:
        """Decode one video.

        Raises:
            ValueError: It cannot be read, or has too few frames.
        """
        settings = self.settings
        try:
            path = resolve_under(self.root, name, "video")
            if self._stream is not None:
                clip = self._read_recent_and_global(path, self._stream, max_frames)
            else:
                clip = self.loader.load_clip(
                    path,
                    max_frames=max_frames,
                    sampling=settings.sampling,
                    fps=settings.fps,
                    sample_rate=settings.sample_rate,
                    size=self.frame_size,
                )
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}, video {name!r}: {error}") from error
        if len(clip.times) < settings.min_frames:
            raise ValueError(
                f"{where}, video {name!r}: got {len(clip.times)} frames, expected at least {settings.min_frames} "
                "(data.min_frames)"
            )
        return clip

    def most_frames(self, name: str) -> int:
        """Most frames that are drawn of a video, without opening it: no more than it has, where the manifest knows."""
        entry = None if self.manifest is None else self.manifest.entries.get(name)
        known = None if entry is None else entry.info
        return self.max_frames if known is None else min(self.max_frames, known.num_frames)

    def is_quarantined(self, record: Record) -> bool:
        """Whether the manifest says that a video of the record is bad.

        Raises:
            ValueError: A path leads out of the root.
        """
        if self.manifest is None:
            return False
        files = {name: resolve_under(self.root, name, "video") for name in record.videos}
        return any(self.manifest.is_bad(name, file) for name, file in files.items())

    def _read_recent_and_global(self, path: Path, stream: AutoregressiveConfig, max_frames: int) -> VideoClip:
        """The last frames of a video and some of all of it, in the configured proportion; at least one of each."""
        both = stream.num_fast + stream.num_slow
        drawn = min(max_frames, both)
        recent = max(1, stream.num_fast * drawn // both)
        spread = max(1, drawn - recent)
        return self.loader.load_clip(
            path,
            max_frames=recent + spread,
            sampling="recent_plus_global",
            num_fast=recent,
            fast_stride=stream.fast_stride,
            num_slow=spread,
            size=self.frame_size,
        )
