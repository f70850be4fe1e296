"""Writing short clips as MP4 with PyAV: at a constant rate, at a variable one, and cut out of a longer clip.

The pixels that a reader gets depend on the frames alone; the bytes of a file may differ with the encoder's version.
"""

import io
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

TICKS_PER_S = 10_000
"""Unit of the files' time stamps; all distances of frames in use are whole numbers of it."""

ENCODERS = {"libx264": {"qp": "16", "preset": "veryfast", "threads": "1"}, "mpeg4": {"qscale": "2", "threads": "1"}}
"""In order of preference; builds of FFmpeg without x264 have MPEG-4. Quantizers are constant: x264's own choice of them
(`crf`) differs from one call to the next for frames as small as these."""

ONE_KEY_FRAME = 10_000
"""A group of pictures longer than any clip: the first frame is the only one that needs no other."""


def write_clip(
    path: Path, frames: UInt8[np.ndarray, "frames height width 3"], times: Float[np.ndarray, " frames"]
) -> None:
    """Write a clip whose frames stand at the given times.

    Args:
        path: An MP4 file.
        frames: RGB, of even height and width.
        times: Seconds, increasing, the first one 0.
    """
    path.write_bytes(_encode(frames, times))


def write_cut(
    path: Path,
    frames: UInt8[np.ndarray, "frames height width 3"],
    times: Float[np.ndarray, " frames"],
    *,
    begin_s: float,
) -> None:
    """Write what a clip shows from `begin_s` on, cut without encoding again, as collectors of clips do.

    A cut that begins between two key frames keeps the packets back to the key frame before it; the file's edit list
    tells a reader to decode them and not to show them. So the file holds more frames than it presents.

    Args:
        path: An MP4 file.
        frames: The longer clip, RGB, of even height and width.
        times: Its times in seconds, increasing, the first one 0.
        begin_s: Where the cut begins; the frame there becomes the one at time 0.
    """
    begin = round(begin_s * TICKS_PER_S)
    with av.open(io.BytesIO(_encode(frames, times)), "r") as whole, av.open(str(path), "w", format="mp4") as cut:
        source = whole.streams.video[0]
        target = cut.add_stream_from_template(source)
        for packet in whole.demux(source):
            if packet.pts is None or packet.dts is None:
                continue  # the empty packet at the end
            offset = round(begin / TICKS_PER_S / packet.time_base)
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = target
            cut.mux(packet)


def _encode(frames: UInt8[np.ndarray, "frames height width 3"], times: Float[np.ndarray, " frames"]) -> bytes:
    encoder = next(name for name in ENCODERS if name in av.codecs_available)
    time_base = Fraction(1, TICKS_PER_S)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # Typed as a stream of any kind, since the encoder's name is not a literal.
        stream = cast(
            "VideoStream", container.add_stream(encoder, options=ENCODERS[encoder] | {"g": str(ONE_KEY_FRAME)})
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        for pixels, time_s in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time_s * TICKS_PER_S), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
