"""SpatialRGPT: a vision tower, region embeddings, a causal language model and typed heads, composed.

The processor writes one `<image>` id per image token, one `<mask>` id per region and one `<depth>` id per region with
depth; the model only replaces their embeddings. Heads read the language model's last hidden state at the region
placeholders, and over the words of the question: a region placeholder cannot have read the words behind it.

Every enabled module runs in every forward, on an empty picture or a zero row where a batch has none of its kind:
otherwise ranks with different batches wait for each other for ever under ZeRO-3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from region_core.geometry import GEOMETRY_DIM, GeometryEmbedding
from region_core.grids import TokenGrid, tokens_to_map
from region_core.losses import LossTerms, touch
from region_core.regions import RegionBatch
from region_core.splicing import splice
from region_heads.region_heads import RegionHeads, RegionHeadsOutput
from region_heads.targets import RegionTargets
from region_heads.tasks import UNKNOWN_TASK
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from spatialrgpt.configuration import DEPTH_TOKEN, IMAGE_TOKEN, MASK_TOKEN, SpatialRGPTConfig
from spatialrgpt.region_encoder import ImageProjector, RegionEncoder

IGNORED_LABEL = -100


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


class Visuals(NamedTuple):
    """Pictures and regions of a batch, after dummies have been added so that no module is left out."""

    pixel_values: Tensor
    depth_values: Tensor | None
    depth_images: Tensor | None
    region_masks: Tensor
    region_images: Tensor
    region_geometry: Tensor


class SpatialRGPTForConditionalGeneration(PreTrainedModel):
    """Region-level vision-language model with typed answers.

    Args:
        config: Sizes of all parts and the guide's switches.
    """

    config_class = SpatialRGPTConfig
    base_model_prefix = "spatialrgpt"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: SpatialRGPTConfig) -> None:
        super().__init__(config)
        text_dim = config.text_config.hidden_size
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.projector = ImageProjector(config.vision_config.hidden_size, text_dim, config.projector_downsample)
        self.region_encoder = RegionEncoder(config) if config.enable_region else None
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.region_heads = RegionHeads(text_dim, config.region_heads_cfg) if config.enable_region_heads else None
        self.head_geometry = (
            GeometryEmbedding(text_dim) if config.enable_region_heads and config.region_geometry else None
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave the bricks as their constructors made them; tower and language model initialise themselves."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a saved model; a missing, unexpected or misshapen weight is an error, never a random number.

        Raises:
            ValueError: The weights do not match the configuration; the message lists them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        problems = {kind: sorted(map(str, info[kind])) for kind in info if info[kind]}
        if problems:
            listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items())
            raise ValueError(f"{args[0]!s}: weights and configuration do not match. {listed}")
        return (model, info) if wants_info else model

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
        embeds, unused = self._embed(
            input_ids, pixel_values, depth_values, depth_images, region_masks, region_images, region_geometry
        )
        output = self.language_model.base_model(inputs_embeds=embeds, attention_mask=attention_mask)
        hidden = output.last_hidden_state
        logits = self.language_model.get_output_embeddings()(hidden)
        losses = LossTerms()
        if labels is not None:
            total, count = _language_model_loss(logits, labels)
            losses.add("lm", total, count, weight=self.config.lm_loss_weight)
        regions = None
        if self.region_heads is not None:
            features = self._region_features(hidden, input_ids, region_geometry, region_images, depth_images)
            regions = self._answer_with_heads(
                features, hidden, input_ids, attention_mask, task_types, region_targets, question_positions
            )
            losses.merge(regions.losses)
        loss = None
        if losses:
            loss = losses.weighted_total(loss_counts) + unused
        return SpatialRGPTOutput(loss=loss, losses=losses if losses else None, logits=logits, regions=regions)

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
        embeds, _ = self._embed(
            input_ids, pixel_values, depth_values, depth_images, region_masks, region_images, region_geometry
        )
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=attention_mask, **generation)

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        depth_values: Tensor | None,
        depth_images: Tensor | None,
        region_masks: Tensor | None,
        region_images: Tensor | None,
        region_geometry: Tensor | None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, ""]]:
        """Token embeddings with all placeholders replaced, and a zero that keeps unused modules in the graph."""
        config = self.config
        given = Visuals(pixel_values, depth_values, depth_images, region_masks, region_images, region_geometry)
        visuals = self._with_dummies(given, input_ids.device)
        image_map = self._see(visuals.pixel_values)
        rows: dict[int, Tensor] = {}
        outputs: list[Tensor] = []
        if self.region_encoder is not None:
            refined = self.region_encoder.refinement(image_map)
            # The image tokens are read off the refined map too, as in SpatialRGPT.
            coarse = F.adaptive_avg_pool2d(refined, image_map.shape[-2:])
            depth_map = None if visuals.depth_values is None else self._see(visuals.depth_values)
            regions = self.region_encoder(
                image_map,
                refined,
                depth_map,
                visuals.depth_images,
                visuals.region_masks,
                visuals.region_images,
                visuals.region_geometry,
            )
            outputs += [regions.rgb]
            rows[config.mask_token_id] = regions.rgb if region_masks is not None else regions.rgb[:0]
            if regions.depth is not None:
                outputs += [regions.depth]
                has_depth = self._regions_with_depth(region_images, depth_images, regions.depth)
                rows[config.depth_token_id] = regions.depth[has_depth]
        else:
            coarse = image_map
        tokens = self.projector(coarse)
        outputs += [tokens]
        rows[config.image_token_id] = tokens.flatten(0, 1) if pixel_values is not None else tokens[:0].flatten(0, 1)
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
        return embeds, touch(*outputs)

    def _with_dummies(self, given: Visuals, device: torch.device) -> Visuals:
        """Add an empty picture, depth map or region where the batch has none, so that every module runs."""
        pixels = given.pixel_values
        if pixels is None:
            pixels = torch.zeros(1, 3, *self.config.image_size, dtype=torch.uint8, device=device)
        depths, depth_images = given.depth_values, given.depth_images
        if not (self.config.enable_region and self.config.enable_depth):
            depths, depth_images = None, None
        elif depths is None:
            depths = torch.zeros_like(pixels[:1])
            depth_images = torch.zeros(1, dtype=torch.long, device=device)
        masks, images, geometry = given.region_masks, given.region_images, given.region_geometry
        if masks is None or images is None or geometry is None:
            masks = torch.zeros(1, *self.config.region_grid, device=device)
            images = torch.zeros(1, dtype=torch.long, device=device)
            geometry = torch.zeros(1, GEOMETRY_DIM, device=device)
        return Visuals(pixels, depths, depth_images, masks, images, geometry)

    @staticmethod
    def _regions_with_depth(
        region_images: Tensor | None, depth_images: Tensor | None, rows: Float[Tensor, "regions dim"]
    ) -> Bool[Tensor, " regions"]:
        """Which regions have a `<depth>` placeholder; none of a dummy's rows has."""
        if region_images is None or depth_images is None:
            return torch.zeros(rows.shape[0], dtype=torch.bool, device=rows.device)
        return torch.isin(region_images, depth_images)

    def _see(self, pixels: Num[Tensor, "images 3 height width"]) -> Float[Tensor, "images channels rows columns"]:
        """Feature map of the vision tower for images or depth maps."""
        if not pixels.is_floating_point():
            mean = torch.tensor(self.config.image_mean, device=pixels.device).view(3, 1, 1)
            std = torch.tensor(self.config.image_std, device=pixels.device).view(3, 1, 1)
            pixels = (pixels.float() / 255 - mean) / std
        pixels = pixels.to(self.projector.layers[1].weight.dtype)
        layer = self.config.vision_feature_layer
        output = self.vision_tower(pixel_values=pixels, output_hidden_states=True)
        tokens = output.hidden_states[layer]
        height, width = self.config.grid
        return tokens_to_map(tokens, TokenGrid(height, width, num_prefix_tokens=tokens.shape[1] - height * width))

    def _region_features(
        self,
        hidden: Float[Tensor, "batch tokens dim"],
        input_ids: Int[Tensor, "batch tokens"],
        region_geometry: Float[Tensor, "regions values"] | None,
        region_images: Int[Tensor, " regions"] | None,
        depth_images: Int[Tensor, " depths"] | None,
    ) -> Float[Tensor, "regions dim"]:
        """What the heads know of each region: the last hidden state at its placeholders, and its geometry."""
        features = hidden[input_ids == self.config.mask_token_id]
        if self.config.enable_depth:
            at_depth = hidden[input_ids == self.config.depth_token_id]
            rows = self._regions_with_depth(region_images, depth_images, features).nonzero().squeeze(1)
            features = features.index_add(0, rows, at_depth)
        if self.head_geometry is not None:
            if region_geometry is None:
                region_geometry = features.new_zeros(features.shape[0], GEOMETRY_DIM)
            features = features + self.head_geometry(region_geometry)
        return features

    def _answer_with_heads(
        self,
        features: Float[Tensor, "regions dim"],
        hidden: Float[Tensor, "batch tokens dim"],
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Num[Tensor, "batch tokens"] | None,
        task_types: Int[Tensor, " batch"] | None,
        region_targets: Mapping[str, Tensor] | None,
        question_positions: Int[Tensor, " batch"] | None,
    ) -> RegionHeadsOutput:
        """Run the typed heads on the regions of each question."""
        batch = input_ids.shape[0]
        counts = tuple((input_ids == self.config.mask_token_id).sum(1).tolist())
        padded, region_mask = RegionBatch(features, counts).to_padded()
        question = None
        if question_positions is not None:
            question = self._question_vector(hidden, input_ids, attention_mask, question_positions)
        if task_types is None:
            task_types = torch.full((batch,), UNKNOWN_TASK, device=hidden.device)
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
