"""`PSALMModel`: a language model reads an image and what is asked of it, and its mask tokens become masks.

One pass of the backbone serves the projector (image tokens), the region vectors and the pixel decoder. The states at
the mask tokens are the queries of the mask decoder; the states at the conditions (class names, a sentence, regions) are
what the queries are compared with (PSALM, Zhang et al. 2024, arXiv:2403.14598). A batch may mix all modes.

Every module runs in every step, on zero rows where a batch has none of its kind: otherwise ranks with different batches
wait for each other for ever under ZeRO-3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from deformable_projector import DeformableProjector, ProjectorType, SwinConvProjector, build_projector
from jaxtyping import Bool, Float, Int, UInt8
from region_core.losses import LossTerms, touch
from region_core.splicing import splice
from region_training.strict_loading import StrictModel
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, SwinBackbone
from transformers.utils import ModelOutput

from psalm.conditions import (
    ConditionHeads,
    PackedConditions,
    PaddedConditions,
    condition_vectors,
    pad_conditions,
    pool_conditions,
)
from psalm.configuration import PSALMConfig
from psalm.criterion import segmentation_losses
from psalm.image_pairs import look_at_references, look_at_targets, pair_images
from psalm.mask_decoder import MaskDecoder
from psalm.pixel_decoder import FpnVariant, PixelDecoder
from psalm.places import PlaceEmbedder
from psalm.points import SeededPoints, random_points
from psalm.region_embedder import RegionEmbedder
from psalm.targets import SegmentationTargets
from psalm.tokenizer import ALIGNED_TOKEN, IMAGE_TOKEN, QUERY_TOKEN, REGION_TOKEN

Maps = Sequence[Float[Tensor, "images _ _ _"]]


@dataclass
class PSALMOutput(ModelOutput):
    """What `PSALMModel` returns.

    Attributes:
        loss: Weighted sum of the loss terms; None without targets.
        losses: The terms by name, as sums and counts.
        mask_logits: One mask per query at the backbone's finest stride, `[batch, queries, height, width]`, float32.
        condition_logits: Of every query for every condition of its sample, `[batch, queries, conditions]`, float32.
        condition_mask: Which conditions a sample has, `[batch, conditions]`.
        region_similarity: With cross-image regions, how much each position of the target's coarsest map resembles the
            region, `[regions of cross-image samples, height, width]`.
    """

    loss: Tensor | None = None
    losses: LossTerms | None = None
    mask_logits: Tensor | None = None
    condition_logits: Tensor | None = None
    condition_mask: Tensor | None = None
    region_similarity: Tensor | None = None


class LearnedTokens(nn.Module):
    """Learned embeddings that take part in every sequence of a batch.

    A module, not a bare parameter: ZeRO-3 brings a parameter back when its own module runs.

    Args:
        num_tokens: How many.
        dim: Their width.
    """

    def __init__(self, num_tokens: int, dim: int) -> None:
        super().__init__()
        # PSALM starts from zeros, which makes all mask tokens one but for their places.
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, batch_size: int) -> Float[Tensor, "batch tokens dim"]:
        """The tokens, once per sequence."""
        return self.weight.repeat(batch_size, 1, 1)


class PSALMModel(StrictModel):
    """Segmentation by class names, by a sentence, by regions, and by regions of another image.

    Args:
        config: Sizes of all parts.
    """

    config: PSALMConfig
    config_class = PSALMConfig
    base_model_prefix = "psalm"
    # With "input_ids" activation checkpointing would ask gradients of all first layers, of a frozen backbone's too.
    main_input_name = "images"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: PSALMConfig) -> None:
        super().__init__(config)
        dim, mask_dim = config.hidden_size, config.mask.hidden_dim
        self.vision_tower = SwinBackbone(config.swin)
        self.projector = make_projector(config)
        self.region_embedder = RegionEmbedder(
            dim, geometry=config.region_geometry, level_dims=config.vision_dims if config.region_levels else ()
        )
        # A configuration may ask for float16, as published ones do; this model has one type, float32 if it is new.
        self.language_model = AutoModelForCausalLM.from_config(config.language, dtype=torch.get_default_dtype())
        self.mask_queries = LearnedTokens(config.num_mask_queries, dim)
        self.query_projector = nn.Linear(dim, mask_dim)
        self.pixel_decoder = PixelDecoder(config.mask, config.vision_dims, cast("FpnVariant", config.fpn_variant))
        self.mask_decoder = MaskDecoder(config.mask)
        self.condition_heads = ConditionHeads(dim, mask_dim)
        self.place_embedder = PlaceEmbedder(config.mask) if config.mask_places else None
        self.post_init()
        self._fix_unused()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Leave our own modules as their constructors made them; the library's initialise themselves."""

    def after_loading(self) -> None:
        """Fix again what no loss reaches."""
        self._fix_unused()

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Int[Tensor, "batch tokens"],
        images: UInt8[Tensor, "images 3 height width"],
        content_sizes: Int[Tensor, "images 2"],
        condition_index: Int[Tensor, "batch tokens"],
        condition_owner: Int[Tensor, " packed"],
        condition_kinds: Int[Tensor, " batch"],
        prompt_masks: Bool[Tensor, "regions height width"],
        prompt_images: Int[Tensor, " regions"],
        prompt_owner: Int[Tensor, " regions"],
        reference_owner: Int[Tensor, " references"],
        target_masks: Bool[Tensor, "targets height width"] | None = None,
        target_owner: Int[Tensor, " targets"] | None = None,
        target_conditions: Bool[Tensor, "targets conditions"] | None = None,
        point_seeds: Int[Tensor, " batch"] | None = None,
        record_ids: Sequence[str] | None = None,
        loss_counts: Mapping[str, float | int | Tensor] | None = None,
    ) -> PSALMOutput:
        """Segment a batch; without targets there are no losses.

        Args:
            input_ids: Sequences of `PSALMProcessor` with one placeholder per embedding, padded on the right.
            attention_mask: 1 for tokens, 0 for padding.
            images: The image of every sample, then the reference images.
            content_sizes: Height and width of each image inside its square, at the top left.
            condition_index: Packed number of the condition that a token belongs to; -1 for none.
            condition_owner: Sample of each condition.
            condition_kinds: Index into `CONDITION_KINDS` of each sample.
            prompt_masks: All prompted regions, samples in order.
            prompt_images: Row of the image that each region lies on.
            prompt_owner: Sample of each region; for who reads a batch, the model goes by the images.
            reference_owner: Sample of each reference image.
            target_masks: Target masks of all samples.
            target_owner: Sample of each target.
            target_conditions: Which conditions of its sample a target fulfils.
            point_seeds: Of the points at which each sample's masks are compared; without them torch's own generator
                draws.
            record_ids: What the samples are called on disk; for messages, not read here.
            loss_counts: Items of each loss term per micro-batch, averaged over the whole optimizer step.

        Raises:
            ValueError: Placeholders and embeddings do not match; the message names placeholder and sample.
        """
        batch_size = len(input_ids)
        maps = self._see(images)
        asked = PackedConditions(condition_index, condition_owner, condition_kinds)
        embeds, similarity = self._embed(
            input_ids, maps, content_sizes, asked, prompt_masks, prompt_images, reference_owner
        )
        hidden = self._read(embeds, attention_mask)
        states = hidden[input_ids == self.config.query_token_id].view(batch_size, self.config.num_mask_queries, -1)
        conditions = self._conditions(hidden, asked)
        features = self.pixel_decoder([level[:batch_size] for level in maps])
        queries = self.query_projector(states.to(self.query_projector.weight.dtype))
        if self.place_embedder is not None:
            queries, features = self.place_embedder(queries, features)
        decoded = self.mask_decoder(queries, features)
        judged = decoded.states[-1:] if target_masks is None else decoded.states
        logits = [self.condition_heads(state, conditions, condition_kinds) for state in judged]
        losses = loss = None
        if target_masks is not None:
            assert target_owner is not None
            assert target_conditions is not None
            targets = SegmentationTargets(target_masks, target_owner, target_conditions)
            draw = random_points if point_seeds is None else SeededPoints(point_seeds.tolist(), images.device)
            losses = segmentation_losses(
                decoded, logits, condition_kinds, conditions.mask, targets, self.config.criterion, draw_points=draw
            )
            loss = losses.weighted_total(loss_counts) + touch(embeds, *logits)
        return PSALMOutput(loss, losses, decoded.mask_logits[-1], logits[-1], conditions.mask, similarity)

    def _see(self, images: UInt8[Tensor, "images 3 height width"]) -> Maps:
        """The backbone's four maps, fine to coarse."""
        config = self.config
        mean, std = (
            torch.tensor(values, device=images.device).view(3, 1, 1) for values in (config.image_mean, config.image_std)
        )
        pixels = (images.float() - mean) / std
        return self.vision_tower(pixel_values=pixels.to(self.vision_tower.dtype)).feature_maps

    def _embed(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        maps: Maps,
        content_sizes: Int[Tensor, "images 2"],
        asked: PackedConditions,
        prompt_masks: Bool[Tensor, "regions height width"],
        prompt_images: Int[Tensor, " regions"],
        reference_owner: Int[Tensor, " references"],
    ) -> tuple[Float[Tensor, "batch tokens dim"], Tensor | None]:
        """Token embeddings with all placeholders replaced, and the similarity of cross-image regions."""
        config, batch_size = self.config, len(input_ids)
        valid = _valid_masks(content_sizes, maps, config.image_size)
        tokens = self._project(maps, valid)
        token_maps = tokens.mT.unflatten(2, config.image_grid)
        regions = self.region_embedder(token_maps, prompt_masks, prompt_images, maps)
        rows = {
            config.image_token_id: tokens[:batch_size],
            config.region_token_id: regions,
            config.query_token_id: self.mask_queries(batch_size),
            # Without them, a sequence that has some, of another model's processor, is an error.
            config.aligned_token_id: tokens.new_zeros((0, tokens.shape[-1])),
        }
        words = self.get_input_embeddings()(input_ids)
        similarity = None
        if "target_to_reference" in config.directions:
            rows[config.image_token_id] = look_at_references(
                cast("DeformableProjector", self.projector),
                tokens[:batch_size],
                maps,
                valid,
                pair_images(reference_owner, batch_size),
                prompt_masks,
                prompt_images,
            )
        if config.aligned_modes:
            is_paired = torch.isin(asked.owner, reference_owner)
            looks = (is_paired & ("reference_to_target" in config.directions)) | (~is_paired & config.condition_tokens)
            found = look_at_targets(
                cast("DeformableProjector", self.projector),
                condition_vectors(words, regions, asked)[looks],
                asked.owner[looks],
                maps,
                valid,
                batch_size,
            )
            rows[config.aligned_token_id] = found.rows
            similarity = None if found.similarity is None else found.similarity[is_paired[looks]]
        names = {
            config.image_token_id: IMAGE_TOKEN,
            config.region_token_id: REGION_TOKEN,
            config.query_token_id: QUERY_TOKEN,
            config.aligned_token_id: ALIGNED_TOKEN,
        }
        packed = {token: row.flatten(0, -2) for token, row in rows.items()}
        embeds = splice(words, input_ids, packed, names=names)
        return embeds, similarity

    def _project(self, maps: Maps, valid: Sequence[Bool[Tensor, "images _ _"]]) -> Float[Tensor, "images tokens dim"]:
        """Tokens of all images; the residual looks at no padding."""
        if isinstance(self.projector, DeformableProjector):
            return self.projector(maps, valid_masks=valid).tokens
        return self.projector(maps[-1])

    def _read(
        self, embeds: Float[Tensor, "batch tokens dim"], attention_mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Last states of the language model; its head, which predicts words, is not run."""
        decoder = self.language_model.base_model
        return decoder(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state

    def _conditions(self, hidden: Float[Tensor, "batch tokens dim"], asked: PackedConditions) -> PaddedConditions:
        """Embeddings of all conditions per sample."""
        pooled = pool_conditions(hidden, asked.index, len(asked.owner))
        rows = self.condition_heads.embed(pooled, asked.kinds[asked.owner])
        return pad_conditions(rows, asked.owner, len(hidden))

    def _fix_unused(self) -> None:
        """Keep fixed what no loss reaches: the word head (not where it is the embeddings too) and Swin's last norm."""
        embeddings = self.get_input_embeddings().weight
        for parameter in self.language_model.get_output_embeddings().parameters():
            parameter.requires_grad_(parameter is embeddings and embeddings.requires_grad)
        self.vision_tower.swin.layernorm.requires_grad_(False)


def make_projector(config: PSALMConfig) -> SwinConvProjector | DeformableProjector:
    """The projector that a configuration speaks of, with new weights."""
    return build_projector(
        cast("ProjectorType", config.projector_type),
        config.vision_dims,
        config.hidden_size,
        config=config.projector,
        conv_dim=config.projector_conv_dim,
        conv2_repeats=config.conv2_repeats,
    )


def _valid_masks(content_sizes: Int[Tensor, "images 2"], maps: Maps, side: int) -> list[Bool[Tensor, "images _ _"]]:
    """Positions of each map whose cell holds image, be it a part of one."""
    masks = []
    for level in maps:
        rows, columns = (torch.arange(size, device=level.device) * side // size for size in level.shape[-2:])
        inside_rows = rows < content_sizes[:, :1]
        inside_columns = columns < content_sizes[:, 1:]
        masks.append(inside_rows[:, :, None] & inside_columns[:, None, :])
    return masks


AutoModel.register(PSALMConfig, PSALMModel)
