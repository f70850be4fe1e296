"""`PSALMProcessor`: what is asked of an image, as token ids with one placeholder per embedding.

The prompts are PSALM's (Zhang et al. 2024, arXiv:2403.14598), in a plain text form that every language model can read.
The sequence is image tokens, conditions, mask tokens: the language model is causal, so a condition has seen the image
and a mask token everything. A class name and a sentence end with `[SEG]`; a region is one vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import no_type_check

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from psalm.configuration import PSALMConfig
from psalm.modes import KIND_OF_MODE, Mode
from psalm.prompts import PEN_RADIUS, Pens
from psalm.tokenizer import (
    ALIGNED_TOKEN,
    IMAGE_TOKEN,
    PLACEHOLDERS,
    QUERY_TOKEN,
    REGION_TOKEN,
    SEG_TOKEN,
)

NO_CONDITION = -1
"""In `condition_index`: the token belongs to no condition."""


@dataclass(frozen=True)
class Prompt:
    """Fixed words of a mode.

    Attributes:
        before: Up to the image.
        after: From the image to the conditions.
        answer: Up to the mask tokens; the placeholder `[SEG]` may stand in it.
    """

    before: str
    after: str
    answer: str


_SURE = "Sure, the segmentation result is "
_CATEGORIES = " This is all the candidate categories: "
_REGIONS = " This is all regions: "
PROMPTS: Mapping[Mode, Prompt] = MappingProxyType(
    {
        "panoptic": Prompt("This is an image ", f", Please do Panoptic Segmentation.{_CATEGORIES}", _SURE),
        "semantic": Prompt("This is an image ", f", Please do Semantic Segmentation.{_CATEGORIES}", _SURE),
        # PSALM asks for instances with the panoptic words: the candidates are what differs.
        "instance": Prompt("This is an image ", f", Please do Panoptic Segmentation.{_CATEGORIES}", _SURE),
        "referring": Prompt(
            "This is an image ",
            ", Please doing Referring Segmentation according to the following instruction: ",
            _SURE,
        ),
        "region": Prompt("This is an image ", f", Please segment by given regions.{_REGIONS}", SEG_TOKEN),
        "cross_image": Prompt(
            "Based on the given region prompts, please segment the same on this image ", f".{_REGIONS}", SEG_TOKEN
        ),
    }
)
SYSTEM_TEXT = "You see an image and segment what is asked for."


@dataclass(frozen=True)
class EncodedPrompt:
    """A sample's sequence.

    Attributes:
        input_ids: Token ids with one placeholder per embedding.
        condition_index: The condition that a token belongs to, -1 elsewhere.
    """

    input_ids: Int[Tensor, " tokens"]
    condition_index: Int[Tensor, " tokens"]


class PSALMProcessor(ProcessorMixin):
    """Turns a mode and its conditions into token ids.

    Args:
        tokenizer: Tokenizer that knows the placeholders.
        image_size: Side of the model's square input in pixels.
        num_image_tokens: Placeholders written for the target image.
        num_queries: Mask tokens at the end.
        aligned_modes: Modes of which every condition has one `<aligned>` behind the image tokens.
        max_length: Longest sequence.
        system_text: First words of every sequence.
        pens: Radius with which points and scribbles were drawn in training, in pixels of the original image.
    """

    attributes = ["tokenizer"]  # noqa: RUF012 - transformers' own form
    tokenizer_class = "AutoTokenizer"

    # transformers reads the arguments' names off the function itself; a shape checker's wrapper would hide them.
    @no_type_check
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_size: int = 1024,
        num_image_tokens: int = 256,
        num_queries: int = 100,
        aligned_modes: Sequence[Mode] = ("cross_image",),
        max_length: int = 2048,
        system_text: str = SYSTEM_TEXT,
        pens: Pens = PEN_RADIUS,
        **kwargs,
    ) -> None:
        self.image_size = image_size
        self.num_image_tokens = num_image_tokens
        self.num_queries = num_queries
        self.aligned_modes = list(aligned_modes)
        self.max_length = max_length
        self.system_text = system_text
        self.pens = dict(pens)
        super().__init__(tokenizer, **kwargs)

    @classmethod
    def for_model(
        cls,
        config: PSALMConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 2048,
        system_text: str = SYSTEM_TEXT,
        pens: Pens = PEN_RADIUS,
    ) -> "PSALMProcessor":
        """The processor that fits a model."""
        return cls(
            tokenizer,
            image_size=config.image_size,
            num_image_tokens=config.num_image_tokens,
            num_queries=config.num_mask_queries,
            aligned_modes=config.aligned_modes,
            max_length=max_length,
            system_text=system_text,
            pens=pens,
        )

    def encode(self, mode: Mode, conditions: Sequence[str], *, where: str) -> EncodedPrompt:
        """Write a sample's sequence.

        Args:
            mode: What is asked.
            conditions: Class names with "background", one sentence, or one entry per region (not read).
            where: What to call the sample in errors.

        Raises:
            ValueError: A condition is empty or holds a placeholder, there is not exactly one sentence, or the sequence
                is longer than `max_length`.
        """
        prompt = PROMPTS[mode]
        listed, index = self._conditions(mode, conditions, where)
        num_aligned = len(conditions) if mode in self.aligned_modes else 0
        head = [
            # The first words alone: here a tokenizer may add what begins a text.
            *self.tokenizer(f"[INST] <<SYS>> {self.system_text} <</SYS>> {prompt.before}")["input_ids"],
            *[self._id(IMAGE_TOKEN)] * self.num_image_tokens,
            *[self._id(ALIGNED_TOKEN)] * num_aligned,
            *self._plain(prompt.after),
        ]
        tail = [
            *self._plain(f". [/INST] {prompt.answer}"),
            *[self._id(QUERY_TOKEN)] * self.num_queries,
            self.tokenizer.eos_token_id,
        ]
        ids = [*head, *listed, *tail]
        if len(ids) > self.max_length:
            num_image = self.num_image_tokens + num_aligned
            raise ValueError(
                f"{where}: {len(conditions)} candidates make a sequence of {len(ids)} tokens ({len(listed)} for the "
                f"candidates, {num_image} for the image, {self.num_queries} mask tokens), the longest is "
                f"{self.max_length}; shorten the candidates or divide them among several samples or calls "
                "(model.max_length, --model_max_length, is set when a model is trained)"
            )
        outside = [[NO_CONDITION] * len(part) for part in (head, tail)]
        return EncodedPrompt(torch.tensor(ids), torch.tensor([*outside[0], *index, *outside[1]]))

    def _conditions(self, mode: Mode, conditions: Sequence[str], where: str) -> tuple[list[int], list[int]]:
        """Ids of all conditions with what separates them, and the condition that each id belongs to."""
        kind = KIND_OF_MODE[mode]
        if kind == "region":
            pieces = [[self._id(REGION_TOKEN)] for _ in conditions]
        else:
            _check_texts(mode, conditions, where)
            # A sentence follows a colon and a space and ends with a stop, as PSALM has it.
            texts = [text if kind == "class_name" else f"{text.strip().removesuffix('.')}." for text in conditions]
            seg = self._id(SEG_TOKEN)
            pieces = [[*ids, seg] for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        between = self._plain(", ")
        ids: list[int] = []
        index: list[int] = []
        for condition, piece in enumerate(pieces):
            separator = between if condition else []
            ids += [*separator, *piece]
            index += [*[NO_CONDITION] * len(separator), *[condition] * len(piece)]
        return ids, index

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)


def prompt_texts() -> list[str]:
    """The words that stand around the conditions, for a tokenizer that is made from texts."""
    return [
        f"[INST] <<SYS>> {SYSTEM_TEXT} <</SYS>> {prompt.before}{prompt.after}. [/INST] {prompt.answer}"
        for prompt in PROMPTS.values()
    ]


def _check_texts(mode: Mode, conditions: Sequence[str], where: str) -> None:
    """Refuse texts that would not say what is meant."""
    if KIND_OF_MODE[mode] == "sentence" and len(conditions) != 1:
        raise ValueError(f"{where}: mode {mode!r} takes one sentence, got {len(conditions)}: {list(conditions)!r}")
    if not conditions:
        raise ValueError(f"{where}: mode {mode!r} needs at least one class name, got none")
    for text in conditions:
        if not text.strip():
            raise ValueError(f"{where}: got {text!r} as a class name or sentence, expected words")
        held = [token for token in PLACEHOLDERS if token in text]
        if held:
            raise ValueError(f"{where}: {text!r} holds {', '.join(held)}, which only the processor writes")


AutoProcessor.register(PSALMConfig, PSALMProcessor)
