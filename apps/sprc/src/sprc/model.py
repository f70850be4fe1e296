"""`SPRCModel`: composed image retrieval on BLIP-2 with a region loss.

A frozen vision tower, a trainable norm, the Q-Former in its four passes, and a region branch. Images come as uint8, or
as cached tokens of the tower ("pre-norm": the norm behind the tower is trained, so it is never cached).

Where images have no boxes the region branch runs on a dummy region: a rank without pairs must enter every module and
every collective as the others do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from region_core.losses import LossTerms
from region_training.strict_loading import StrictModel
from roi_region_loss.contrastive import unit_rows
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings
from transformers.utils import ModelOutput

from sprc.configuration import SPRCConfig
from sprc.losses import Temperature, align_sum, contrastive_sum, gather_candidates
from sprc.qformer import LearnedTokens, QueryComposer
from sprc.region_modes import RegionBranch, RegionView, add_region_terms, complete_pairs
from sprc.vision import make_tower, tower_tokens, value_tokens


@dataclass
class SPRCOutput(ModelOutput):
    """What `SPRCModel` returns.

    Attributes:
        loss: Weighted sum of the loss terms; None without targets.
        losses: The terms by name, as sums and counts; terms of weight 0 are there for the log.
        query_features: Composed queries, `[batch, shared]`.
        prompt_features: Auxiliary queries of the captions alone, `[batch, shared]`.
        target_features: Targets, `[batch, queries, shared]`.
    """

    loss: Tensor | None = None
    losses: LossTerms | None = None
    query_features: Tensor | None = None
    prompt_features: Tensor | None = None
    target_features: Tensor | None = None


class Seen(NamedTuple):
    """An image batch as the Q-Former and the region branch read it: tokens behind the trainable norm."""

    tokens: Float[Tensor, "batch tokens channels"]
    regions: RegionView


class SPRCModel(StrictModel):
    """Composed image retrieval: a reference image and a caption find a target image.

    `use_region_loss` and `region_weight` may be set at any time, alike on all ranks: the region branch runs where the
    first is on and the second is not 0.

    Args:
        config: Sizes of all parts and the weights of the losses.
    """

    config: SPRCConfig
    config_class = SPRCConfig
    base_model_prefix = "sprc"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: SPRCConfig) -> None:
        super().__init__(config)
        self.vision_tower = make_tower(config.vision, _dtype_of(config))
        self.ln_vision = nn.LayerNorm(config.vision.hidden_size, eps=config.ln_vision_eps)
        self.composer = QueryComposer(config)
        self.temperature = Temperature()
        self.region_branch = RegionBranch(config)
        self.use_region_loss: bool = config.use_region_loss
        self.region_weight: float = config.loss_region
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what is ours; tower and Q-Former initialise themselves, and the region loss keeps its scale."""
        super()._init_weights(module)
        if isinstance(module, LearnedTokens):
            # BLIP-2's own zeros would make all queries one.
            init.normal_(module.weight, std=0.02)
        elif isinstance(module, Blip2TextEmbeddings):
            # Not saved, so a model that is built without memory has to be given it here.
            init.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand((1, -1)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any):
        """Load a saved model; a missing, unexpected or misshapen weight is an error, never a random number.

        The tower has the type `config.vision_dtype`, and what is trained is float32 unless a `dtype` is given.

        Raises:
            ValueError: The weights do not match the configuration; the message names them.
        """
        # transformers would load all that is trained in the type of the first weight, the tower's.
        kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def after_loading(self) -> None:
        """Freeze the tower again."""
        self.vision_tower.requires_grad_(False)

    def train(self, mode: bool = True) -> "SPRCModel":
        """Switch dropout on or off; the frozen tower stays in evaluation mode."""
        super().train(mode)
        self.vision_tower.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Word embeddings of the captions."""
        return self.composer.embeddings.word_embeddings

    def forward(
        self,
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Num[Tensor, "batch words"],
        reference_images: Num[Tensor, "batch 3 height width"] | None = None,
        target_images: Num[Tensor, "batch 3 height width"] | None = None,
        reference_tokens: Float[Tensor, "batch tokens channels"] | None = None,
        target_tokens: Float[Tensor, "batch tokens channels"] | None = None,
        reference_ids: Int[Tensor, " batch"] | None = None,
        target_ids: Int[Tensor, " batch"] | None = None,
        reference_boxes: Float[Tensor, "pairs 4"] | None = None,
        target_boxes: Float[Tensor, "pairs 4"] | None = None,
        pair_owner: Int[Tensor, " pairs"] | None = None,
        pair_weights: Float[Tensor, " pairs"] | None = None,
        dropped_regions: Int[Tensor, "batch reasons"] | None = None,
        record_ids: Sequence[str] | None = None,
        loss_counts: Mapping[str, float | int | Tensor] | None = None,
    ) -> SPRCOutput:
        """Run the model on triplets; without targets there are query features and no losses.

        Args:
            input_ids: Captions as [CLS], words, [SEP], padding.
            attention_mask: 1 for words, 0 for padding.
            reference_images: Reference images, uint8 or already normalised.
            target_images: Target images.
            reference_tokens: Cached tokens in place of reference images; see `image_tokens`.
            target_tokens: Cached tokens in place of target images.
            reference_ids: Number of each reference image, equal on all ranks for equal images.
            target_ids: Number of each target image; rows with the same target are no negatives of each other.
            reference_boxes: Regions of the reference images, paired with `target_boxes` row by row; both in the frame
                of the model's input. No boxes are no pairs.
            target_boxes: Regions of the target images.
            pair_owner: Triplet of each pair.
            pair_weights: Weight of each pair in the region loss; 1 by default.
            dropped_regions: Regions left out per triplet, by `roi_region_loss.DropReason`; for the log.
            record_ids: What the triplets are called on disk; for the trainer, not read here.
            loss_counts: Items of each loss term per micro-batch, averaged over the whole optimizer step.

        Raises:
            ValueError: Images or tokens are missing, or given twice; or the region mode cannot work with tokens.
        """
        with_targets = target_images is not None or target_tokens is not None
        with_regions = with_targets and self.use_region_loss and self.region_weight != 0
        reference = self._look("reference", reference_images, reference_tokens, with_regions)
        fused = self.composer.fuse(reference.tokens, input_ids, attention_mask)
        queries = self.composer.read_prompted(fused, input_ids, attention_mask)
        prompts = self.composer.read_soft_prompts(input_ids, attention_mask)
        if not with_targets:
            return SPRCOutput(query_features=queries, prompt_features=prompts)
        target = self._look("target", target_images, target_tokens, with_regions)
        targets = self.composer.encode_image(target.tokens)
        losses = self._retrieval_losses(queries, prompts, fused, targets, target_ids)
        if with_regions:
            pairs = complete_pairs(
                reference_boxes,
                target_boxes,
                pair_owner,
                pair_weights,
                reference_ids,
                target_ids,
                batch_size=len(input_ids),
                device=input_ids.device,
            )
            regions = self.region_branch(self.composer, pairs, reference.regions, target.regions)
            add_region_terms(losses, regions, self.region_weight, dropped_regions)
        if loss_counts is not None:
            # A collate function counts no boxes where there are none, and knows nothing of terms for the log.
            unknown = [name for name, term in losses.items() if term.weight == 0]
            unknown += ["region"] if reference_boxes is None else []
            loss_counts = {**dict.fromkeys(unknown, 0.0), **loss_counts}
        loss = losses.weighted_total(loss_counts)
        if not with_regions:
            # Otherwise these parameters would have no gradient, which DDP takes for a mistake.
            loss = loss + self.region_branch.rest()
        return SPRCOutput(loss, losses, queries, prompts, targets)

    def image_tokens(self, images: Num[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens channels"]:
        """Output of the frozen tower before the trainable norm: what a token cache holds.

        Args:
            images: uint8, or already normalised.
        """
        return tower_tokens(self.vision_tower, images, normalisation=self.config.normalisation)

    def encode_targets(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch queries shared"]:
        """Features of gallery images from their `image_tokens`; a query's score is the largest of its products."""
        return self.composer.encode_image(self._normed(tokens))

    def compose(
        self,
        tokens: Float[Tensor, "batch tokens channels"],
        input_ids: Int[Tensor, "batch words"],
        attention_mask: Num[Tensor, "batch words"],
    ) -> Float[Tensor, "batch shared"]:
        """Query features of reference images (as `image_tokens`) with captions."""
        fused = self.composer.fuse(self._normed(tokens), input_ids, attention_mask)
        return self.composer.read_prompted(fused, input_ids, attention_mask)

    def text_only(
        self, input_ids: Int[Tensor, "batch words"], attention_mask: Num[Tensor, "batch words"]
    ) -> Float[Tensor, "batch shared"]:
        """Query features of captions without an image: a baseline."""
        return self.composer.read_soft_prompts(input_ids, attention_mask)

    def image_only(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch shared"]:
        """Query features of images without a caption, the mean of their target features: a baseline."""
        return unit_rows(self.encode_targets(tokens).mean(dim=1))

    def region_features(
        self,
        images: Num[Tensor, "batch 3 height width"],
        boxes: Float[Tensor, "regions 4"],
        owner: Int[Tensor, " regions"],
    ) -> Float[Tensor, "regions shared"]:
        """Unit embeddings of regions, as the region loss compares them.

        Args:
            images: uint8, or already normalised.
            boxes: In the frame of the model's input.
            owner: Image of each box.
        """
        view = self._look("region", images, None, with_regions=True).regions
        return unit_rows(self.region_branch.embed(self.composer, self.region_branch.pool(view, boxes, owner)))

    def _normed(self, tokens: Float[Tensor, "batch tokens channels"]) -> Float[Tensor, "batch tokens channels"]:
        return self.ln_vision(tokens.to(self.ln_vision.weight.dtype))

    def _look(
        self,
        side: str,
        images: Num[Tensor, "batch 3 height width"] | None,
        tokens: Float[Tensor, "batch tokens channels"] | None,
        with_regions: bool,
    ) -> Seen:
        """Tokens behind the norm, from images or from cached tokens."""
        by_value = with_regions and self.config.region_mode == "value"
        if images is not None and tokens is not None:
            raise ValueError(f"expected either {side}_images or {side}_tokens, got both")
        if images is None:
            if tokens is None:
                raise ValueError(f"expected {side}_images or {side}_tokens, got neither")
            if by_value:
                raise ValueError(
                    f"region_mode 'value' needs {side}_images, got {side}_tokens: the value path of the tower's last "
                    "block cannot be had from its cached output; use 'qformer' or 'tokens', or no token cache"
                )
            grid = self.config.grid
            if tokens.shape[1] != grid.num_tokens:
                raise ValueError(f"{side}_tokens: got {tokens.shape[1]} tokens per image, expected {grid.num_tokens}")
            normed = self._normed(tokens)
            return Seen(normed, RegionView(normed, grid))
        grid = self.config.grid_of(*images.shape[-2:])
        if not by_value:
            normed = self._normed(self.image_tokens(images))
            return Seen(normed, RegionView(normed, grid))
        tokens, values = value_tokens(self.vision_tower, images, normalisation=self.config.normalisation)
        return Seen(self._normed(tokens), RegionView(self._normed(values), grid))

    def _retrieval_losses(
        self,
        queries: Float[Tensor, "batch shared"],
        prompts: Float[Tensor, "batch shared"],
        fused: Float[Tensor, "batch queries dim"],
        targets: Float[Tensor, "batch queries shared"],
        target_ids: Int[Tensor, " batch"] | None,
    ) -> LossTerms:
        """SPRC's three losses."""
        losses, batch, config = LossTerms(), len(fused), self.config
        candidates, scale = gather_candidates(targets, target_ids), self.temperature()
        losses.add("itc", contrastive_sum(queries, candidates, scale), batch, config.loss_itc)
        losses.add("rtc", contrastive_sum(prompts, candidates, scale), batch, config.loss_rtc)
        losses.add("align", align_sum(fused, self.composer.mean_prompt()), batch, config.loss_align)
        losses.add("temperature", 1.0 / scale.detach(), 1, weight=0.0)
        return losses


def _dtype_of(config: SPRCConfig) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.vision_dtype]


AutoConfig.register(SPRCConfig.model_type, SPRCConfig)
AutoModel.register(SPRCConfig, SPRCModel)
