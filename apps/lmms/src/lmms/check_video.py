"""One video decoded from end to end, in a process that may be killed and so must start fast: little is imported."""

from pathlib import Path

from video_autoregressive.backends import VideoBackend
from video_autoregressive.frames import VideoInfo
from video_autoregressive.loader import FrameSampling, read_clip

CHECK_SIZE = (64, 64)
"""Frames are thrown away; small ones take less memory."""


def check_video(backend: VideoBackend, path: Path, num_frames: int) -> VideoInfo:
    """Decode `num_frames` frames, spread over the whole video, and say what it is.

    Raises:
        VideoError: It cannot be decoded.
    """
    return read_clip(backend, path, FrameSampling(num_frames), CHECK_SIZE).info
