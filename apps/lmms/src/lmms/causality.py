"""A test at the start of a run: does anything about coming frames reach the states that have to predict them?

The reconstruction loss means something only if the language model is causal, the vision tower looks at each frame alone
and samples that share a row do not see each other. Here the later frames of a real batch are inverted: states and
targets of earlier frames must stay as they were, and those of the inverted frames must not.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from region_training.safe_dataset import SizedDataset
from torch import Tensor
from video_autoregressive.layout import FrameBatch

from lmms.answers import on_device
from lmms.collate import VideoCollator
from lmms.data import VideoDataset
from lmms.model import VideoLMM
from lmms.packing import PackedSample
from lmms.sample import VideoSample

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Change of a value, relative to the largest, that rounding may make."""
NUM_FRAMES = 4
"""Two steps of a family that merges frames in pairs. The test costs every start two passes of the whole model."""
MOST_RECORDS = 64
GIVEN = ("input_ids", "attention_mask", "position_ids", "visuals")


def check_causality(model: VideoLMM, dataset: VideoDataset) -> bool:
    """Check a model on a few frames of its own data, before training wraps it.

    Args:
        model: The model.
        dataset: Its training data: the first record with a video that can be read is looked at, and with packing the
            second beside it.

    Returns:
        Whether there was something to check.

    Raises:
        ValueError: Something leaks; the message names what.
    """
    samples: list[VideoSample] = []
    for index in range(min(len(dataset), MOST_RECORDS)):
        try:
            record = dataset.record(index)
            if record.videos:
                media = dataset.reader.read(record, dataset.where(index), max(NUM_FRAMES, dataset.settings.min_frames))
                samples.append(dataset.make_sample(record, media, where=dataset.where(index)))
        except ValueError:
            continue  # a bad record, which training deals with
        if len(samples) == 1 + dataset.settings.packing:
            break
    if not samples:
        logger.warning("no video among the first %d records: whether the model is causal was not checked", MOST_RECORDS)
        return False
    collate = VideoCollator(dataset.family.processor.tokenizer.pad_token_id, dataset.family)
    if dataset.settings.packing:
        return check_batch(model, collate([PackedSample(tuple(samples))]))
    return check_batch(model, collate(samples))


def check_samples(model: VideoLMM, dataset: SizedDataset[Any], collate: Callable[[list], dict]) -> bool:
    """Check a model on a data set of another kind: on the first of its samples that shows two frames.

    Args:
        model: The model.
        dataset: Gives the samples.
        collate: Makes a batch of a list of them, as `VideoCollator` does.

    Returns:
        Whether there was something to check.

    Raises:
        ValueError: Something leaks; the message names what.
    """
    for index in range(min(len(dataset), MOST_RECORDS)):
        try:
            batch = collate([dataset[index]])
        except (ValueError, OSError):
            continue  # a bad record, which training deals with
        frames = batch.get("frames")
        if isinstance(frames, FrameBatch) and frames.num_frames > 1 and check_batch(model, batch):
            return True
    logger.warning("no clip among the first %d samples: whether the model is causal was not checked", MOST_RECORDS)
    return False


@torch.no_grad()
def check_batch(model: VideoLMM, batch: dict[str, Any]) -> bool:
    """Invert frames of a batch and look at what changes.

    Args:
        model: The model; under ZeRO-3 every rank has to call this with a batch of its own.
        batch: What the collator returns.

    Returns:
        Whether there was something to check: a row with two frames.

    Raises:
        ValueError: Something leaks; the message names what.
    """
    given = on_device(batch, GIVEN, model.device)
    frames = batch["frames"]
    assert isinstance(frames, FrameBatch)
    was_training = model.training
    model.eval()
    try:
        row = frames.tokens[:, 0].div(frames.sequence_length, rounding_mode="floor") if frames.num_frames else None
        later = _later_half(row) if row is not None else torch.zeros(0, dtype=torch.bool)
        before = _states(model, given, frames)
        after = _states(model, _inverted(model, given, later), frames)
        packed = given.get("position_ids") is not None
        first = _first_samples(frames, row) if packed and row is not None else torch.zeros_like(later)
        apart = _states(model, _inverted(model, given, first), frames) if packed else before
    finally:
        model.train(was_training)
    if row is None or not later.any():
        return False
    _expect_equal(before[0], after[0], ~later, "hidden states", "the language model looks ahead")
    _expect_equal(before[1], after[1], ~later, "targets", "the vision encoder mixes frames over time")
    if packed:
        _expect_equal(before[0], apart[0], ~first, "hidden states", "samples that share a row see each other")
    for name, old, new in zip(("hidden states", "targets"), before, after, strict=True):
        still = ~_changes(old, new) & later
        if still.any():
            raise ValueError(
                f"{name} of frame {int(still.nonzero()[0])} of the batch stay the same when its pixels change: the "
                "frames are not read at their tokens"
            )
    return True


def _states(model: VideoLMM, given: dict[str, Any], frames: FrameBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Per frame the hidden states at its tokens, and the targets."""
    masks = given.get("attention_mask"), given.get("position_ids")
    reading = model.backbone.read(model.lmm, given["input_ids"], *masks, given["visuals"])
    hidden = reading.layer.flatten(0, 1)
    at_tokens = [hidden[tokens[tokens >= 0]].float() for tokens in frames.tokens.to(hidden.device)]
    module = model.autoregressive_module
    shared = module is None or module.teacher.kind == "shared"
    targets = reading.features if shared else model.encode_frames(given["visuals"])
    return at_tokens, [rows.float() for rows in targets.split()]


def _inverted(model: VideoLMM, given: dict[str, Any], chosen: Bool[Tensor, " frames"]) -> dict[str, Any]:
    return {**given, "visuals": model.backbone.invert(given["visuals"], chosen)}


def _later_half(row: Tensor) -> Bool[Tensor, " frames"]:
    """The later half of the frames of every row; none of a row with one frame."""
    place = torch.stack([(row[:index] == row[index]).sum() for index in range(len(row))])
    count = torch.stack([(row == one).sum() for one in row])
    return place >= (count + 1) // 2


def _first_samples(frames: FrameBatch, row: Tensor) -> Bool[Tensor, " frames"]:
    """The frames of the first sample of every row that has several."""
    first = torch.stack([frames.sample[row == one].min() for one in row])
    several = torch.stack([frames.sample[row == one].max() for one in row]) > first
    return (frames.sample == first) & several


def _changes(old: list[Tensor], new: list[Tensor]) -> Bool[Tensor, " frames"]:
    scale = max(float(rows.abs().max()) for rows in old)
    return torch.tensor([float((a - b).abs().max()) > TOLERANCE * scale for a, b in zip(old, new, strict=True)])


def _expect_equal(old: list[Tensor], new: list[Tensor], kept: Bool[Tensor, " frames"], name: str, reason: str) -> None:
    moved = _changes(old, new) & kept
    if moved.any():
        raise ValueError(
            f"{name} of frame {int(moved.nonzero()[0])} of the batch change with frames that they must not know: "
            f"{reason}, so the reconstruction loss would reward a leak. Turn model.enable_autoregressive off, or "
            "choose a causal model"
        )
