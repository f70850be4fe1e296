"""Clips for models: frames of a video file, of a folder of pictures or of a tensor, with their times.

`MultiScaleVideoFrameLoader` has the guide's two calls, and `load_clip` beneath them, which says which frames it took
and when they are shown. A video that cannot be read is an error (`errors.py`), never noise, zeros or copies of a frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from video_autoregressive.backends import BackendName, VideoBackend, backend_of
from video_autoregressive.config import PoolMode
from video_autoregressive.errors import VideoEmptyError
from video_autoregressive.frame_folder import FrameFolder
from video_autoregressive.frames import DecodedFrames, VideoInfo, resize_frames
from video_autoregressive.isolation import DecodeWorker
from video_autoregressive.pooling import spatial_pool
from video_autoregressive.sampling import (
    is_constant_rate,
    sample_fps,
    sample_recent_plus_global,
    sample_stride,
    sample_uniform,
)

Sampling = Literal["uniform", "fps", "stride", "recent_plus_global"]

SCALE_FACTORS = (1.0, 0.75, 0.5)
"""The guide's scales."""


@dataclass(frozen=True)
class VideoClip:
    """Some frames of a video, in order of time, each once.

    Attributes:
        frames: RGB, 0 to 255, turned as displayed.
        times: Seconds since the first frame of the video, strictly increasing.
        indices: Which frames of the video these are, in order of presentation.
        valid: False for frames that only fill up a batch; a loaded clip has none.
        info: The video.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    times: Float[Tensor, " frames"]
    indices: Int[Tensor, " frames"]
    valid: Bool[Tensor, " frames"]
    info: VideoInfo


@dataclass(frozen=True)
class FrameSampling:
    """Which frames are taken; see `sampling` for each rule.

    Attributes:
        max_frames: Most frames of a clip.
        sampling: The rule.
        fps: Frames per second with `fps`.
        sample_rate: Distance in frames with `stride`.
        num_fast: Recent frames with `recent_plus_global`.
        fast_stride: Their distance in frames.
        num_slow: Frames of the whole video with `recent_plus_global`.
    """

    max_frames: int
    sampling: Sampling = "uniform"
    fps: float = 1.0
    sample_rate: int = 1
    num_fast: int = 8
    fast_stride: int = 1
    num_slow: int = 8

    def __post_init__(self) -> None:
        """Refuse a rule that may take more than `max_frames`."""
        if self.sampling == "recent_plus_global" and self.num_fast + self.num_slow > self.max_frames:
            raise ValueError(
                f"max_frames: got {self.max_frames}, expected at least num_fast + num_slow "
                f"({self.num_fast} + {self.num_slow}) with sampling 'recent_plus_global'"
            )

    def choose(self, times: Float[Tensor, " all"]) -> Int[Tensor, " frames"]:
        """The frames of a video whose frames have these times."""
        if self.sampling == "uniform":
            return sample_uniform(times, self.max_frames)
        if self.sampling == "fps":
            return sample_fps(times, self.fps, self.max_frames)
        if self.sampling == "stride":
            return sample_stride(len(times), self.sample_rate, self.max_frames)
        return sample_recent_plus_global(times, self.num_fast, self.fast_stride, self.num_slow)


class MultiScaleVideoFrameLoader:
    """Loads clips.

    Args:
        backend: Decoder of video files: `auto` is torchcodec where its libraries are, else PyAV.
        timeout_s: A file that takes longer to read is an error. Files are then read in a process of their own, which is
            killed and started again. 0 reads here, without a limit.
        frame_folder_fps: Frames per second of folders of pictures, and of tensors without times.
        patch_multiple: Sizes of the scales are multiples of this: the patch of the vision tower.
    """

    def __init__(
        self,
        backend: BackendName = "auto",
        timeout_s: float = 0.0,
        frame_folder_fps: float = 1.0,
        patch_multiple: int = 14,
    ) -> None:
        if timeout_s < 0:
            raise ValueError(f"timeout_s: got {timeout_s}, expected 0 (no limit) or more seconds")
        if patch_multiple < 1:
            raise ValueError(f"patch_multiple: got {patch_multiple}, expected 1 or more pixels")
        self.backend = backend_of(backend)
        self.folder = FrameFolder(frame_folder_fps)
        self.patch_multiple = patch_multiple
        self._worker = DecodeWorker(timeout_s) if timeout_s else None

    def load_clip(
        self,
        source: str | Path | Tensor,
        *,
        max_frames: int,
        sampling: Sampling = "uniform",
        fps: float = 1.0,
        sample_rate: int = 1,
        num_fast: int = 8,
        fast_stride: int = 1,
        num_slow: int = 8,
        size: tuple[int, int] | None = None,
        times: Float[Tensor, " all"] | None = None,
    ) -> VideoClip:
        """Load some frames of a video.

        Args:
            source: Video file, folder of pictures, or frames that are there already: bytes of shape (T, 3, H, W).
            max_frames: Most frames; a shorter video gives the frames it has, none twice.
            sampling: Which frames: `uniform` spreads them over time, `fps` takes `fps` per second, `stride` every
                `sample_rate`-th, `recent_plus_global` the last `num_fast` and `num_slow` of the whole video.
            fps: Frames per second with `fps`.
            sample_rate: Distance in frames with `stride`.
            num_fast: Recent frames with `recent_plus_global`.
            fast_stride: Their distance in frames.
            num_slow: Frames of the whole video with `recent_plus_global`.
            size: (height, width) to resize to; by default frames keep their size.
            times: Times in seconds of the frames of a tensor; by default they are `frame_folder_fps` per second apart.

        Raises:
            VideoError: The video cannot be read; path, backend and, where one is to blame, the frame are named.
            ValueError: A tensor has another type or shape.
        """
        rule = FrameSampling(max_frames, sampling, fps, sample_rate, num_fast, fast_stride, num_slow)
        if isinstance(source, Tensor):
            return _clip_of_tensor(source, times, self.folder.fps, rule, size)
        if times is not None:
            raise ValueError(f"times: got some for {source}, expected them with a tensor of frames only")
        backend = self.folder if Path(source).is_dir() else self.backend
        if self._worker is None:
            return read_clip(backend, source, rule, size)
        return self._worker.run(source, backend.name, read_clip, backend, source, rule, size)

    def load_video_frames(
        self,
        video_path: str | Path | Tensor,
        max_frames: int = 8,
        sample_rate: int = 1,
        target_size: tuple[int, int] = (224, 224),
        enable_multiscale: bool = False,
        scale_factors: Sequence[float] | None = None,
    ) -> Float[Tensor, "frames 3 height width"] | list[Float[Tensor, "frames 3 _ _"]]:
        """The guide's call: every `sample_rate`-th frame, or `max_frames` spread evenly where that would be more.

        Args:
            video_path: Video file, folder of pictures, or frames as bytes of shape (T, 3, H, W).
            max_frames: Most frames.
            sample_rate: Distance in frames, not in time.
            target_size: (height, width); the aspect ratio is not kept.
            enable_multiscale: Return the frames at several sizes, decoded once.
            scale_factors: Factors on `target_size`; by default 1, 0.75 and 0.5.

        Returns:
            RGB in 0 to 1, not normalised; a list with one tensor per scale if `enable_multiscale`. Sizes of scales are
            rounded to `patch_multiple`, at least one patch; those that become equal are returned once.

        Raises:
            VideoError: The video cannot be read.
            ValueError: A tensor has another type or shape.
        """
        height, width = target_size
        size = None if enable_multiscale else (height, width)
        clip = self.load_clip(video_path, max_frames=max_frames, sampling="stride", sample_rate=sample_rate, size=size)
        if not enable_multiscale:
            return clip.frames.float() / 255
        factors = SCALE_FACTORS if scale_factors is None else scale_factors
        sizes = scaled_sizes((height, width), factors, self.patch_multiple)
        return [resize_frames(clip.frames, size).float() / 255 for size in sizes]

    def apply_spatial_pooling(
        self,
        video_features: Float[Tensor, "frames patches dim"],
        stride: int = 2,
        mode: PoolMode = "average",
        grid: tuple[int, int] | None = None,
    ) -> Float[Tensor, "frames pooled dim"]:
        """The guide's call: pool the features of every frame on their grid; see `pooling.spatial_pool`.

        Args:
            video_features: Patches row by row, without class or register tokens.
            stride: Side of the square that becomes one patch.
            mode: How; `average` and `max` round down, `bilinear` rounds up.
            grid: (height, width) of the patches; by default they are taken to be a square.

        Raises:
            ValueError: No grid was given and the patches are no square, or the grid is not theirs.
        """
        if grid is None:
            count = video_features.shape[1]
            side = math.isqrt(count)
            if side * side != count:
                raise ValueError(
                    f"got {count} patches per frame, which are no square: give their grid (height, width), "
                    "and leave class and register tokens out"
                )
            grid = (side, side)
        return spatial_pool(video_features, grid, stride, mode)


def read_clip(
    backend: VideoBackend | FrameFolder, source: str | Path, rule: FrameSampling, size: tuple[int, int] | None
) -> VideoClip:
    """Choose frames of a video file or folder by their times, and read them.

    Args:
        backend: What reads it.
        source: File or folder.
        rule: Which frames.
        size: (height, width) to resize to, or None.

    Raises:
        VideoError: The video cannot be read.
    """
    return _clip(backend.read(source, rule.choose, size))


def scaled_sizes(size: tuple[int, int], factors: Sequence[float], multiple: int) -> list[tuple[int, int]]:
    """Sizes in pixels of the scales of a size: rounded to the nearest `multiple`, at least one, equal ones once.

    Args:
        size: (height, width) at factor 1.
        factors: Factors above 0.
        multiple: Patch of the vision tower, in pixels.
    """
    for factor in factors:
        if not factor > 0:
            raise ValueError(f"scale_factors: got {factor}, expected factors above 0")

    def scaled(side: int, factor: float) -> int:
        return max(1, round(side * factor / multiple)) * multiple

    height, width = size
    return list(dict.fromkeys((scaled(height, factor), scaled(width, factor)) for factor in factors))


def _clip(decoded: DecodedFrames) -> VideoClip:
    valid = torch.ones(len(decoded.indices), dtype=torch.bool)
    return VideoClip(decoded.frames, decoded.times, decoded.indices, valid, decoded.info)


def _clip_of_tensor(
    frames: Tensor,
    times: Float[Tensor, " all"] | None,
    fps: float,
    rule: FrameSampling,
    size: tuple[int, int] | None,
) -> VideoClip:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        hint = "; frames in 0 to 1 become such bytes by (255 * frames).round().byte()"
        raise ValueError(
            f"frames: got a {frames.dtype} tensor of shape {tuple(frames.shape)}, expected torch.uint8 of shape "
            f"(T, 3, H, W), RGB in 0 to 255{hint if frames.is_floating_point() else ''}"
        )
    count = len(frames)
    if not count:
        raise VideoEmptyError("frames", "tensor", "got no frames")
    times = torch.arange(count, dtype=torch.float64) / fps if times is None else times.double()
    if len(times) != count or not bool((times.diff() > 0).all()):
        raise ValueError(f"times: got {times.tolist()}, expected {count} strictly increasing times in seconds")
    gap_s = (times[-1] - times[0]).item() / (count - 1) if count > 1 else 1 / fps
    info = VideoInfo(
        num_frames=count,
        fps=1 / gap_s,
        duration_s=count * gap_s,
        width=frames.shape[3],
        height=frames.shape[2],
        rotation=0,
        codec="raw",
        is_vfr=not is_constant_rate(times),
        kind="tensor",
    )
    indices = rule.choose(times)
    chosen = frames[indices] if size is None else resize_frames(frames[indices], size)
    return _clip(DecodedFrames(chosen, times[indices] - times[0], indices, info))
