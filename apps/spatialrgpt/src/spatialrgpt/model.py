"""SpatialRGPT: a vision tower, region embeddings, a causal language model and typed heads, composed.

The processor writes one `<image>` id per image token, one `<mask>` id per region and one `<depth>` id per region with
depth; the model only replaces their embeddings. Heads read the language model's last hidden state at the region
placeholders, and over the words of the question: a region placeholder cannot have read the words behind it.

Every enabled module runs in every forward, on a black picture or on no row where a batch has none of its kind, and is
reached by every backward: otherwise ranks with different batches wait for each other for ever under ZeRO-3.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num
from region_core.geometry import GeometryEmbedding
from region_core.grids import TokenGrid, tokens_to_map
from region_core.losses import LossTerms, touch
from region_core.regions import RegionBatch
from region_core.splicing import splice
from region_heads.region_heads import RegionHeads, RegionHeadsOutput
from region_heads.targets import RegionTargets
from region_heads.tasks import UNKNOWN_TASK
from region_training.strict_loading import StrictModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from spatialrgpt.configuration import DEPTH_TOKEN, IGNORED_LABEL, IMAGE_TOKEN, MASK_TOKEN, SpatialRGPTConfig
from spatialrgpt.region_encoder import ImageProjector, RegionEncoder
from spatialrgpt.visuals import Visuals, complete_visuals


@dataclass
class SpatialRGPTOutput(ModelOutput):
    """What `SpatialRGPTForConditionalGeneration` returns.

    Attributes:
        loss: Weighted sum of the loss terms; None without labels and without targets.
        losses: The terms by name, as sums and counts.
        logits: Next-token logits, `[batch, tokens, vocabulary]`.
        regions: Outputs of the typed heads by task; None if heads are off.
    """

    loss: Tensor | None = None
    losses: LossTerms | None = None
    logits: Tensor | None = None
    regions: RegionHeadsOutput | None = None


class SpatialRGPTForConditionalGeneration(StrictModel):
    """Region-level vision-language model with typed answers.

    Args:
        config: Sizes of all parts and the guide's switches.
    """

    config: SpatialRGPTConfig
    config_class = SpatialRGPTConfig
    base_model_prefix = "spatialrgpt"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: SpatialRGPTConfig) -> None:
        super().__init__(config)
        text_dim = config.text.hidden_size
        # Their configurations may ask for float16, as published ones do; this model has one type, float32 if it is new.
        dtype = torch.get_default_dtype()
        self.vision_tower: PreTrainedModel = AutoModel.from_config(config.vision, dtype=dtype)
        self.projector = ImageProjector(config.vision.hidden_size, text_dim, config.projector_downsample)
        self.region_encoder = RegionEncoder(config) if config.enable_region else None
        self.language_model = AutoModelForCausalLM.from_config(config.text, dtype=dtype)
        self.region_heads = RegionHeads(text_dim, config.heads) if config.enable_region_heads else None
        self.head_geometry = (
            GeometryEmbedding(text_dim) if config.enable_region_heads and config.region_geometry else None
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave the bricks as their constructors made them; tower and language model initialise themselves."""

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None = None,
        labels: Int[Tensor, "batch tokens"] | None = None,
        pixel_values: Num[Tensor, "images 3 height width"] | None = None,
        depth_values: Num[Tensor, "depths 3 height width"] | None = None,
        depth_images: Int[Tensor, " depths"] | None = None,
        region_masks: Float[Tensor, "regions rows columns"] | None = None,
        region_images: Int[Tensor, " regions"] | None = None,
        region_geometry: Float[Tensor, "regions values"] | None = None,
        task_types: Int[Tensor, " batch"] | None = None,
        region_targets: Mapping[str, Tensor] | None = None,
        question_positions: Int[Tensor, " batch"] | None = None,
        loss_counts: Mapping[str, float | Tensor] | None = None,
    ) -> SpatialRGPTOutput:
        """Run the model; which losses are computed follows from which targets are given.

        Args:
            input_ids: Token ids with one placeholder per image token, region and depth region.
            attention_mask: 1 for tokens, 0 for padding.
            labels: Next-token targets; -100 is ignored.
            pixel_values: All images of the batch in order of mention, uint8 or already normalised.
            depth_values: Depth maps as three equal channels, for the images that have one.
            depth_images: Which image each depth map belongs to.
            region_masks: All regions in order of mention, as soft masks on the refined grid.
            region_images: Which image (of the batch) each region belongs to.
            region_geometry: `region_core.region_geometry` of each region.
            task_types: Task of each question; -1 where unknown.
            region_targets: Fields of `region_heads.RegionTargets`.
            question_positions: Index of the last token of each question.
            loss_counts: Items of each loss term per micro-batch, averaged over the whole optimizer step.

        Raises:
            ValueError: Placeholders and embeddings do not match; the message names placeholder and sample.
        """
        visuals = complete_visuals(
            self.config,
            input_ids.device,
            pixel_values=pixel_values,
            depth_values=depth_values,
            depth_images=depth_images,
            region_masks=region_masks,
            region_images=region_images,
            region_geometry=region_geometry,
        )
        embeds, unused = self._embed(input_ids, visuals)
        hidden = self._read(embeds, attention_mask)
        logits = self.language_model.get_output_embeddings()(hidden)
        losses = LossTerms()
        if labels is not None:
            losses.add("lm", *_language_model_loss(logits, labels), weight=self.config.lm_loss_weight)
        regions = None
        if self.region_heads is not None:
            regions = self._answer_with_heads(
                hidden, input_ids, visuals, attention_mask, task_types, region_targets, question_positions
            )
            losses.merge(regions.losses)
        loss = losses.weighted_total(loss_counts) + unused if losses else None
        return SpatialRGPTOutput(loss=loss, losses=losses or None, logits=logits, regions=regions)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"],
        *,
        pixel_values: Num[Tensor, "images 3 height width"] | None = None,
        depth_values: Num[Tensor, "depths 3 height width"] | None = None,
        depth_images: Int[Tensor, " depths"] | None = None,
        region_masks: Float[Tensor, "regions rows columns"] | None = None,
        region_images: Int[Tensor, " regions"] | None = None,
        region_geometry: Float[Tensor, "regions values"] | None = None,
        **generation,
    ) -> Int[Tensor, "batch new_tokens"]:
        """Generate answers for a batch of questions, padded on the left.

        Args:
            input_ids: Prompts with placeholders.
            attention_mask: 1 for tokens, 0 for padding.
            pixel_values: See `forward`, as all visual arguments.
            depth_values: See `forward`.
            depth_images: See `forward`.
            region_masks: See `forward`.
            region_images: See `forward`.
            region_geometry: See `forward`.
            generation: What `transformers`' `generate` takes: `max_new_tokens`, `do_sample`, ...

        Returns:
            The new tokens alone.
        """
        visuals = complete_visuals(
            self.config,
            input_ids.device,
            pixel_values=pixel_values,
            depth_values=depth_values,
            depth_images=depth_images,
            region_masks=region_masks,
            region_images=region_images,
            region_geometry=region_geometry,
        )
        embeds, _ = self._embed(input_ids, visuals)
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=attention_mask, **generation)

    def _embed(
        self, input_ids: Int[Tensor, "batch tokens"], visuals: Visuals
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, ""]]:
        """Token embeddings with all placeholders replaced, and a zero that keeps unused modules in the graph."""
        config = self.config
        image_map, tower_end = self._see(visuals.pixel_values)
        unused = [tower_end]
        rows: dict[int, Tensor] = {}
        coarse = image_map
        if self.region_encoder is not None:
            refined = self.region_encoder.refinement(image_map)
            # The image tokens are read off the refined map too, as in SpatialRGPT.
            coarse = F.adaptive_avg_pool2d(refined, config.grid)
            depth_map = None
            if config.enable_depth:
                depth_map, tower_end = self._see(visuals.depth_values)
                unused += [tower_end]
            regions = self.region_encoder(
                image_map,
                refined,
                depth_map,
                visuals.depth_images,
                visuals.region_masks,
                visuals.region_images,
                visuals.region_geometry,
            )
            unused += [touch(regions.rgb)]
            rows[config.mask_token_id] = regions.rgb
            if regions.depth is not None:
                unused += [touch(regions.depth)]
                rows[config.depth_token_id] = regions.depth[visuals.region_has_depth]
        tokens = self.projector(coarse)
        rows[config.image_token_id] = tokens[: visuals.num_images].flatten(0, 1)
        embeds = splice(
            self.get_input_embeddings()(input_ids),
            input_ids,
            rows,
            names={
                config.image_token_id: IMAGE_TOKEN,
                config.mask_token_id: MASK_TOKEN,
                config.depth_token_id: DEPTH_TOKEN,
            },
        )
        return embeds, touch(tokens, *unused)

    def _see(
        self, pixels: Num[Tensor, "pictures 3 height width"]
    ) -> tuple[Float[Tensor, "pictures channels rows columns"], Float[Tensor, ""]]:
        """Feature map of the vision tower for images or depth maps, and a zero that depends on the tower's end."""
        if not pixels.is_floating_point():
            mean = torch.tensor(self.config.image_mean, device=pixels.device).view(3, 1, 1)
            std = torch.tensor(self.config.image_std, device=pixels.device).view(3, 1, 1)
            pixels = (pixels.float() / 255 - mean) / std
        output = self.vision_tower(pixel_values=pixels.to(self.vision_tower.dtype), output_hidden_states=True)
        tokens = output.hidden_states[self.config.vision_feature_layer]
        height, width = self.config.grid
        grid = TokenGrid(height, width, num_prefix_tokens=tokens.shape[1] - height * width)
        # What lies behind the layer that is used would have no gradient on any rank, which DDP takes for a mistake.
        return tokens_to_map(tokens, grid), touch(*(value for value in output.values() if torch.is_tensor(value)))

    def _read(
        self, embeds: Float[Tensor, "batch tokens dim"], attention_mask: Num[Tensor, "batch tokens"] | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Last hidden state of the language model; positions count true tokens, wherever the padding is."""
        decoder = self.language_model.base_model
        positions = {}
        if attention_mask is not None and "position_ids" in inspect.signature(decoder.forward).parameters:
            positions["position_ids"] = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
        return decoder(
            inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False, **positions
        ).last_hidden_state

    def _region_features(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        input_ids: Int[Tensor, "batch tokens"],
        visuals: Visuals,
    ) -> Float[Tensor, "regions dim"]:
        """What the heads know of each region: the last hidden state at its placeholders, and its geometry."""
        features = hidden[input_ids == self.config.mask_token_id]
        if len(features) != len(visuals.region_images):
            expected = f"expected {len(visuals.region_images)} (one per region)"
            raise ValueError(f"{MASK_TOKEN}: found {len(features)} in the batch, {expected}")
        if self.config.enable_depth:
            at_depth = hidden[input_ids == self.config.depth_token_id]
            features = features.index_add(0, visuals.region_has_depth.nonzero().squeeze(1), at_depth)
        if self.head_geometry is not None:
            features = features + self.head_geometry(visuals.region_geometry)
        return features

    def _answer_with_heads(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        input_ids: Int[Tensor, "batch tokens"],
        visuals: Visuals,
        attention_mask: Num[Tensor, "batch tokens"] | None,
        task_types: Int[Tensor, " batch"] | None,
        region_targets: Mapping[str, Tensor] | None,
        question_positions: Int[Tensor, " batch"] | None,
    ) -> RegionHeadsOutput:
        """Run the typed heads on the regions of each question."""
        batch = input_ids.shape[0]
        counts = tuple((input_ids == self.config.mask_token_id).sum(1).tolist())
        padded, region_mask = RegionBatch(self._region_features(hidden, input_ids, visuals), counts).to_padded()
        question = None
        if question_positions is not None:
            question = self._question_vector(hidden, input_ids, attention_mask, question_positions)
        if task_types is None:
            task_types = torch.full((batch,), UNKNOWN_TASK, device=hidden.device)
        assert self.region_heads is not None
        return self.region_heads(
            padded,
            task_types,
            targets=None if region_targets is None else RegionTargets(**region_targets),
            region_mask=region_mask,
            question=question,
        )

    def _question_vector(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None,
        question_positions: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch dim"]:
        """State at the end of the question plus the mean over its words, so that a single word ("left") is not lost."""
        config = self.config
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        words = positions <= question_positions[:, None]
        for placeholder in (config.image_token_id, config.mask_token_id, config.depth_token_id):
            words = words & (input_ids != placeholder)
        if attention_mask is not None:
            words = words & attention_mask.bool()
        last = hidden[torch.arange(hidden.shape[0], device=hidden.device), question_positions]
        mean = (hidden * words[..., None]).sum(1) / words.sum(1, keepdim=True).clamp_min(1)
        return last + mean


def _language_model_loss(
    logits: Float[Tensor, "batch tokens vocabulary"], labels: Int[Tensor, "batch tokens"]
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Sum and count of the next-token cross-entropy; only rows with a target are carried to float32."""
    targets = labels[:, 1:]
    used = targets != IGNORED_LABEL
    return F.cross_entropy(logits[:, :-1][used].float(), targets[used], reduction="sum"), used.sum()


AutoConfig.register(SpatialRGPTConfig.model_type, SpatialRGPTConfig)
AutoModel.register(SpatialRGPTConfig, SpatialRGPTForConditionalGeneration)
AutoModelForCausalLM.register(SpatialRGPTConfig, SpatialRGPTForConditionalGeneration)
