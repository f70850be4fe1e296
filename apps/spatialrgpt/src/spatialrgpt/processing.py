"""`SpatialRGPTProcessor`: text with placeholders, images, depth maps and regions, as the model reads them.

The processor writes as many placeholder ids as there will be embeddings, so a sequence never changes its length in the
model. The whole frame is resized to the tower's input, without a crop, so masks only need to follow by area.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from region_core.geometry import region_geometry
from region_core.masks import masks_to_grid
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor, PreTrainedTokenizerBase, ProcessorMixin

from spatialrgpt.configuration import DEPTH_TOKEN, IGNORED_LABEL, IMAGE_TOKEN, MASK_TOKEN, SpatialRGPTConfig

GEOMETRY_GRID = (64, 64)
"""Place and depth of a region are measured on a finer grid than its features are pooled on."""

Message = Mapping[str, str]


@dataclass(frozen=True)
class EncodedText:
    """A conversation as token ids.

    Attributes:
        input_ids: Token ids with expanded placeholders.
        labels: The same ids where the assistant speaks, -100 elsewhere.
        question_position: Index of the last token before the first answer.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    question_position: int


class SpatialRGPTProcessor(ProcessorMixin):
    """Turns conversations and pictures into the model's input.

    Args:
        tokenizer: Tokenizer that knows the three placeholder tokens and has a chat template.
        image_size: Height and width of the vision tower's input.
        region_grid: Rows and columns of the grid on which regions are pooled.
        num_image_tokens: Placeholders written for each image.
        enable_depth: Write `<depth>` behind each `<mask>` whose image has a depth map.
    """

    attributes = ["tokenizer"]  # noqa: RUF012 - transformers' own form
    tokenizer_class = "AutoTokenizer"

    # transformers reads the arguments' names off the function itself; a shape checker's wrapper would hide them.
    @no_type_check
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_size: Sequence[int] = (384, 384),
        region_grid: Sequence[int] = (108, 108),
        num_image_tokens: int = 196,
        enable_depth: bool = True,
        **kwargs,
    ) -> None:
        self.image_size = list(image_size)
        self.region_grid = list(region_grid)
        self.num_image_tokens = num_image_tokens
        self.enable_depth = enable_depth
        super().__init__(tokenizer, **kwargs)

    @classmethod
    def for_model(cls, config: SpatialRGPTConfig, tokenizer: PreTrainedTokenizerBase) -> "SpatialRGPTProcessor":
        """The processor that fits a model."""
        return cls(
            tokenizer,
            image_size=config.image_size,
            region_grid=config.region_grid,
            num_image_tokens=config.num_image_tokens,
            enable_depth=config.enable_depth,
        )

    def encode(
        self, messages: Sequence[Message], *, num_images: int, region_has_depth: Sequence[bool], where: str
    ) -> EncodedText:
        """Tokenize a conversation.

        Args:
            messages: Turns with `role` (user, assistant) and `content`; `<image>` and `<mask>` stand for one image and
                one region each. Images that are not mentioned come first.
            num_images: Images of the conversation.
            region_has_depth: For each region in order of mention, whether its image has a depth map.
            where: What to call the conversation in errors.

        Returns:
            Ids and labels; a conversation that ends with the user ends with the start of the answer.

        Raises:
            ValueError: Mentions and images or regions differ in number, or the text holds `<depth>`.
        """
        messages = self._expand(messages, num_images, region_has_depth, where)
        ids: list[int] = []
        labels: list[int] = []
        question_position = -1
        done = ""
        for turn in range(1, len(messages) + 1):
            speaks = messages[turn - 1]["role"] == "assistant"
            prompts = turn == len(messages) or messages[turn]["role"] == "assistant"
            text = self.tokenizer.apply_chat_template(
                messages[:turn], tokenize=False, add_generation_prompt=prompts and not speaks
            )
            if not text.startswith(done):
                raise ValueError(f"{where}: the tokenizer's chat template rewrites earlier turns; it can't be used")
            piece = self.tokenizer(text[len(done) :], add_special_tokens=False)["input_ids"]
            if speaks and question_position < 0:
                question_position = len(ids) - 1
            ids += piece
            labels += piece if speaks else [IGNORED_LABEL] * len(piece)
            done = text
        if question_position < 0:
            question_position = len(ids) - 1
        return EncodedText(torch.tensor(ids), torch.tensor(labels), question_position)

    def _expand(
        self, messages: Sequence[Message], num_images: int, region_has_depth: Sequence[bool], where: str
    ) -> list[dict[str, str]]:
        """Write out the placeholders: every image token, and `<depth>` behind each region that has one."""
        text = "".join(message["content"] for message in messages)
        if DEPTH_TOKEN in text:
            raise ValueError(f"{where}: the text holds {DEPTH_TOKEN!r}, which the processor writes itself")
        mentioned, masks = text.count(IMAGE_TOKEN), text.count(MASK_TOKEN)
        if mentioned > num_images:
            raise ValueError(
                f"{where}: found {mentioned} {IMAGE_TOKEN!r} in the text, expected {num_images} (one per image)"
            )
        if masks != len(region_has_depth):
            raise ValueError(
                f"{where}: found {masks} {MASK_TOKEN!r} in the text, expected {len(region_has_depth)} (one per region)"
            )
        depths = iter(region_has_depth)
        expanded = []
        for position, message in enumerate(messages):
            content = message["content"]
            if position == 0:
                content = f"{IMAGE_TOKEN}\n" * (num_images - mentioned) + content
            pieces = content.split(MASK_TOKEN)
            content = pieces[0]
            for piece in pieces[1:]:
                content += MASK_TOKEN + (DEPTH_TOKEN if next(depths) and self.enable_depth else "") + piece
            content = content.replace(IMAGE_TOKEN, IMAGE_TOKEN * self.num_image_tokens)
            expanded.append({"role": message["role"], "content": content})
        return expanded

    def resize_image(self, image: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "3 rows columns"]:
        """The whole frame at the tower's input size."""
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        return F.interpolate(pixels, size=tuple(self.image_size), mode="bilinear", antialias=True)[0]

    def resize_depth(self, depth: Float[np.ndarray, "height width"]) -> UInt8[Tensor, "3 rows columns"]:
        """A depth map in [0, 1] as three equal channels at the tower's input size."""
        pixels = torch.from_numpy(depth)[None, None].float()
        resized = F.interpolate(pixels, size=tuple(self.image_size), mode="bilinear", antialias=True)[0]
        return (resized * 255).round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)

    def encode_regions(
        self,
        masks: Bool[np.ndarray, "regions height width"],
        depth: Float[np.ndarray, "depth_height depth_width"] | None,
    ) -> tuple[Float[Tensor, "regions rows columns"], Float[Tensor, "regions values"]]:
        """Soft masks on the region grid, and the geometry of each region.

        Args:
            masks: Masks of the frame.
            depth: Depth map of the frame in [0, 1], of any size.
        """
        grid = masks_to_grid(torch.from_numpy(masks), *self.region_grid)
        fine = masks_to_grid(torch.from_numpy(masks), *GEOMETRY_GRID)
        small = None
        if depth is not None:
            small = masks_to_grid(torch.from_numpy(depth)[None].float(), *GEOMETRY_GRID)[0]
        return grid, region_geometry(fine, small)


AutoProcessor.register(SpatialRGPTConfig, SpatialRGPTProcessor)
