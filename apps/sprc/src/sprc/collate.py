"""Samples -> the model's input. Regions of all samples are packed, each row with the sample that it belongs to.

Torch's own collation must not see boxes: lists of equal length it transposes in silence.
"""

import hashlib
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float, UInt8
from region_core.boxes import check_boxes
from roi_region_loss.config import DropReason
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sprc.data import TripletSample
from sprc.text import clean_caption

PlainTriplet = tuple[Tensor, Tensor, str]
Boxes = Tensor | Sequence[Sequence[float]] | None
PlainTripletWithBoxes = tuple[Tensor, Tensor, str, Boxes, Boxes]
"""Boxes of the reference and of the target in the frame of the model's input; the k-th belongs to the k-th."""


class TripletCollator:
    """Makes a batch of triplets; also of plain (reference, target, caption) and of those with two lists of boxes.

    Args:
        tokenizer: A BERT tokenizer.
        max_length: Captions are padded or cut to so many tokens.
        use_region_loss: Add the pairs of regions; it may be switched at any time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 32, use_region_loss: bool = True) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.use_region_loss = use_region_loss

    def __call__(self, samples: Sequence[TripletSample | PlainTriplet | PlainTripletWithBoxes]) -> dict[str, object]:
        """Collate samples; a batch of a split without targets has no `target_*` and nothing to count.

        Raises:
            ValueError: The samples are not of one kind or size; the message names the first that differs.
        """
        triplets = [_as_sample(sample, position) for position, sample in enumerate(samples)]
        text = self.tokenizer(
            [triplet.caption for triplet in triplets],
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        batch: dict[str, object] = {
            "record_ids": [triplet.pair_id for triplet in triplets],
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "reference_ids": torch.tensor([triplet.reference_id for triplet in triplets]),
            **_stack("reference", [triplet.reference_image for triplet in triplets], triplets),
        }
        targets = [triplet.target_image for triplet in triplets if triplet.target_image is not None]
        if not targets:
            return batch | {"loss_counts": {}}
        if len(targets) != len(triplets):
            without = next(triplet.pair_id for triplet in triplets if triplet.target_image is None)
            raise ValueError(f"pair {without!r} has no target image, but others of its batch have one")
        batch |= _stack("target", targets, triplets)
        batch["target_ids"] = torch.tensor([triplet.target_id for triplet in triplets])
        counts: dict[str, int | float] = dict.fromkeys(("itc", "rtc", "align"), len(triplets))
        if self.use_region_loss:
            regions = _pack_regions(triplets)
            batch |= regions
            counts["region"] = float(regions["pair_weights"].sum())
        return batch | {"loss_counts": counts}


def _pack_regions(triplets: Sequence[TripletSample]) -> dict[str, Tensor]:
    """Pairs of all samples behind each other."""
    num_pairs = torch.tensor([len(triplet.pair_weights) for triplet in triplets])
    return {
        "reference_boxes": torch.cat([triplet.reference_boxes for triplet in triplets]),
        "target_boxes": torch.cat([triplet.target_boxes for triplet in triplets]),
        "pair_owner": torch.arange(len(triplets)).repeat_interleave(num_pairs),
        "pair_weights": torch.cat([triplet.pair_weights for triplet in triplets]),
        "dropped_regions": torch.tensor(
            [[triplet.dropped.get(reason, 0) for reason in get_args(DropReason)] for triplet in triplets]
        ),
    }


def _stack(side: str, images: Sequence[Tensor], triplets: Sequence[TripletSample]) -> dict[str, Tensor]:
    """Pixels or tokens of one side, under the name that says which they are."""
    first = images[0]
    if first.dtype == torch.uint8 and first.ndim == 3:
        kind = "images"
    elif first.is_floating_point() and first.ndim == 2:
        kind = "tokens"
    else:
        raise ValueError(
            f"pair {triplets[0].pair_id!r}: the {side} has shape {tuple(first.shape)} and type {first.dtype}, expected "
            "pixels (3, height, width) of type uint8, which the model normalises itself, or tokens (tokens, channels)"
        )
    for image, triplet in zip(images, triplets, strict=True):
        if image.shape != first.shape or image.dtype != first.dtype:
            raise ValueError(
                f"pair {triplet.pair_id!r}: the {side} has shape {tuple(image.shape)} and type {image.dtype}, expected "
                f"{tuple(first.shape)} and {first.dtype} as the first of the batch; a transform gives all one size"
            )
    return {f"{side}_{kind}": torch.stack(list(images))}


def _as_sample(sample: TripletSample | PlainTriplet | PlainTripletWithBoxes, position: int) -> TripletSample:
    """A plain tuple as a sample; boxes without a partner are left out, and equal pixels are the same image."""
    if isinstance(sample, TripletSample):
        return sample
    reference, target, caption = sample[:3]
    boxes: tuple[Boxes, Boxes] = (sample[3], sample[4]) if len(sample) == 5 else (None, None)
    reference_boxes, target_boxes = (
        _as_boxes(given, f"sample {position}, {side} boxes")
        for given, side in zip(boxes, ("reference", "target"), strict=True)
    )
    num_pairs = min(len(reference_boxes), len(target_boxes))
    return TripletSample(
        reference_image=reference,
        target_image=target,
        caption=clean_caption(caption),
        reference_boxes=reference_boxes[:num_pairs],
        target_boxes=target_boxes[:num_pairs],
        pair_weights=torch.ones(num_pairs),
        reference_id=_content_id(reference),
        target_id=_content_id(target),
        pair_id=str(position),
        index=position,
        dropped={"no_partner": len(reference_boxes) + len(target_boxes) - 2 * num_pairs},
    )


def _as_boxes(boxes: Boxes, where: str) -> Float[Tensor, "regions 4"]:
    """Boxes as rows; none at all is (0, 4) too."""
    rows = torch.as_tensor([] if boxes is None else boxes, dtype=torch.float32)
    if rows.numel() == 0:
        return torch.zeros(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"{where}: got shape {tuple(rows.shape)}, expected (regions, 4)")
    check_boxes(rows, where)
    return rows


def _content_id(image: UInt8[Tensor, "..."] | Float[Tensor, "..."]) -> int:
    digest = hashlib.blake2b(image.contiguous().cpu().view(torch.uint8).numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
