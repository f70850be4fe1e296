"""Samples -> the model's input. The language model's `labels` stay its own; typed answers travel beside them."""

from collections.abc import Sequence

import torch
from region_heads.config import RegionHeadsConfig
from region_heads.losses import count_loss_items
from region_heads.targets import RegionTargets
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spatialrgpt.configuration import IGNORED_LABEL
from spatialrgpt.data import RegionSample


class RegionDataCollator:
    """Pads texts and packs images, depth maps and regions.

    Args:
        pad_token_id: Id that fills the shorter texts.
        heads: Settings of the region heads; without them no typed targets are made.
        padding_side: `right` for training, `left` for generation.
    """

    def __init__(
        self, pad_token_id: int, *, heads: RegionHeadsConfig | None = None, padding_side: str = "right"
    ) -> None:
        self.pad_token_id = pad_token_id
        self.heads = heads
        self.padding_side = padding_side

    def __call__(self, samples: Sequence[RegionSample]) -> dict[str, object]:
        """Collate samples; what a batch has none of is absent from it."""
        texts = [sample.text for sample in samples]
        lengths = torch.tensor([len(text.input_ids) for text in texts])
        ids = self._pad([text.input_ids for text in texts], self.pad_token_id)
        labels = self._pad([text.labels for text in texts], IGNORED_LABEL)
        position = torch.arange(ids.shape[1])
        left = (ids.shape[1] - lengths)[:, None] if self.padding_side == "left" else torch.zeros(len(texts), 1)
        attention = (position >= left) & (position < left + lengths[:, None])
        questions = torch.tensor([text.question_position for text in texts]) + left.squeeze(1).long()
        batch: dict[str, object] = {
            "record_ids": [sample.record_id for sample in samples],
            "input_ids": ids,
            "attention_mask": attention.long(),
            "labels": labels,
            "question_positions": questions,
            **_pack_visuals(samples),
        }
        counts = {"lm": int((labels[:, 1:] != IGNORED_LABEL).sum())}
        if self.heads is not None:
            tasks = torch.tensor([sample.task_type for sample in samples])
            targets = _targets(samples)
            batch |= {"task_types": tasks, "region_targets": dict(vars(targets))}
            counts |= count_loss_items(tasks, targets, self.heads)
        return batch | {"loss_counts": counts}

    def _pad(self, rows: list[Tensor], value: int) -> Tensor:
        return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=self.padding_side)


def _targets(samples: Sequence[RegionSample]) -> RegionTargets:
    """Typed answers of all samples, one field per kind of answer."""
    return RegionTargets.from_labels(
        [sample.label for sample in samples],
        [sample.task_type for sample in samples],
        [len(sample.region_masks) for sample in samples],
    )


def _pack_visuals(samples: Sequence[RegionSample]) -> dict[str, Tensor]:
    """Images, depth maps and regions of all samples behind each other, with indices into the packed images."""
    first = torch.tensor([0] + [len(sample.images) for sample in samples]).cumsum(0)[:-1].tolist()
    images = torch.cat([sample.images for sample in samples])
    depths = torch.cat([sample.depths for sample in samples])
    masks = torch.cat([sample.region_masks for sample in samples])
    packed: dict[str, Tensor] = {}
    if len(images):
        packed["pixel_values"] = images
    if len(depths):
        packed["depth_values"] = depths
        packed["depth_images"] = torch.cat(
            [sample.depth_images + start for sample, start in zip(samples, first, strict=True)]
        )
    if len(masks):
        packed["region_masks"] = masks
        packed["region_images"] = torch.cat(
            [sample.region_images + start for sample, start in zip(samples, first, strict=True)]
        )
        packed["region_geometry"] = torch.cat([sample.region_geometry for sample in samples])
    return packed
