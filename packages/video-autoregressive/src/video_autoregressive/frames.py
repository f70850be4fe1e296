"""What backends say about a video, and what they return."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

FrameChoice = Callable[[Float[Tensor, " all"]], Int[Tensor, " frames"]]
"""Chooses frames by the times of all frames, in seconds after the first: strictly increasing indices."""


@dataclass(frozen=True)
class VideoInfo:
    """A video, without its frames.

    Attributes:
        num_frames: Frames that are presented; preroll that a cut keeps but does not show is not counted.
        fps: Frames per second, on average.
        duration_s: From the beginning of the first frame to the end of the last, in seconds.
        width: Width in pixels, as displayed: after the rotation.
        height: Height in pixels, as displayed.
        rotation: Degrees counter-clockwise by which stored frames are turned for display: 0, 90, 180 or 270. Frames are
            always returned turned.
        codec: Name of the codec (`h264`, `av1`), of the picture format (`jpg`), or `raw`.
        is_vfr: Whether the distance of frames in time varies by more than rounding.
        kind: A video file, a folder of pictures, or a tensor of frames.
    """

    num_frames: int
    fps: float
    duration_s: float
    width: int
    height: int
    rotation: int
    codec: str
    is_vfr: bool
    kind: Literal["file", "folder", "tensor"]


@dataclass(frozen=True)
class DecodedFrames:
    """Frames of a video.

    Attributes:
        frames: RGB, 0 to 255, turned as displayed. In memory the channels of a pixel stand together, as decoders write
            them (`torch.channels_last`).
        times: Seconds since the first frame of the video, strictly increasing.
        indices: Which frames these are, in order of presentation.
        info: The video that they are of.
    """

    frames: UInt8[Tensor, "frames 3 height width"]
    times: Float[Tensor, " frames"]
    indices: Int[Tensor, " frames"]
    info: VideoInfo


def resize_frames(
    frames: UInt8[Tensor, "frames 3 height width"], size: tuple[int, int]
) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """Resize frames to (height, width), bicubic with antialiasing, whatever their aspect ratio was.

    That is how the processors of the usual vision encoders (SigLIP, CLIP) resize pictures. The same function for every
    backend, so that pixels do not depend on which one decoded.
    """
    if tuple(frames.shape[-2:]) == size:
        return frames
    if not len(frames):
        return frames.new_zeros(0, 3, *size)
    return F.interpolate(frames, size=size, mode="bicubic", antialias=True)


def new_frames(count: int, size: tuple[int, int]) -> UInt8[Tensor, "frames 3 height width"]:
    """Room for frames of (height, width), laid out as decoders write them."""
    return torch.empty(count, 3, *size, dtype=torch.uint8, memory_format=torch.channels_last)


def chosen_indices(
    wanted: Int[Tensor, " frames"] | FrameChoice, times: Float[Tensor, " all"], where: str
) -> Int[Tensor, " frames"]:
    """The indices that are wanted of a video whose frames have these times.

    Raises:
        IndexError: An index is below 0, or the video has no such frame.
        ValueError: They are not strictly increasing.
    """
    indices = wanted if isinstance(wanted, Tensor) else wanted(times)
    check_indices(indices, len(times), where)
    return indices


def check_indices(indices: Int[Tensor, " frames"], num_frames: int, where: str) -> None:
    """Refuse indices that are not of this video, or not strictly increasing.

    Raises:
        IndexError: An index is below 0, or not below `num_frames`.
        ValueError: The order.
    """
    if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= num_frames):
        raise IndexError(
            f"{where}: got frame indices from {int(indices.min())} to {int(indices.max())}, "
            f"expected 0 to {num_frames - 1}"
        )
    if not bool((torch.diff(indices) > 0).all()):
        raise ValueError(f"{where}: got frame indices {indices.tolist()}, expected strictly increasing ones")
