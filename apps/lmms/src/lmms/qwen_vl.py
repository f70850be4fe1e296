"""Qwen2.5-VL and Qwen3-VL as they are in the library, with what their vision tower saw in the frames.

The library would call the tower for images and again for videos. Here it is called once for whatever a batch shows, a
black picture where it shows nothing: under ZeRO-3 every rank must call it equally often. Its outputs go into the
library's forward as `mm_encoder_outputs`.

The tower merges two frames into one step in time, and squares of patches into tokens; its features are taken before the
merger and averaged over the square, so they lie on the tokens' grid. It looks at each step alone: nothing leaks.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import transformers
from einops import rearrange
from jaxtyping import Bool, Float, Int, Num
from region_core.losses import touch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_window_index
from video_autoregressive.features import FrameFeatures

from lmms.backbone import Backbone, Reading

IMAGE, VIDEO = 1, 2
"""The library's `mm_token_type_ids`; 0 is text."""
_CHANNELS = 3
_GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class QwenBackbone(Backbone):
    """What the two have in common."""

    visual_names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")

    @staticmethod
    def feature_width(config: PreTrainedConfig) -> int:
        """Width of the tower."""
        return config.vision_config.hidden_size

    def adopt(self, lmm: PreTrainedModel) -> None:
        """Nothing to do: the library's forward is used.

        Raises:
            ValueError: Another layer of the tower was asked for than the one that the merger reads, or the library is
                too old.
        """
        if "mm_encoder_outputs" not in inspect.signature(_plain(lmm).model.forward).parameters:
            # It would be swallowed, and the videos with it.
            raise ValueError(f"{self.model_type} needs transformers 5.18 or later, got {transformers.__version__}")
        if self.teacher_layer not in (None, -1):
            raise ValueError(f"teacher_layer: got {self.teacher_layer}, expected none for {self.model_type}: the last")

    def tower(self, lmm: PreTrainedModel) -> nn.Module:
        """The vision tower, its mergers included."""
        return _plain(lmm).model.visual

    def frames_of(self, visuals: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Per video, its steps in time: the frames of a step one below the other, normalised."""
        if "pixel_values_videos" not in visuals:
            return []
        vision, merge = self.config.lmm.vision_config, self._merge
        grids = visuals["video_grid_thw"].tolist()
        pixels = self._pixels(visuals["pixel_values_videos"], dtype).split([math.prod(grid) for grid in grids])
        return [
            rearrange(
                patches,
                "(t y x my mx) (c s h w) -> t c (s y my h) (x mx w)",
                **{"t": steps, "y": rows // merge, "x": columns // merge, "my": merge, "mx": merge},
                **{"c": _CHANNELS, "s": vision.temporal_patch_size, "h": vision.patch_size, "w": vision.patch_size},
            )
            for patches, (steps, rows, columns) in zip(pixels, grids, strict=True)
        ]

    def single_frames(self, frames: Float[Tensor, "steps 3 height width"]) -> Float[Tensor, "steps 3 one_height width"]:
        """The last frame of every step, for encoders that know no steps."""
        height = frames.shape[2] // self.config.lmm.vision_config.temporal_patch_size
        return frames[:, :, -height:]

    def see(self, tower: nn.Module, frames: Float[Tensor, "steps 3 height width"]) -> FrameFeatures:
        """Features of a teacher of its own, as the model's own tower would hand them over."""
        vision, merge = self.config.lmm.vision_config, self._merge
        patches = rearrange(
            frames,
            "t c (s y my h) (x mx w) -> (t y x my mx) (c s h w)",
            **{"s": vision.temporal_patch_size, "h": vision.patch_size, "w": vision.patch_size},
            **{"my": merge, "mx": merge},
        )
        rows = frames.shape[2] // vision.temporal_patch_size // vision.patch_size
        grid = torch.tensor([[len(frames), rows, frames.shape[3] // vision.patch_size]], device=frames.device)
        outputs = tower(patches.to(cast("PreTrainedModel", tower).dtype), grid_thw=grid)
        return self._features(outputs.last_hidden_state, grid, first=0)

    def invert(self, visuals: Mapping[str, Tensor], chosen: Bool[Tensor, " frames"]) -> dict[str, Tensor]:
        """Steps with other pixels."""
        patches = visuals.get("pixel_values_videos")
        if patches is None:
            return dict(visuals)
        sizes = [rows * columns for steps, rows, columns in visuals["video_grid_thw"].tolist() for _ in range(steps)]
        there = chosen.repeat_interleave(torch.tensor(sizes)).to(patches.device)
        return {**visuals, "pixel_values_videos": torch.where(there[:, None], self.inverted(patches), patches)}

    def read(
        self,
        lmm: PreTrainedModel,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None,
        position_ids: Int[Tensor, "batch tokens"] | None,
        visuals: Mapping[str, Tensor],
    ) -> Reading:
        """One call of the tower, one of the language model."""
        if position_ids is not None:
            raise ValueError(f"position_ids: {self.model_type} counts positions itself; it does not pack samples")
        model = _plain(lmm).model
        given, features, unused = self._see_all(model.visual, visuals, input_ids)
        with self.catching_layer(model.language_model.layers) as caught:
            outputs = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given)
        hidden = outputs.last_hidden_state
        return Reading(hidden, caught[0] if caught else hidden, features, unused)

    def generate(
        self,
        lmm: PreTrainedModel,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"],
        visuals: Mapping[str, Tensor],
        **generation: Any,
    ) -> Int[Tensor, "batch all_tokens"]:
        """Generate; the tower has seen everything before."""
        model = _plain(lmm)
        given, _, _ = self._see_all(model.model.visual, visuals, input_ids)
        return cast("Any", model).generate(input_ids=input_ids, attention_mask=attention_mask, **given, **generation)

    def _see_all(
        self, tower: nn.Module, visuals: Mapping[str, Tensor], input_ids: Int[Tensor, "batch tokens"]
    ) -> tuple[dict[str, Any], FrameFeatures, Float[Tensor, ""]]:
        """Visual arguments of the library's forward, the frames' features, and the zero of everything unused."""
        shown = [kind for kind in _PIXELS if _PIXELS[kind] in visuals]
        patches = [visuals[_PIXELS[kind]] for kind in shown]
        grids = [visuals[_GRIDS[kind]] for kind in shown]
        if not shown:
            dummy_patches, dummy_grid = self._dummy(input_ids.device)
            patches, grids = [dummy_patches], [dummy_grid]
        grid = torch.cat(grids)
        pixels = self._pixels(torch.cat(patches), cast("PreTrainedModel", tower).dtype)
        outputs = tower(pixels, grid_thw=grid)
        split = (grid.prod(1) // self._merge**2).tolist()
        merged, deep = outputs.pooler_output.split(split), [layer.split(split) for layer in self._deep(outputs)]
        given: dict[str, Any] = {}
        first = 0
        encoded = {}
        for kind, of_kind in zip(shown, grids, strict=False):
            chosen = slice(first, first + len(of_kind))
            encoded[kind] = self._encoded(merged[chosen], [layer[chosen] for layer in deep])
            given[_GRIDS[kind]] = of_kind
            first += len(of_kind)
        if shown:
            given["mm_encoder_outputs"] = encoded
            lmm = self.config.lmm
            types = (input_ids == lmm.image_token_id) * IMAGE + (input_ids == lmm.video_token_id) * VIDEO
            given["mm_token_type_ids"] = types.int()
        if "second_per_grid_ts" in visuals:
            given["second_per_grid_ts"] = visuals["second_per_grid_ts"]
        of_videos = visuals["video_grid_thw"] if "video" in shown else grid[:0]
        features = self._features(outputs.last_hidden_state, grid, first=len(grid) - len(of_videos) if shown else 1)
        return given, features, touch(outputs.last_hidden_state, outputs.pooler_output, *self._deep(outputs))

    def _features(
        self, states: Float[Tensor, "patches width"], grid: Int[Tensor, "media 3"], *, first: int
    ) -> FrameFeatures:
        """Mean state of every square of patches, for the media from `first` on; without a graph."""
        squares = states.detach().unflatten(0, (-1, self._merge**2)).mean(1)
        squares = self._in_order(squares, grid)
        before = int((grid[:first].prod(1) // self._merge**2).sum())
        grids = [
            (rows // self._merge, columns // self._merge)
            for steps, rows, columns in grid[first:].tolist()
            for _ in range(steps)
        ]
        return FrameFeatures(squares[before:], tuple(grids))

    def _in_order(
        self, squares: Float[Tensor, "squares width"], grid: Int[Tensor, "media 3"]
    ) -> Float[Tensor, "squares width"]:
        """The squares row by row, where the tower leaves them in another order."""
        return squares

    @staticmethod
    def _deep(outputs: BaseModelOutputWithPooling) -> list[Tensor]:
        """Features that go into deeper layers of the language model."""
        return []

    @staticmethod
    def _encoded(merged: tuple[Tensor, ...], deep: list[tuple[Tensor, ...]]) -> BaseModelOutputWithPooling:
        """The tower's output for one kind of media, as the library's forward takes it."""
        return BaseModelOutputWithPooling(pooler_output=cast("Any", merged))

    def _dummy(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Patches and grid of the smallest black picture."""
        vision = self.config.lmm.vision_config
        width = _CHANNELS * vision.temporal_patch_size * vision.patch_size**2
        patches = torch.zeros(self._merge**2, width, dtype=torch.uint8, device=device)
        return patches, torch.tensor([[1, self._merge, self._merge]], device=device)

    @property
    def _merge(self) -> int:
        return self.config.lmm.vision_config.spatial_merge_size

    def _pixels(self, patches: Num[Tensor, "patches values"], dtype: torch.dtype) -> Float[Tensor, "patches values"]:
        """Normalised patches; within a patch, values are ordered by channel first."""
        return self.normalise(patches.unflatten(1, (_CHANNELS, -1)), 1, dtype).flatten(1)


class Qwen25Backbone(QwenBackbone):
    """Qwen2.5-VL, whose tower looks at windows and leaves its states in their order."""

    model_type = "qwen2_5_vl"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision_tower": ("model.visual.patch_embed.", "model.visual.blocks."),
        "projector": ("model.visual.merger.",),
        "language_model": ("model.language_model.", "lm_head."),
    }

    def _in_order(
        self, squares: Float[Tensor, "squares width"], grid: Int[Tensor, "media 3"]
    ) -> Float[Tensor, "squares width"]:
        vision = self.config.lmm.vision_config
        order, _ = get_vision_window_index(grid, self._merge, vision.window_size, vision.patch_size)
        return squares[torch.argsort(order.to(squares.device))]


class Qwen3Backbone(QwenBackbone):
    """Qwen3-VL, whose tower also feeds the first layers of the language model."""

    model_type = "qwen3_vl"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision_tower": ("model.visual.patch_embed.", "model.visual.pos_embed.", "model.visual.blocks."),
        "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
        "language_model": ("model.language_model.", "lm_head."),
    }

    @staticmethod
    def _deep(outputs: BaseModelOutputWithPooling) -> list[Tensor]:
        return list(cast("Any", outputs).deepstack_features)

    @staticmethod
    def _encoded(merged: tuple[Tensor, ...], deep: list[tuple[Tensor, ...]]) -> BaseModelOutputWithPooling:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=cast("Any", merged), deepstack_features=cast("Any", deep)
        )


def _plain(lmm: PreTrainedModel) -> Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration:
    return cast("Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration", lmm)
