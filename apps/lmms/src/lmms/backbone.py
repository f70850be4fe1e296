"""What `VideoLMM` asks of a video language model: hidden states, and what its vision tower saw in the frames."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from video_autoregressive.features import FrameFeatures

from lmms.configuration import VideoLMMConfig


@dataclass(frozen=True)
class Reading:
    """One pass of a batch through a video language model.

    Attributes:
        hidden: Last hidden states, normed.
        layer: Hidden states of the layer that was asked for; `hidden` unless another one was.
        features: What the tower saw in the batch's frames, before the projector, without a graph; frames in the order
            of the videos in the batch. Empty where it has none.
        unused: An exact zero that depends on every module that ran without being needed.
    """

    hidden: Float[Tensor, "batch tokens dim"]
    layer: Float[Tensor, "batch tokens dim"]
    features: FrameFeatures
    unused: Float[Tensor, ""]


class Backbone(ABC):
    """One family of video language models, as a model.

    Args:
        config: The whole configuration.
    """

    model_type: ClassVar[str]
    parts: ClassVar[Mapping[str, tuple[str, ...]]]
    """Part -> prefixes of parameter names within the video language model."""
    visual_names: ClassVar[tuple[str, ...]]
    """What a batch may show, by the names of the family."""

    def __init__(self, config: VideoLMMConfig) -> None:
        self.config = config
        autoregressive = config.autoregressive
        self.teacher_layer = None if autoregressive is None else autoregressive.teacher_layer
        self.hidden_layer = -1 if autoregressive is None else autoregressive.hidden_layer

    def __repr__(self) -> str:
        """What decides the features that are shown: a teacher's fingerprint holds it."""
        return f"{type(self).__name__}(teacher_layer={self.teacher_layer})"

    @staticmethod
    @abstractmethod
    def feature_width(config: PreTrainedConfig) -> int:
        """Width of the tower's features, which are predicted."""

    @abstractmethod
    def adopt(self, lmm: PreTrainedModel) -> None:
        """Make a model of the library ready; its weights and their names stay."""

    @abstractmethod
    def tower(self, lmm: PreTrainedModel) -> nn.Module:
        """The vision tower."""

    @abstractmethod
    def frames_of(self, visuals: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The frames of a batch for `see` and other teachers, normalised, in groups of one size (frames, 3, h, w)."""

    @abstractmethod
    def see(self, tower: nn.Module, frames: Float[Tensor, "frames 3 height width"]) -> FrameFeatures:
        """What a tower sees in frames: the encoder of a teacher of its own."""

    @abstractmethod
    def single_frames(self, frames: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames 3 ..."]:
        """The same as single pictures, for an encoder of another kind."""

    @abstractmethod
    def invert(self, visuals: Mapping[str, Tensor], chosen: Bool[Tensor, " frames"]) -> dict[str, Tensor]:
        """The same visuals with some frames inverted, counted over the videos of the batch."""

    @abstractmethod
    def read(
        self,
        lmm: PreTrainedModel,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None,
        position_ids: Int[Tensor, "batch tokens"] | None,
        visuals: Mapping[str, Tensor],
    ) -> Reading:
        """Run the model up to the word head, every module of it whatever the batch holds.

        Raises:
            ValueError: Placeholders and visuals do not match.
        """

    @abstractmethod
    def generate(
        self,
        lmm: PreTrainedModel,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"],
        visuals: Mapping[str, Tensor],
        **generation: Any,
    ) -> Int[Tensor, "batch all_tokens"]:
        """Prompts with generated answers behind them."""

    @staticmethod
    def inverted(pixels: Tensor) -> Tensor:
        """Other pixels, also where they are normalised already."""
        return -pixels if pixels.is_floating_point() else ~pixels

    def normalise(
        self, pixels: Num[Tensor, "*shape channels"] | Tensor, channel_dim: int, dtype: torch.dtype
    ) -> Tensor:
        """uint8 pixels as the library's processors normalise them; pixels that are normalised already, as they are.

        Args:
            pixels: Pixels with three channels at `channel_dim`.
            channel_dim: Where the channels are.
            dtype: Type of the tower's weights.
        """
        if pixels.is_floating_point():
            return pixels.to(dtype)
        shape = [1] * pixels.ndim
        shape[channel_dim] = 3
        # Mean and deviation of bytes, not bytes / 255: to the bit what the library's processors do.
        scale = 1.0 / (1 / 255)
        mean = (torch.tensor(self.config.image_mean) * scale).view(shape).to(pixels.device)
        std = (torch.tensor(self.config.image_std) * scale).view(shape).to(pixels.device)
        return ((pixels.float() - mean) / std).to(dtype)

    @contextmanager
    def catching_layer(self, layers: nn.ModuleList) -> Generator[list[Tensor]]:
        """Collect the output of the block before hidden state `hidden_layer`; nothing for the last one.

        Raises:
            ValueError: The language model has no such state.
        """
        caught: list[Tensor] = []
        index = self.hidden_layer if self.hidden_layer >= 0 else self.hidden_layer + len(layers) + 1
        if not 0 < index <= len(layers):
            raise ValueError(
                f"hidden_layer: got {self.hidden_layer}, expected 1 to {len(layers)} or -1 to {-len(layers)}: "
                f"the language model has {len(layers)} blocks"
            )
        if index == len(layers):
            yield caught
            return

        def catch(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            caught.append(output if isinstance(output, Tensor) else output[0])

        handle = layers[index - 1].register_forward_hook(catch)
        try:
            yield caught
        finally:
            handle.remove()
