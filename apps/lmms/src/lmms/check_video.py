"""One video decoded, in a process that may be killed and so must start fast: little is imported.

A video is read in pieces, so that one of any length takes little memory, and a decoder that hangs is found soon.
"""

from pathlib import Path

import torch
from video_autoregressive.backends import VideoBackend
from video_autoregressive.frame_folder import FrameFolder
from video_autoregressive.frames import VideoInfo
from video_autoregressive.loader import FrameSampling

CHECK_SIZE = (64, 64)
"""Frames are thrown away; small ones take less memory."""
PIECE = 256
"""Frames decoded at once."""


def probe_video(reader: VideoBackend | FrameFolder, path: Path) -> VideoInfo:
    """What a video is.

    Raises:
        VideoError: It cannot be opened.
    """
    return reader.probe(path)


def check_piece(reader: VideoBackend | FrameFolder, path: Path, begin: int, num_frames: int) -> None:
    """Decode up to `PIECE` of the frames that are checked.

    Args:
        reader: Decodes the video.
        path: The video.
        begin: How many of the frames that are checked were decoded before.
        num_frames: Frames that are checked, spread over the whole video; 0 checks all.

    Raises:
        VideoError: One of them cannot be decoded.
    """
    times = reader.frame_times(path)
    checked = FrameSampling(num_frames).choose(times) if num_frames else torch.arange(len(times))
    reader.read(path, checked[begin : begin + PIECE], CHECK_SIZE)
