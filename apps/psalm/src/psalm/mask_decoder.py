"""The mask decoder: queries of the language model look at the image and become masks.

It is Mask2Former's masked-attention decoder (Cheng et al. 2022, arXiv:2112.01527, section 3.2), whose queries here come
from outside: the language model's states at its mask tokens. Mask2Former's learned query *features* are not used, its
learned query *positions* are. All of it runs in float32 (see `psalm.precision`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers import initialization as init
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoder,
    Mask2FormerSinePositionEmbedding,
)

from psalm.pixel_decoder import Mask2FormerPart, PixelFeatures
from psalm.precision import compute_in_float32

NUM_LEVELS = 3
"""Levels that the decoder's layers look at in turn; fixed in Mask2Former."""


class DecodedMasks(NamedTuple):
    """The predictions before the first layer and after every layer; the last one is final.

    Attributes:
        mask_logits: Masks at the stride of the mask features.
        states: Normed states of the queries, what conditions are compared with.
    """

    mask_logits: tuple[Float[Tensor, "batch queries height width"], ...]
    states: tuple[Float[Tensor, "batch queries dim"], ...]


class MaskDecoder(Mask2FormerPart):
    """Mask2Former's masked-attention decoder for given queries, in float32.

    Args:
        config: Sizes: `hidden_dim`, `num_queries`, `decoder_layers` (counted with the prediction before the first
            layer), `num_attention_heads`, `dim_feedforward`; and those of the pixel decoder.

    Raises:
        ValueError: The configuration has dropout.
    """

    main_input_name = "queries"
    supports_gradient_checkpointing = True

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        if config.dropout != 0:
            raise ValueError(
                f"mask decoder: got dropout {config.dropout}, expected 0: this decoder drops whole layers at that "
                "rate, others on every rank, and ranks that run different layers wait for each other for ever"
            )
        dim = config.hidden_dim
        needs_projection = config.feature_size != dim or config.enforce_input_projection
        self.position_embedder = Mask2FormerSinePositionEmbedding(num_position_features=dim // 2, normalize=True)
        self.queries_embedder = nn.Embedding(config.num_queries, dim)
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)
        self.input_projections = nn.ModuleList(
            nn.Conv2d(config.feature_size, dim, kernel_size=1) if needs_projection else nn.Identity()
            for _ in range(NUM_LEVELS)
        )
        self.decoder = Mask2FormerMaskedAttentionDecoder(config)
        compute_in_float32(self)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as Mask2Former does."""
        super()._init_weights(module)
        if isinstance(module, MaskDecoder):
            for projection in module.input_projections:
                if isinstance(projection, nn.Conv2d) and projection.bias is not None:
                    init.xavier_uniform_(projection.weight, gain=self.config.init_xavier_std)
                    init.constant_(projection.bias, 0)

    def forward(self, queries: Float[Tensor, "batch queries dim"], features: PixelFeatures) -> DecodedMasks:
        """Predict a mask for every query.

        Args:
            queries: Initial states, of any float type.
            features: What the pixel decoder made of the images.

        Returns:
            float32 predictions, `decoder_layers` of them.

        Raises:
            ValueError: There are more or fewer queries than learned query positions.
        """
        if queries.shape[1] != self.config.num_queries:
            raise ValueError(f"mask decoder: got {queries.shape[1]} queries, expected {self.config.num_queries}")
        with torch.autocast(queries.device.type, enabled=False):
            return self._decode(queries.float(), features)

    def _decode(self, queries: Float[Tensor, "batch queries dim"], features: PixelFeatures) -> DecodedMasks:
        device = queries.device
        # The tables are called, not read: ZeRO-3 brings a weight back when its own module runs.
        level_embeds = self.level_embed(torch.arange(NUM_LEVELS, device=device))
        query_positions = self.queries_embedder(torch.arange(queries.shape[1], device=device))
        keys, positions = [], []
        for projection, level, level_embed in zip(self.input_projections, features.levels, level_embeds, strict=True):
            projected = projection(level.float())
            position = self.position_embedder(projected.shape, device, projected.dtype)
            keys.append(projected.flatten(2).permute(2, 0, 1) + level_embed)
            positions.append(position.flatten(2).permute(2, 0, 1))
        decoded = self.decoder(
            inputs_embeds=queries.transpose(0, 1),
            multi_stage_positional_embeddings=positions,
            pixel_embeddings=features.mask_features.float(),
            encoder_hidden_states=keys,
            query_position_embeddings=query_positions[:, None].repeat(1, len(queries), 1),
            feature_size_list=[level.shape[-2:] for level in features.levels],
            return_dict=True,
        )
        states = tuple(state.transpose(0, 1) for state in decoded.intermediate_hidden_states)
        return DecodedMasks(decoded.masks_queries_logits, states)
