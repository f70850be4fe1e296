"""Which frames a video file presents, and when: read once from its packets; only the first frame is decoded for it.

All backends for files share this index, so that frame 17 is the same frame in each. It follows what players show:
frames in order of presentation, without the preroll that a stream-copied cut keeps in front of them. A file that ends
before its header says is refused here, for every backend alike.
"""

import itertools
import math
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import Float
from torch import Tensor

from video_autoregressive.errors import VideoDecodeError, VideoEmptyError, VideoError, VideoOpenError
from video_autoregressive.frames import VideoInfo
from video_autoregressive.sampling import is_constant_rate

AV_FAILURES = (av.error.FFmpegError, OSError, ValueError)
"""What PyAV raises at a file that it cannot read."""

MISSING_S = 0.5
"""Matroska's header has a duration and no count: so much may be missing at the end before a file counts as cut off."""

KEPT_BYTES = 16 * 2**20
"""Packets of a file up to this size are kept while it is open: it need not be read again to decode its frames."""

SHORT_BYTES = 2**18
"""Files up to this size have few frames: so many of their indices are remembered that a set of short clips is walked
through once, and not in every epoch."""


@dataclass(frozen=True)
class PacketIndex:
    """The frames of a video file.

    Attributes:
        info: The video.
        container: FFmpeg's name of the container, for instance `mpegts`.
        is_open: Whether some frames are stored after a key frame and presented before it: decoding from that key frame
            cannot give them.
        stream: Position of its video stream among the streams of the file.
        time_base_s: Seconds per tick.
        pts: Tick at which each frame is presented, strictly increasing.
        end: Tick at which the last frame ends.
        keys: Ticks of the frames at which decoding can begin, ascending; the first may lie in the preroll.
    """

    info: VideoInfo
    container: str
    is_open: bool
    stream: int
    time_base_s: float
    pts: tuple[int, ...]
    end: int
    keys: tuple[int, ...]

    def times(self) -> Float[Tensor, " all"]:
        """Seconds of each frame after the first."""
        return _seconds(self.pts, self.time_base_s)


@dataclass(frozen=True)
class IndexedVideo:
    """A video file that is open, with its index.

    Attributes:
        index: Its frames.
        container: The file; whoever opened it closes it.
        stream: Its video stream, decoded on one thread.
        frames: The frames as they come when decoding begins at the first packet; to be used once, and not after a seek.
    """

    index: PacketIndex
    container: InputContainer
    stream: VideoStream
    frames: Iterator[VideoFrame]


class _Ticks(NamedTuple):
    pts: int
    duration: int
    is_key: bool
    is_preroll: bool


class _Walk(NamedTuple):
    ticks: list[_Ticks]
    begun: list[VideoFrame]
    rest: list[Packet]


def packet_index(path: str | Path, backend: str) -> PacketIndex:
    """Read the index of a file; those of the last few files, and of some thousand short ones, are remembered.

    Args:
        path: Video file.
        backend: Who asks, for messages.

    Raises:
        VideoOpenError: No such file, no video, or a stream without times of presentation.
        VideoEmptyError: A video stream without frames.
        VideoDecodeError: The file is damaged or cut off, or its first frame cannot be decoded.
    """
    size, changed_ns = _size_and_change(path, backend)
    index_of = _short_index if size <= SHORT_BYTES else _long_index
    return index_of(str(path), backend, size, changed_ns)


def open_indexed(path: str | Path, backend: str) -> IndexedVideo:
    """Open a file, to decode its frames; where it is small, it is read once for its index and its frames.

    Args:
        path: Video file.
        backend: Who asks, for messages.

    Raises:
        VideoError: As `packet_index`.
    """
    size, changed_ns = _size_and_change(path, backend)
    index = None if size <= KEPT_BYTES else _long_index(str(path), backend, size, changed_ns)
    with _as_video_errors(path, backend), ExitStack() as stack:
        container = stack.enter_context(av.open(str(path)))
        stream = _video_stream(container, path, backend)
        if index is None:
            walk = _walk(container, stream, path, backend, keep=True)
            index = _index(container, stream, walk, path, backend)
            frames = itertools.chain(walk.begun, _decoded(walk.rest))
        else:
            frames = container.decode(stream)
        stack.pop_all()
    return IndexedVideo(index, container, stream, frames)


def _size_and_change(path: str | Path, backend: str) -> tuple[int, int]:
    """Bytes of a file and when it was last changed, in nanoseconds."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise VideoOpenError(path, backend, f"expected a video file: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoOpenError(path, backend, "got no regular file, expected a video file")
    if not status.st_size:
        raise VideoOpenError(path, backend, "the file is empty, expected a video")
    return status.st_size, status.st_mtime_ns


def _read_index(path: str, backend: str, size: int, changed_ns: int) -> PacketIndex:
    """The index; size and time of change are there to notice another file under the same name."""
    with _as_video_errors(path, backend), av.open(path) as container:
        stream = _video_stream(container, path, backend)
        return _index(container, stream, _walk(container, stream, path, backend, keep=False), path, backend)


_short_index = lru_cache(maxsize=4096)(_read_index)
_long_index = lru_cache(maxsize=8)(_read_index)


@contextmanager
def _as_video_errors(path: str | Path, backend: str) -> Generator[None]:
    try:
        yield
    except VideoError:
        raise
    except AV_FAILURES as error:
        raise VideoOpenError(path, backend, f"expected a video: {error}") from error


def _video_stream(container: InputContainer, path: str | Path, backend: str) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.time_base is None:
        raise VideoOpenError(path, backend, "no video stream, expected one")
    stream.codec_context.thread_count = 1
    return stream


def _index(container: InputContainer, stream: VideoStream, walk: _Walk, path: str | Path, backend: str) -> PacketIndex:
    ticks = walk.ticks
    if not ticks:
        raise VideoEmptyError(path, backend, "the video stream has no frames")
    keys = tuple(sorted(tick.pts for tick in ticks if tick.is_key))
    # What stands before the first key frame cannot be decoded: a recording may begin anywhere.
    begin = min(keys, default=math.inf)
    shown = {tick.pts: tick.duration for tick in sorted(ticks) if tick.pts >= begin and not tick.is_preroll}
    if not shown or not walk.begun:
        raise VideoDecodeError(path, backend, "no frame can be decoded", index=0, time_s=0.0)
    if _hides_order(container, stream, ticks):
        raise VideoOpenError(
            path, backend, "AVI keeps no times of presentation for frames that are stored out of order"
        )
    pts = tuple(shown)
    end = pts[-1] + (shown[pts[-1]] or (pts[-1] - pts[0]) // max(1, len(pts) - 1))
    assert stream.time_base is not None
    time_base_s = float(stream.time_base)
    info = _info(stream, walk.begun[0], pts, end, time_base_s)
    return PacketIndex(
        info=info,
        container=container.format.name,
        is_open=_is_open(ticks),
        stream=stream.index,
        time_base_s=time_base_s,
        pts=pts,
        end=end,
        keys=keys,
    )


def _walk(container: InputContainer, stream: VideoStream, path: str | Path, backend: str, *, keep: bool) -> _Walk:
    """Go through a file.

    Returns:
        The packets of the video stream in order of storage; the first frame that is presented, and those that came with
        it; and, to `keep`, the packets that were not decoded, which stand behind these.
    """
    ticks: list[_Ticks] = []
    begun: list[VideoFrame] = []
    rest: list[Packet] = []
    ends = [0] * len(container.streams)
    for packet in container.demux():
        if packet.pts is not None:
            ends[packet.stream_index] = max(ends[packet.stream_index], packet.pts + (packet.duration or 0))
        if packet.stream_index != stream.index:
            continue
        if packet.is_corrupt:
            raise VideoDecodeError(path, backend, "a packet is damaged or cut off")
        at_end = packet.dts is None and not packet.size  # it only makes the decoder hand out what it still holds
        if packet.size:
            ticks.append(_ticks_of(packet, path, backend))
        if begun and keep:
            rest.append(packet)
        if not begun and (packet.size or at_end):
            begun = _first_of(packet, path, backend)
    end_s = max(float(end * (one.time_base or 0)) for end, one in zip(ends, container.streams, strict=True))
    _check_complete(container, stream, len(ticks), end_s, path, backend)
    return _Walk(ticks, begun, rest)


def _ticks_of(packet: Packet, path: str | Path, backend: str) -> _Ticks:
    pts = packet.dts if packet.pts is None else packet.pts
    if pts is None:
        raise VideoOpenError(path, backend, "the stream has no times, expected a container such as MP4 or Matroska")
    return _Ticks(pts, packet.duration or 0, packet.is_keyframe, packet.is_discard)


def _first_of(packet: Packet, path: str | Path, backend: str) -> list[VideoFrame]:
    try:
        return list(_decoded([packet]))
    except AV_FAILURES as error:
        raise VideoDecodeError(path, backend, f"cannot be decoded: {error}", index=0, time_s=0.0) from error


def _decoded(packets: Iterable[Packet]) -> Iterator[VideoFrame]:
    return (frame for packet in packets for frame in packet.decode() if isinstance(frame, VideoFrame))


def _check_complete(
    container: InputContainer, stream: VideoStream, num_packets: int, end_s: float, path: str | Path, backend: str
) -> None:
    """Refuse a file that holds less than its header says, as broken downloads do."""
    name = container.format.name
    if name.startswith("mov,mp4") and num_packets < stream.frames:
        raise VideoDecodeError(
            path,
            backend,
            f"the file holds {num_packets} frames and its header says {stream.frames}: cut off?",
        )
    declared_s = (container.duration or 0) / av.time_base
    if name.startswith("matroska") and end_s < declared_s - MISSING_S:
        raise VideoDecodeError(
            path,
            backend,
            f"the file ends at {end_s:.2f} s and its header says {declared_s:.2f} s: cut off?",
        )


def _hides_order(container: InputContainer, stream: VideoStream, ticks: list[_Ticks]) -> bool:
    """Whether the codec reorders frames and the times do not: AVI numbers frames as stored."""
    ordered = all(before.pts < after.pts for before, after in itertools.pairwise(ticks))
    return container.format.name == "avi" and stream.codec_context.has_b_frames and ordered and len(ticks) > 1


def _is_open(ticks: list[_Ticks]) -> bool:
    key = -math.inf
    for tick in ticks:
        if tick.pts < key:
            return True
        key = tick.pts if tick.is_key else key
    return False


def _info(stream: VideoStream, first: VideoFrame, pts: tuple[int, ...], end: int, time_base_s: float) -> VideoInfo:
    rotation = round(first.rotation / 90) * 90 % 360
    height, width = (first.width, first.height) if rotation in (90, 270) else (first.height, first.width)
    duration_s = (end - pts[0]) * time_base_s
    return VideoInfo(
        num_frames=len(pts),
        fps=len(pts) / duration_s if duration_s else 0.0,
        duration_s=duration_s,
        width=width,
        height=height,
        rotation=rotation,
        codec=stream.codec_context.codec.canonical_name,
        is_vfr=not is_constant_rate(_seconds(pts, time_base_s)),
        kind="file",
    )


def _seconds(pts: tuple[int, ...], time_base_s: float) -> Float[Tensor, " all"]:
    ticks = torch.tensor(pts, dtype=torch.int64)
    return (ticks - ticks[0]).double() * time_base_s
