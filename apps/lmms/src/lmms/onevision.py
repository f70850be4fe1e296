"""LLaVA-OneVision with ragged clips and any token layout: the library's model with another forward.

The library stacks videos into one tensor, so all clips of a batch must be equally long, and it knows one layout of
tokens. Here frames and image tiles of the whole batch, as many as there are, go through the vision tower together, and
`VideoTokenLayout` arranges them. Weights, their names and the pooling are the library's: in the `one_token` layout the
numbers are the same.

`image_newline` is a parameter of the model itself, not of a module within: only in this model's own forward does
ZeRO-3 hold it whole. That is why this is a subclass, and why the learned faster token lives here too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int, Num
from region_core.losses import touch
from region_core.splicing import splice
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionCausalLMOutputWithPast,
    LlavaOnevisionModelOutputWithPast,
)
from transformers.utils import output_capturing
from video_autoregressive.features import FrameFeatures
from video_autoregressive.token_layout import VideoTokenLayout

from lmms.backbone import Backbone, Reading

VISUALS = ("video_frames", "video_lengths", "image_tiles", "image_tile_counts", "image_sizes")


@dataclass
class OnevisionOutput(LlavaOnevisionModelOutputWithPast):
    """The library's output, and what the tower saw.

    Attributes:
        frame_features: The tower's features of the frames, `[frames, patches, width]`, without a graph.
        unused: An exact zero that depends on every module that ran without being needed.
    """

    frame_features: Tensor | None = None
    unused: Tensor | None = None


class OnevisionModel(LlavaOnevisionModel):
    """`LlavaOnevisionModel` for packed frames and tiles; made by `OnevisionBackbone.adopt`."""

    # The class below; the library evaluates the annotations of models when it meets them, so it cannot be named.
    backbone: Any
    layout: VideoTokenLayout
    faster_token: nn.Parameter | None

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch keys"] | None = None,
        position_ids: Int[Tensor, "batch tokens"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        video_frames: Num[Tensor, "frames 3 side side"] | None = None,
        video_lengths: Int[Tensor, " videos"] | None = None,
        image_tiles: Num[Tensor, "tiles 3 side side"] | None = None,
        image_tile_counts: Int[Tensor, " images"] | None = None,
        image_sizes: Int[Tensor, "images 2"] | None = None,
        **kwargs: object,
    ) -> OnevisionOutput:
        """Splice what the tower sees into the text and run the language model.

        Args:
            input_ids: Token ids with a placeholder per visual token.
            attention_mask: 1 for tokens, 0 for padding.
            position_ids: Positions of the tokens; by default they count true tokens, wherever the padding is.
            past_key_values: The cache of a generation. Once it holds something, there is nothing to see.
            use_cache: Whether to fill it.
            video_frames: The frames of all videos, uint8 or already normalised.
            video_lengths: Frames per video.
            image_tiles: The tiles of all images, each image's whole first.
            image_tile_counts: Tiles per image.
            image_sizes: (height, width) of the images as they came.
            kwargs: Further arguments of the language model.

        Raises:
            ValueError: Placeholders and embeddings do not match.
        """
        embeds = self.get_input_embeddings()(input_ids)
        features, unused = None, None
        if past_key_values is None or past_key_values.get_seq_length() == 0:
            given = (video_frames, video_lengths, image_tiles, image_tile_counts, image_sizes)
            visuals = {name: value for name, value in zip(VISUALS, given, strict=True) if value is not None}
            rows, features, unused = self._see_all(visuals, input_ids.device)
            spelled = {self.config.image_token_id: "<image>", self.config.video_token_id: "<video>"}
            embeds = splice(embeds, input_ids, rows, names=spelled)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return OnevisionOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            frame_features=features,
            unused=unused,
        )

    def _see_all(self, visuals: Mapping[str, Tensor], device: torch.device) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """Rows for the placeholders, the tower's features of the frames, and the zero of everything unused."""
        side = self.backbone.side
        none = torch.empty(0, 3, side, side, dtype=torch.uint8, device=device)
        frames, tiles = visuals.get("video_frames", none), visuals.get("image_tiles", none)
        pixels = torch.cat([frames, tiles])
        if not len(pixels):
            # A black picture: every rank runs every module, or they wait for each other under ZeRO-3.
            pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
        seen, layer, unused = self.backbone.run_tower(self.vision_tower, pixels)
        projected = self.multi_modal_projector(seen)
        of_frames, of_tiles = projected[: len(frames)], projected[len(frames) : len(frames) + len(tiles)]
        learned = [self.image_newline] if self.faster_token is None else [self.image_newline, self.faster_token]
        rows = {
            self.config.video_token_id: self._arrange(of_frames, visuals.get("video_lengths")),
            self.config.image_token_id: self._pack(
                of_tiles, visuals.get("image_tile_counts"), visuals.get("image_sizes")
            ),
        }
        return rows, layer[: len(frames)].detach(), touch(projected, *learned, *unused)

    def _arrange(
        self, projected: Float[Tensor, "frames patches dim"], lengths: Int[Tensor, " videos"] | None
    ) -> Float[Tensor, "tokens dim"]:
        """The tokens of all videos, one after another."""
        counts = [] if lengths is None else lengths.tolist()
        if sum(counts) != len(projected):
            raise ValueError(f"video_lengths: {counts} frames per video, got {len(projected)} frames")
        newline = self.image_newline.to(projected)
        faster = None if self.faster_token is None else self.faster_token.to(projected)
        videos = [self.layout.arrange(video, self.backbone.grid, newline, faster) for video in projected.split(counts)]
        return torch.cat([projected[:0].flatten(0, 1), *videos])

    def _pack(
        self,
        projected: Float[Tensor, "tiles patches dim"],
        counts: Int[Tensor, " images"] | None,
        sizes: Int[Tensor, "images 2"] | None,
    ) -> Float[Tensor, "tokens dim"]:
        """The tokens of all images, one after another, as the library packs them."""
        if counts is None or not len(counts):
            return projected[:0].flatten(0, 1)
        images = list(projected.split(counts.tolist()))
        packed, _ = self.pack_image_features(
            images, sizes, image_newline=self.image_newline, vision_aspect_ratio=self.config.vision_aspect_ratio
        )
        return torch.cat(packed)


class OnevisionForTraining(LlavaOnevisionForConditionalGeneration):
    """`LlavaOnevisionForConditionalGeneration` around `OnevisionModel`."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch keys"] | None = None,
        position_ids: Int[Tensor, "batch tokens"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        video_frames: Num[Tensor, "frames 3 side side"] | None = None,
        video_lengths: Int[Tensor, " videos"] | None = None,
        image_tiles: Num[Tensor, "tiles 3 side side"] | None = None,
        image_tile_counts: Int[Tensor, " images"] | None = None,
        image_sizes: Int[Tensor, "images 2"] | None = None,
        return_dict: bool = True,
    ) -> LlavaOnevisionCausalLMOutputWithPast:
        """Next-token logits, for generation; the visual arguments are those of `OnevisionModel`."""
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            use_cache,
            video_frames,
            video_lengths,
            image_tiles,
            image_tile_counts,
            image_sizes,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        return LlavaOnevisionCausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Show the visuals once, with the prompt."""
        inputs = cast("Any", super()).prepare_inputs_for_generation(*args, **kwargs)
        return (
            inputs if kwargs.get("is_first_iteration") else {key: inputs[key] for key in inputs if key not in VISUALS}
        )


class OnevisionBackbone(Backbone):
    """LLaVA-OneVision as a backbone."""

    model_type = "llava_onevision"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision_tower": ("model.vision_tower.",),
        "projector": ("model.multi_modal_projector.", "model.image_newline", "model.faster_token"),
        "language_model": ("model.language_model.", "lm_head."),
    }
    visual_names = VISUALS

    @staticmethod
    def feature_width(config: PreTrainedConfig) -> int:
        """Width of the tower; of several layers side by side where the model reads several."""
        layers = config.vision_feature_layer
        return config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))

    @property
    def side(self) -> int:
        """Side of the tower's input in pixels."""
        return self.config.lmm.vision_config.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's patches."""
        vision = self.config.lmm.vision_config
        return (vision.image_size // vision.patch_size,) * 2

    def adopt(self, lmm: PreTrainedModel) -> None:
        """Give a model of the library our forward."""
        # The same object under our classes, which add methods and no weights: no second copy, no initialisation.
        lmm.__class__ = OnevisionForTraining
        model = cast("LlavaOnevisionForConditionalGeneration", lmm).model
        model.__class__ = OnevisionModel
        model = cast("OnevisionModel", model)
        model.backbone = self
        model.layout = VideoTokenLayout(self.config.tokens)
        faster = None
        if self.config.tokens.faster_stride:
            newline = model.image_newline
            faster = nn.Parameter(torch.randn_like(newline) / math.sqrt(newline.numel()))
        model.register_parameter("faster_token", faster)

    def tower(self, lmm: PreTrainedModel) -> nn.Module:
        """SigLIP, as a rule."""
        return cast("OnevisionForTraining", lmm).model.vision_tower

    def __repr__(self) -> str:
        """What decides the features that are shown: a teacher's fingerprint holds it."""
        return f"{type(self).__name__}(layers={self._shown}, {self.config.lmm.vision_feature_select_strategy})"

    @property
    def _used(self) -> list[int]:
        """Layers of the tower whose features the model uses."""
        used = self.config.lmm.vision_feature_layer
        return [used] if isinstance(used, int) else list(used)

    @property
    def _shown(self) -> list[int]:
        """Layers whose features a teacher shows."""
        return self._used if self.teacher_layer is None else [self.teacher_layer]

    def run_tower(
        self, tower: nn.Module, pixels: Num[Tensor, "pictures 3 side side"]
    ) -> tuple[Float[Tensor, "pictures patches width"], Float[Tensor, "pictures patches teacher"], list[Tensor]]:
        """Features that the model uses, those that a teacher shows, and whatever else the tower has computed."""
        used, shown = self._used, self._shown
        pixels = self.normalise(pixels, 1, cast("PreTrainedModel", tower).dtype)
        # A list keeps these states alone. Older versions count its entries in another way; there all states are kept.
        kept = sorted({*used, *shown}) if hasattr(output_capturing, "selected_hidden_states") else True
        outputs = tower(pixels, output_hidden_states=kept)
        states = outputs.hidden_states
        # What lies behind the layer that is used would have no gradient on any rank.
        unused = [value for value in outputs.values() if isinstance(value, Tensor)]
        return self._select(states, used), self._select(states, shown), unused

    def _select(self, states: Sequence[Tensor | None], layers: list[int]) -> Float[Tensor, "pictures patches width"]:
        # The others may be left out.
        kept = [cast("Tensor", states[layer]) for layer in layers]
        chosen = torch.cat(kept, dim=-1) if len(kept) > 1 else kept[0]
        return chosen[:, 1:] if self.config.lmm.vision_feature_select_strategy == "default" else chosen

    def see(self, tower: nn.Module, frames: Float[Tensor, "frames 3 side side"]) -> FrameFeatures:
        """Features of a teacher of its own, as the model's own tower would hand them over."""
        return FrameFeatures.uniform(self.run_tower(tower, frames)[1], self.grid)

    def frames_of(self, visuals: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The packed frames, normalised."""
        if "video_frames" not in visuals:
            return []
        return [self.normalise(visuals["video_frames"], 1, dtype)]

    def single_frames(self, frames: Float[Tensor, "frames 3 side side"]) -> Float[Tensor, "frames 3 side side"]:
        """The frames as they are."""
        return frames

    def invert(self, visuals: Mapping[str, Tensor], chosen: Bool[Tensor, " frames"]) -> dict[str, Tensor]:
        """Frames with other pixels."""
        frames = visuals.get("video_frames")
        if frames is None:
            return dict(visuals)
        there = chosen.to(frames.device)
        return {**visuals, "video_frames": torch.where(there[:, None, None, None], self.inverted(frames), frames)}

    def read(
        self,
        lmm: PreTrainedModel,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None,
        position_ids: Int[Tensor, "batch tokens"] | None,
        visuals: Mapping[str, Tensor],
    ) -> Reading:
        """One call of the tower, one of the language model."""
        model = cast("OnevisionForTraining", lmm).model
        with self.catching_layer(model.language_model.layers) as caught:
            outputs = model(input_ids, attention_mask, position_ids, use_cache=False, **visuals)
        hidden = outputs.last_hidden_state
        return Reading(
            hidden,
            caught[0] if caught else hidden,
            FrameFeatures.uniform(outputs.frame_features, self.grid),
            outputs.unused,
        )

    def generate(
        self,
        lmm: PreTrainedModel,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"],
        visuals: Mapping[str, Tensor],
        **generation: Any,
    ) -> Int[Tensor, "batch all_tokens"]:
        """Generate; the visuals are shown with the prompt."""
        return cast("Any", lmm).generate(input_ids=input_ids, attention_mask=attention_mask, **visuals, **generation)
