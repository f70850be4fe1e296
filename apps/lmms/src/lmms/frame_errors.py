"""How well each frame is predicted, against copying the frame before it: clip by clip and over many of them."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from video_autoregressive.layout import FrameBatch

from lmms.answers import FORWARD_KEYS, on_device
from lmms.collate import VideoCollator
from lmms.families import Family
from lmms.model import VideoLMM
from lmms.sample import VideoSample

FRAME_ERRORS = "frame_errors.json"


@dataclass(frozen=True)
class FrameErrors:
    """Errors by the position of the predicted frame in its clip; for a family that merges frames, of the step.

    Attributes:
        positions: Positions that were predicted, counted from 0.
        predicted: Mean error of the predictions.
        copied: Mean error of copying the newest frame that the prediction knows.
        counts: Clips that each mean is over.
    """

    positions: tuple[int, ...]
    predicted: tuple[float, ...]
    copied: tuple[float, ...]
    counts: tuple[int, ...]

    def write(self, folder: Path) -> None:
        """Keep them in a run folder."""
        (folder / FRAME_ERRORS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "FrameErrors | None":
        """What `write` kept; None where there is nothing."""
        path = folder / FRAME_ERRORS
        if not path.is_file():
            return None
        values: Mapping[str, list] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: tuple(entries) for name, entries in values.items()})


@torch.no_grad()
def errors_of(model: VideoLMM, family: Family, sample: VideoSample) -> tuple[list[float | None], list[float | None]]:
    """Errors of the predictions of a sample's frames, and of copying; None where a frame is not predicted.

    Args:
        model: With a reconstruction module and a teacher, in evaluation mode.
        family: The model's family, with its processor.
        sample: With a video.

    Raises:
        ValueError: The model computes no reconstruction loss.
    """
    if not model.computes_autoregressive_loss:
        raise ValueError("there is no reconstruction module, or its teacher's weights are not known")
    batch = VideoCollator(family.processor.tokenizer.pad_token_id, family)([sample])
    output = model(**on_device(batch, FORWARD_KEYS, model.device)).autoregressive
    return _known(output.frame_errors.tolist()), _known(output.copy_errors.tolist())


def mean_errors(model: VideoLMM, family: Family, samples: Iterable[VideoSample]) -> FrameErrors:
    """Mean errors by the position of the frame in its clip, over samples with videos; see `errors_of`."""
    sums: dict[int, list[float]] = {}
    for sample in samples:
        length = len(sample.input_ids)
        videos = FrameBatch.collate([sample.layout], length).video.tolist()
        positions = [index - videos.index(video) for index, video in enumerate(videos)]
        for position, error, copy in zip(positions, *errors_of(model, family, sample), strict=True):
            if error is not None and copy is not None:
                found = sums.setdefault(position, [0.0, 0.0, 0])
                sums[position] = [found[0] + error, found[1] + copy, found[2] + 1]
    ordered = sorted(sums)
    return FrameErrors(
        positions=tuple(ordered),
        predicted=tuple(sums[position][0] / sums[position][2] for position in ordered),
        copied=tuple(sums[position][1] / sums[position][2] for position in ordered),
        counts=tuple(int(sums[position][2]) for position in ordered),
    )


def _known(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
