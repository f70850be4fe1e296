"""Samples -> the model's input. Rows with videos, pictures or text alone, and packs of them, share a batch."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch
from video_autoregressive.targets import term_counts

from lmms.chat import IGNORED_LABEL
from lmms.families import Family
from lmms.packing import PackedSample
from lmms.sample import VideoSample


class VideoCollator:
    """Pads texts, joins visuals and places the frames in the batch.

    Args:
        pad_token_id: Id that fills the shorter rows.
        family: Joins the visuals.
        autoregressive: Settings of the reconstruction loss, whose items are then counted.
        padding_side: `right` for training, `left` for generation.
    """

    def __init__(
        self,
        pad_token_id: int,
        family: Family,
        *,
        autoregressive: AutoregressiveConfig | None = None,
        padding_side: Literal["left", "right"] = "right",
    ) -> None:
        self.pad_token_id = pad_token_id
        self.family = family
        self.autoregressive = autoregressive
        self.padding_side = padding_side

    def __call__(self, items: Sequence[VideoSample] | Sequence[PackedSample]) -> dict[str, object]:
        """Collate samples or packs.

        Returns:
            `record_ids` and `decode_ms` (notes, not for the model); `input_ids`, `attention_mask`, `labels` (rows x
            length); `frames`, which has none where the batch shows no video; `visuals`; `loss_counts`. Packs have
            `position_ids` and no attention mask.
        """
        packed = any(isinstance(item, PackedSample) for item in items)
        rows = [item.samples if isinstance(item, PackedSample) else (item,) for item in items]
        samples = [sample for row in rows for sample in row]
        lengths = [sum(len(sample.input_ids) for sample in row) for row in rows]
        length = max(lengths)
        labels = self._fill([[sample.labels for sample in row] for row in rows], IGNORED_LABEL, length)
        frames = FrameBatch.collate(
            [sample.layout for sample in samples],
            length,
            offsets=[
                start for row, used in zip(rows, lengths, strict=True) for start in self._starts(row, used, length)
            ],
            rows=[number for number, row in enumerate(rows) for _ in row],
        )
        batch: dict[str, object] = {
            "record_ids": [sample.record_id for sample in samples],
            "decode_ms": [sample.decode_ms for sample in samples],
            "input_ids": self._fill([[sample.input_ids for sample in row] for row in rows], self.pad_token_id, length),
            "labels": labels,
            "frames": frames,
            "visuals": self.family.collate_visuals([sample.visuals for sample in samples]),
            "loss_counts": {"main": int((labels[:, 1:] != IGNORED_LABEL).sum())} | self._count_targets(frames),
        }
        if packed:
            # What fills the row counts from 0 too, and so is a sample of its own that nobody sees.
            positions = [[torch.arange(len(sample.input_ids)) for sample in row] for row in rows]
            filled = [[*row, torch.arange(length - used)] for row, used in zip(positions, lengths, strict=True)]
            return batch | {"attention_mask": None, "position_ids": self._fill(filled, 0, length)}
        ones = [[torch.ones_like(sample.input_ids) for sample in row] for row in rows]
        return batch | {"attention_mask": self._fill(ones, 0, length)}

    def _starts(self, row: Sequence[VideoSample], used: int, length: int) -> list[int]:
        """Position of each sample's first token in its row."""
        first = length - used if self.padding_side == "left" else 0
        ends = torch.tensor([first, *(len(sample.input_ids) for sample in row)]).cumsum(0)
        return ends[:-1].tolist()

    def _fill(self, rows: Sequence[Sequence[Int[Tensor, " _"]]], value: int, length: int) -> Int[Tensor, "rows length"]:
        """Rows of equal length, each the pieces of a row behind each other and then (or before them) `value`."""
        filled = torch.full((len(rows), length), value, dtype=torch.int64)
        for number, pieces in enumerate(rows):
            joined = torch.cat(list(pieces))
            begin = length - len(joined) if self.padding_side == "left" else 0
            filled[number, begin : begin + len(joined)] = joined
        return filled

    def _count_targets(self, frames: FrameBatch) -> dict[str, int]:
        """Items of each term of the reconstruction loss, by the names that its module gives them."""
        if self.autoregressive is None:
            return {}
        return term_counts(frames, self.autoregressive)
