"""Clips whose frames say which frame they are, for tests and benchmarks of whoever reads videos."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8
from torch import Tensor

NUM_BITS = 8
BLOCK = 8
"""Side of the square that holds one bit, in pixels: blocks of codecs are no larger, so that bits stay apart."""


def barcode(number: int, height: int, width: int) -> np.ndarray:
    """A picture whose columns are the bits of a number below 256, the lowest bit left; grey where there are none.

    Rows from the middle down are grey too, so that a picture that was turned does not read the same.
    """
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(NUM_BITS):
        picture[: height // 2, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
    return picture


def read_barcodes(frames: UInt8[Tensor, "frames 3 height width"]) -> Int[Tensor, " frames"]:
    """The numbers of pictures made by `barcode` at their own size."""
    row = frames[:, 1, frames.shape[2] // 4, BLOCK // 2 : NUM_BITS * BLOCK : BLOCK]
    return ((row > 128) * 2 ** torch.arange(NUM_BITS)).sum(dim=1)


def write_clip(
    path: str | Path,
    num_frames: int = 30,
    *,
    size: tuple[int, int] = (48, 64),
    fps: int = 30,
    codec: str = "libx264",
    gop: int = 10,
    times_ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pictures: Iterable[np.ndarray] | None = None,
) -> Path:
    """Write a clip of barcodes.

    Args:
        path: File to write; its suffix decides the container.
        num_frames: Frames, numbered from 0.
        size: (height, width), at least 16 x 64 for the barcode.
        fps: Frames per second.
        codec: Encoder of FFmpeg.
        gop: Frames from one key frame to the next.
        times_ms: Times of the frames in milliseconds, ascending, for a variable rate.
        options: Options of the encoder.
        container_options: Options of the container.
        pictures: (height, width, 3) RGB pictures instead of the barcodes.
    """
    height, width = size
    if pictures is None:
        pictures = (barcode(number, height, width) for number in range(num_frames))
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times_ms is None else times_ms[number]
            frame.time_base = Fraction(1, fps) if times_ms is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return Path(path)


def cut_clip(source: str | Path, path: str | Path, start_frame: int, fps: int = 30) -> Path:
    """Copy a clip's stream from a frame on, without encoding it anew.

    The frames from the key frame before stay in the file; an edit list hides them where the container knows one.

    Args:
        source: Clip.
        path: File to write.
        start_frame: The first frame to be presented.
        fps: Frames per second of the clip.
    """
    with av.open(str(source)) as clip, av.open(str(path), "w") as container:
        stream = clip.streams.video[0]
        copy = container.add_stream_from_template(stream)
        assert stream.time_base is not None
        start = round(Fraction(start_frame, fps) / stream.time_base)
        clip.seek(start, stream=stream)
        for packet in clip.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                container.mux(packet)
    return Path(path)
