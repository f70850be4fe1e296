"""Decoding with torchcodec, which uses the FFmpeg libraries of the system."""

import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchcodec.decoders import VideoDecoder

from video_autoregressive.errors import VideoDecodeError, brief
from video_autoregressive.frames import DecodedFrames, FrameChoice, VideoInfo, chosen_indices, new_frames, resize_frames
from video_autoregressive.packet_index import PacketIndex, packet_index

FAILURES = (RuntimeError, ValueError, IndexError)
"""What torchcodec raises at what it cannot read."""

CHUNK = 8
"""Frames decoded before they are resized, so that a long clip of large frames is never whole in memory."""


class TorchcodecBackend:
    """Reads video files with torchcodec, on one thread.

    It is told which frames there are, instead of looking for itself, and every frame that it returns is held against
    that: another one, which files with an edit list or a damaged index can lead to, is an error.
    """

    name = "torchcodec"

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
        index = packet_index(path, self.name)
        times = index.times()
        indices = chosen_indices(wanted, times, f"{path} ({self.name})")
        size = size or (index.info.height, index.info.width)
        frames = new_frames(len(indices), size)
        if len(indices):
            decoder = self._open(path, index)
            for start in range(0, len(indices), CHUNK):
                chunk = indices[start : start + CHUNK]
                frames[start : start + CHUNK] = resize_frames(self._decode(decoder, index, path, chunk), size)
        return DecodedFrames(frames, times[indices], indices, index.info)

    def _open(self, path: str | Path, index: PacketIndex) -> VideoDecoder:
        try:
            return VideoDecoder(
                str(path), stream_index=index.stream, device="cpu", custom_frame_mappings=_mappings(index)
            )
        except FAILURES as error:
            raise VideoDecodeError(path, self.name, f"cannot be opened: {brief(error)}") from error

    def _decode(self, decoder: VideoDecoder, index: PacketIndex, path: str | Path, wanted: Tensor) -> Tensor:
        first, last = int(wanted[0]), int(wanted[-1])
        first_s = float(index.times()[first])
        try:
            batch = decoder.get_frames_at(wanted.tolist())
        except FAILURES as error:
            reason = f"this frame or one up to {last} cannot be decoded: {brief(error)}"
            raise VideoDecodeError(path, self.name, reason, first, first_s) from error
        expected = torch.tensor(index.pts, dtype=torch.float64)[wanted] * index.time_base_s
        for position in ((batch.pts_seconds - expected).abs() > index.time_base_s / 2).nonzero()[:1]:
            got, asked = batch.pts_seconds[position].item(), expected[position].item()
            reason = f"the decoder returns the frame at {got - expected[0].item() + first_s:.3f} s instead; try PyAV"
            time_s = asked - expected[0].item() + first_s
            raise VideoDecodeError(path, self.name, reason, int(wanted[position]), time_s)
        if tuple(batch.data.shape[-2:]) != (index.info.height, index.info.width):
            got = f"{batch.data.shape[-1]} x {batch.data.shape[-2]} pixels"
            reason = f"got {got}, expected {index.info.width} x {index.info.height} as in the first frame"
            raise VideoDecodeError(path, self.name, reason, first, first_s)
        return batch.data


def _mappings(index: PacketIndex) -> str:
    """The index as torchcodec reads it."""
    keys = set(index.keys)
    ends = (*index.pts[1:], index.end)
    rows = [
        {"pts": pts, "duration": end - pts, "key_frame": int(pts in keys)}
        for pts, end in zip(index.pts, ends, strict=True)
    ]
    return json.dumps({"frames": rows})
