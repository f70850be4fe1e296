"""Decoding with decord, for comparison with what it decoded elsewhere.

decord counts packets and trusts their order: on stream-copied cuts and some other files it returns other frames than it
was asked for, without a word. Here such a file is an error.
"""

from pathlib import Path

import decord
import torch
from jaxtyping import Float, Int
from torch import Tensor

from video_autoregressive.errors import VideoDecodeError, brief
from video_autoregressive.frames import DecodedFrames, FrameChoice, VideoInfo, chosen_indices, resize_frames
from video_autoregressive.packet_index import PacketIndex, packet_index
from video_autoregressive.sampling import TIME_TOLERANCE_S

FAILURES = (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError, AssertionError)
"""What decord raises at what it cannot read."""


class DecordBackend:
    """Reads video files with decord, on one thread: with more, it fails on VP9."""

    name = "decord"

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
            VideoDecodeError: A frame is broken or missing, or decord would return other frames.
        """
        index = packet_index(path, self.name)
        times = index.times()
        indices = chosen_indices(wanted, times, f"{path} ({self.name})")
        self._refuse(index, path)
        shape = (index.info.height, index.info.width)
        try:
            reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
            found = torch.from_numpy(reader.get_frame_timestamp(range(len(reader)))[:, 0]).double()
            self._check_times(found - found[0], times, path)
            pixels = reader.get_batch(indices.tolist()).asnumpy() if len(indices) else None
        except FAILURES as error:
            raise VideoDecodeError(path, self.name, f"cannot be decoded: {brief(error)}") from error
        frames = torch.empty(0, 3, *shape, dtype=torch.uint8)
        if pixels is not None:
            frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        if tuple(frames.shape[-2:]) != shape:
            got = f"{frames.shape[-1]} x {frames.shape[-2]} pixels"
            raise VideoDecodeError(path, self.name, f"got {got}, expected {shape[1]} x {shape[0]}")
        return DecodedFrames(resize_frames(frames, size or shape), times[indices], indices, index.info)

    def _refuse(self, index: PacketIndex, path: str | Path) -> None:
        """Stop at files of which decord is known to return other frames, or none."""
        reasons = {
            "decord seeks to other frames in MPEG-TS": index.container == "mpegts",
            "decord seeks to other frames in open groups of pictures": index.is_open,
            "decord does not return frames that are turned on their side": index.info.rotation in (90, 270),
        }
        for reason, holds in reasons.items():
            if holds:
                raise VideoDecodeError(path, self.name, reason)

    def _check_times(self, got: Tensor, expected: Tensor, path: str | Path) -> None:
        if len(got) != len(expected):
            reason = f"decord counts {len(got)} frames, {len(expected)} are presented: it would return other frames"
            raise VideoDecodeError(path, self.name, reason)
        for position in ((got - expected).abs() > TIME_TOLERANCE_S).nonzero()[:1]:
            reason = f"decord places it at {got[position].item():.3f} s: it would return other frames"
            raise VideoDecodeError(path, self.name, reason, int(position), expected[position].item())
