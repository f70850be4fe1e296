"""Generated answers, and the records that keep them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmms.collate import VideoCollator
from lmms.families import Family
from lmms.model import VideoLMM
from lmms.sample import VideoSample
from lmms.scoring import is_right

FORWARD_KEYS = ("input_ids", "attention_mask", "labels", "frames", "position_ids", "visuals")
PROMPT_KEYS = ("input_ids", "attention_mask", "visuals")


@dataclass(frozen=True)
class AnsweredRecord:
    """One held-out question with everything that was said about it.

    Attributes:
        index: Position in the data.
        record_id: The record's `id`.
        kind: Kind of the question; None where the record does not say.
        question: Its words.
        truth: The right answer.
        said: Who answered -> the words; who was not asked is absent.
    """

    index: int
    record_id: str
    kind: str | None
    question: str
    truth: str
    said: dict[str, str]

    def is_right(self, who: str) -> bool:
        """Whether an answer is the right one, word for word."""
        return is_right(self.said[who], self.truth)


def generate_answers(
    model: VideoLMM, family: Family, prompts: Sequence[VideoSample], *, max_new_tokens: int
) -> list[str]:
    """What the model answers, most probable word by most probable word.

    Args:
        model: In evaluation mode, on its device.
        family: The model's family, with its processor.
        prompts: Samples without answers.
        max_new_tokens: Longest answer.
    """
    tokenizer = family.processor.tokenizer
    batch = VideoCollator(tokenizer.pad_token_id, family, padding_side="left")(prompts)
    tokens = model.generate(
        **on_device(batch, PROMPT_KEYS, model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def on_device(batch: Mapping[str, object], keys: Sequence[str], device: torch.device) -> dict[str, Any]:
    """The part of a collated batch that the model takes, on its device; places of frames are read on the CPU."""
    return {key: _moved(batch[key], device) for key in keys if key in batch}


def _moved(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device)
    return {name: _moved(entry, device) for name, entry in value.items()} if isinstance(value, dict) else value
