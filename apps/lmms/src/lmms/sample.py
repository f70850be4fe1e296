"""`VideoSample`: one record, ready to be collated."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from video_autoregressive.layout import FrameLayout


@dataclass(frozen=True)
class VideoSample:
    """One record as tensors.

    Attributes:
        index: Position in the dataset.
        record_id: The record's `id`.
        input_ids: Ids with the placeholders written out.
        labels: The same ids where the assistant speaks, -100 elsewhere.
        layout: The frames of all videos, at their tokens.
        visuals: Pixels and sizes of videos and pictures, by the names of the model's family; empty for text alone.
        num_frames: Frames decoded from videos.
        decode_ms: Time that decoding took; the only value that differs from reading to reading.
    """

    index: int
    record_id: str
    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    layout: FrameLayout
    visuals: dict[str, Tensor]
    num_frames: int
    decode_ms: float
