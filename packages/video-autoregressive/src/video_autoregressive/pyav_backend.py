"""Decoding with PyAV, whose wheels bring FFmpeg along: works everywhere, with a seek only where it saves decoding."""

import bisect
from pathlib import Path

import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Int
from torch import Tensor

from video_autoregressive.errors import VideoDecodeError, VideoError
from video_autoregressive.frames import DecodedFrames, FrameChoice, VideoInfo, chosen_indices, new_frames, resize_frames
from video_autoregressive.packet_index import AV_FAILURES, IndexedVideo, open_indexed, packet_index


class PyavBackend:
    """Reads video files with PyAV, on one thread."""

    name = "pyav"

    def probe(self, path: str | Path) -> VideoInfo:
        """What the file holds; see `packet_index` for the errors."""
        return packet_index(path, self.name).info

    def frame_times(self, path: str | Path) -> Float[Tensor, " all"]:
        """Seconds of all frames after the first, in order of presentation."""
        return packet_index(path, self.name).times()

    def read(
        self, path: str | Path, wanted: Int[Tensor, " frames"] | FrameChoice, size: tuple[int, int] | None = None
    ) -> DecodedFrames:
        """Decode frames.

        Args:
            path: Video file.
            wanted: Strictly increasing indices in order of presentation, or what chooses them by the times of all
                frames.
            size: (height, width) to resize to; by default frames keep the size in which they are displayed.

        Raises:
            VideoError: The file cannot be read.
            VideoDecodeError: A frame is broken or missing.
        """
        video = open_indexed(path, self.name)
        with video.container:
            info, times = video.index.info, video.index.times()
            indices = chosen_indices(wanted, times, f"{path} ({self.name})")
            frames = self._decode(video, path, indices.tolist(), size or (info.height, info.width))
        return DecodedFrames(frames, times[indices], indices, info)

    def _decode(self, video: IndexedVideo, path: str | Path, wanted: list[int], size: tuple[int, int]) -> Tensor:
        frames = new_frames(len(wanted), size)
        reader = _Reader(video, path)
        try:
            for row, position in enumerate(wanted):
                frames[row] = resize_frames(reader.frame(position), size)[0]
        except VideoError:
            raise
        except AV_FAILURES as error:
            raise VideoDecodeError(path, self.name, f"cannot be read: {error}") from error
        return frames


class _Reader:
    """Hands out frames of an open file by index, in ascending order."""

    def __init__(self, video: IndexedVideo, path: str | Path) -> None:
        self._reformatter = VideoReformatter()  # one for all frames: making it takes as long as using it
        self._container, self._stream, self._index, self._path = video.container, video.stream, video.index, path
        self._frames = video.frames
        self._reached: int | None = None  # tick of the frame decoded last
        self._overshot = False  # whether the last run of frames began behind its target

    def frame(self, wanted: int) -> Tensor:
        """One frame as (1, 3, height, width), turned as displayed."""
        target = self._index.pts[wanted]
        try:
            frame = self._find(target)
        except AV_FAILURES as error:
            raise self._error(wanted, f"cannot be decoded: {error}") from error
        if frame is None:
            raise self._error(wanted, "the decoder does not return it")
        pixels = torch.from_numpy(self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        info = self._index.info
        if info.rotation:
            pixels = torch.rot90(pixels, info.rotation // 90)
        if tuple(pixels.shape[:2]) != (info.height, info.width):
            got = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
            raise self._error(wanted, f"got {got}, expected {info.width} x {info.height} as in the first frame")
        return pixels.permute(2, 0, 1)[None]

    def _find(self, target: int) -> VideoFrame | None:
        """The frame of a tick: decode on, or from the key frame before it where that is still ahead."""
        key = bisect.bisect_right(self._index.keys, target) - 1
        begun = self._reached is not None
        if (begun and self._index.keys[key] <= self._reached) or (not begun and key == 0):
            return self._decode_to(target)
        # Some demuxers seek past the place asked for (MPEG-TS, open groups of HEVC): then go further back.
        for earlier in range(key, -1, -1):
            self._container.seek(self._index.keys[earlier], stream=self._stream)
            self._frames, self._reached = self._container.decode(self._stream), None
            frame = self._decode_to(target)
            if frame is not None or not self._overshot:
                return frame
        return None

    def _decode_to(self, target: int) -> VideoFrame | None:
        first = True
        for frame in self._frames:
            self._reached = frame.pts
            self._overshot = first and frame.pts is not None and frame.pts > target
            if frame.pts is None or frame.pts >= target:
                return frame if frame.pts == target else None
            first = False
        self._overshot = first
        return None

    def _error(self, wanted: int, reason: str) -> VideoDecodeError:
        time_s = (self._index.pts[wanted] - self._index.pts[0]) * self._index.time_base_s
        return VideoDecodeError(self._path, PyavBackend.name, reason, wanted, time_s)
