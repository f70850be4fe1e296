"""The families of video language models, as data loading sees them: what a clip or a picture becomes.

A family turns a clip into pixels for the vision tower, into the text that replaces the `<video>` marker, and into the
frames' places among its placeholders. No weights are needed, so this runs in loading processes. Pixels stay uint8 (a
quarter of the bytes); the model normalises them on its device, as the library's processors would have.

Frames are resized and cut by the library's own processors, so what a model of the hub was trained with is what it gets.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers import LlavaOnevisionProcessor, ProcessorMixin, Qwen2_5_VLProcessor, Qwen3VLProcessor
from video_autoregressive.config import VideoTokenConfig
from video_autoregressive.layout import FrameLayout, FrameSpan
from video_autoregressive.loader import VideoClip
from video_autoregressive.token_layout import VideoTokenLayout

Visuals = dict[str, Tensor]

_AS_BYTES = {"do_rescale": False, "do_normalize": False}


@dataclass(frozen=True)
class PreparedVideo:
    """A clip for the model.

    Attributes:
        visuals: What goes to the vision tower, uint8 pixels among it.
        text: Replaces the video's marker: its placeholders, and what stands between them.
        spans: Its frames in order of time; `token_start` counts the video's own placeholders from 0.
        num_tokens: All its placeholders.
    """

    visuals: Visuals
    text: str
    spans: tuple[FrameSpan, ...]
    num_tokens: int


@dataclass(frozen=True)
class PreparedImages:
    """The images of one sample for the model.

    Attributes:
        visuals: What goes to the vision tower.
        texts: Per image, what replaces its marker.
    """

    visuals: Visuals
    texts: tuple[str, ...]


class Family(ABC):
    """One family of video language models.

    Args:
        processor: The library's processor of a model.
        video_tokens: How features of frames become tokens, where the family leaves a choice.
    """

    model_type: ClassVar[str]
    """The configuration's `model_type`."""
    supports_packing: ClassVar[bool] = False
    """Whether several samples may share one sequence."""

    placeholders: tuple[str, str]
    """What stands for an image and for a video in a rendered conversation: one token each, which is then repeated."""

    def __init__(self, processor: ProcessorMixin, video_tokens: VideoTokenConfig | None = None) -> None:
        self.processor = processor
        self.video_tokens = video_tokens or VideoTokenConfig()
        tokenizer = processor.tokenizer
        ids = tokenizer.get_vocab()
        for token in self.placeholders:
            if token not in ids:
                raise ValueError(f"the tokenizer has no token {token!r}, which {self.model_type} models need")
        self.image_token_id, self.video_token_id = (ids[token] for token in self.placeholders)

    @property
    @abstractmethod
    def frame_size(self) -> tuple[int, int] | None:
        """(height, width) that frames are decoded to; None decodes them as they are, `prepare_video` resizes them."""

    @abstractmethod
    def prepare_video(self, clip: VideoClip) -> PreparedVideo:
        """Make a clip ready for the model."""

    @abstractmethod
    def prepare_images(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> PreparedImages:
        """Make the images of one sample ready for the model; how many there are may decide how they are cut."""

    @staticmethod
    def collate_visuals(samples: Sequence[Mapping[str, Tensor]]) -> Visuals:
        """Join the visuals of a batch's samples, which may lack some or all of them; everything is packed."""
        names = {name: None for sample in samples for name in sample}
        return {name: torch.cat([sample[name] for sample in samples if name in sample]) for name in names}


class OnevisionFamily(Family):
    """LLaVA-OneVision: square frames, pooled after the projector; images cut into tiles.

    Visuals: `video_frames` [frames, 3, S, S] and `video_lengths` (frames per video); `image_tiles` [tiles, 3, S, S],
    `image_tile_counts` and `image_sizes` (height, width as they came) per image.
    """

    model_type = "llava_onevision"
    supports_packing = True
    processor: LlavaOnevisionProcessor

    def __init__(self, processor: LlavaOnevisionProcessor, video_tokens: VideoTokenConfig | None = None) -> None:
        self.placeholders = (processor.image_token, processor.video_token)
        super().__init__(processor, video_tokens)
        side = math.isqrt(_num_tokens(processor))
        self.grid = (side, side)

    @property
    def frame_size(self) -> tuple[int, int]:
        """The tower's input."""
        size = self.processor.video_processor.size
        return int(size["height"]), int(size["width"])

    def prepare_video(self, clip: VideoClip) -> PreparedVideo:
        """Resize the frames, squashed to a square, and lay out their tokens."""
        processed = self.processor.video_processor([clip.frames], do_sample_frames=False, **_AS_BYTES)
        frames = _stacked(processed["pixel_values_videos"])[0]
        layout = VideoTokenLayout(self.video_tokens)
        spans = layout.spans(clip.times.tolist(), self.grid, sources=clip.indices.tolist())
        count = layout.num_tokens(len(frames), self.grid)
        visuals = {"video_frames": frames, "video_lengths": torch.tensor([len(frames)])}
        return PreparedVideo(visuals, self.placeholders[1] * count, tuple(spans), count)

    def prepare_images(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> PreparedImages:
        """Cut a single image into tiles beside its whole; several images are one square each."""
        processor = self.processor.image_processor
        processed = processor([list(images)], input_data_format="channels_last", do_pad=False, **_AS_BYTES)
        tiles = [_stacked(image) for image in processed["pixel_values"]]
        sizes = [image.shape[:2] for image in images]
        if len(images) == 1:
            counts = self.processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
        else:
            # The whole image and a newline, whatever its shape.
            dropped = self.processor.vision_feature_select_strategy == "default"
            counts = [_num_tokens(self.processor) + 1 - dropped] * len(images)
        visuals = {
            "image_tiles": torch.cat(tiles),
            "image_tile_counts": torch.tensor([len(image) for image in tiles]),
            "image_sizes": torch.tensor(sizes),
        }
        return PreparedImages(visuals, tuple(self.placeholders[0] * count for count in counts))


class QwenFamily(Family):
    """Qwen-VL: frames of any size in patches; two frames are one step in time, 2 x 2 patches one token.

    Visuals: `pixel_values_videos` [patches, values] and `video_grid_thw` per video; `pixel_values` and
    `image_grid_thw` for images, as the library names them.
    """

    def __init__(
        self, processor: Qwen2_5_VLProcessor | Qwen3VLProcessor, video_tokens: VideoTokenConfig | None = None
    ) -> None:
        if video_tokens not in (None, VideoTokenConfig()):
            raise ValueError(f"model.video_tokens: {self.model_type} has a token layout of its own, got {video_tokens}")
        self.placeholders = (processor.image_token, processor.video_token)
        super().__init__(processor, video_tokens)

    @property
    def frame_size(self) -> None:
        """Any; the processor rounds it to whole tokens within its limits of size."""
        return

    def prepare_video(self, clip: VideoClip) -> PreparedVideo:
        """Resize the frames within the processor's limits and cut them into patches."""
        processor = self.processor.video_processor
        frames, temporal = clip.frames, int(processor.temporal_patch_size)
        if len(frames) < temporal:
            frames = torch.cat([frames, frames[-1:].expand(temporal - len(frames), -1, -1, -1)])
        processed = processor([frames], do_sample_frames=False, **_AS_BYTES)
        grid = processed["video_grid_thw"]
        layout = FrameLayout.qwen_vl(
            grid[0].tolist(), clip.times.tolist(), merge=int(processor.merge_size), temporal_merge=temporal
        )
        sources = clip.indices.tolist()
        spans = tuple(replace(span, source_frame=sources[span.source_frame]) for span in layout.spans)
        visuals = {
            "pixel_values_videos": processed["pixel_values_videos"],
            "video_grid_thw": grid,
            **self._timing(clip, temporal),
        }
        return PreparedVideo(visuals, self._video_text(spans), spans, sum(span.token_count for span in spans))

    def prepare_images(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> PreparedImages:
        """Resize every image within the processor's limits and cut it into patches."""
        processor = self.processor.image_processor
        processed = processor(list(images), input_data_format="channels_last", **_AS_BYTES)
        grid = processed["image_grid_thw"]
        counts = (grid.prod(1) // int(processor.merge_size) ** 2).tolist()
        visuals = {"pixel_values": processed["pixel_values"], "image_grid_thw": grid}
        return PreparedImages(visuals, tuple(self.placeholders[0] * count for count in counts))

    def _timing(self, clip: VideoClip, temporal: int) -> Visuals:
        """What the model is told of time beside the text."""
        return {}

    def _video_text(self, spans: Sequence[FrameSpan]) -> str:
        return self.placeholders[1] * sum(span.token_count for span in spans)


class Qwen25Family(QwenFamily):
    """Qwen2.5-VL: time is in the positions of the tokens."""

    model_type = "qwen2_5_vl"
    processor: Qwen2_5_VLProcessor

    def _timing(self, clip: VideoClip, temporal: int) -> Visuals:
        """`second_per_grid_ts`: seconds from one step to the next, per video."""
        gaps = max(len(clip.times) - 1, 1)
        gap = float(clip.times[-1] - clip.times[0]) / gaps
        # A single frame has no distance; the model's usual rate, which is of no consequence for one step.
        return {"second_per_grid_ts": torch.tensor([temporal * (gap or 0.5)], dtype=torch.float32)}


class Qwen3Family(QwenFamily):
    """Qwen3-VL: every step in time is preceded by its time in words."""

    model_type = "qwen3_vl"
    processor: Qwen3VLProcessor

    def _video_text(self, spans: Sequence[FrameSpan]) -> str:
        start, end = self.processor.vision_start_token, self.processor.vision_end_token
        steps = [f"<{span.time_s:.1f} seconds>{start}{self.placeholders[1] * span.token_count}{end}" for span in spans]
        return "".join(steps)


FAMILIES: Mapping[str, type[Family]] = {
    family.model_type: family for family in (OnevisionFamily, Qwen25Family, Qwen3Family)
}
"""The families by `model_type`."""

_BY_PROCESSOR: Mapping[type[ProcessorMixin], type[Family]] = {
    LlavaOnevisionProcessor: OnevisionFamily,
    Qwen2_5_VLProcessor: Qwen25Family,
    Qwen3VLProcessor: Qwen3Family,
}


def family_of(processor: ProcessorMixin, video_tokens: VideoTokenConfig | None = None) -> Family:
    """The family that a processor belongs to.

    Raises:
        ValueError: It belongs to none.
    """
    family = _BY_PROCESSOR.get(type(processor))
    if family is None:
        known = ", ".join(kind.__name__ for kind in _BY_PROCESSOR)
        raise ValueError(f"{type(processor).__name__} is the processor of no known family; known are {known}")
    return family(processor, video_tokens)


def family_class(model_type: str, where: str = "model_type") -> type[Family]:
    """The class of a family by its `model_type`.

    Raises:
        ValueError: It is not known; the message names those that are.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"{where}: got {model_type!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _stacked(pixels: Tensor | Sequence[Tensor]) -> Tensor:
    return pixels if isinstance(pixels, Tensor) else torch.stack(list(pixels))


def _num_tokens(processor: LlavaOnevisionProcessor) -> int:
    """Tokens of one picture of the tower's size."""
    if processor.num_image_tokens is None:
        raise ValueError("the processor does not say how many tokens the vision tower makes (num_image_tokens)")
    return processor.num_image_tokens
