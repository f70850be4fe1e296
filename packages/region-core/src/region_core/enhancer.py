"""The region feature extractor ("region enhancer"): regions of an image look at each other and at the image.

RGB and depth embeddings of the regions stand on one sequence axis, told apart by learned modality embeddings. They
pass self-attention layers, then cross-attention layers onto the image tokens; what comes out is added to the input
through a gate that starts at zero. So a pretrained model is unchanged to the bit when the module is inserted, and
training opens the gate as far as it helps. No position enters: permuting the regions permutes the result.

It belongs between mask pooling and the connectors, at the width of the vision tower.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import CrossAttentionBlock, LayerGate, SelfAttentionBlock
from .config import RegionEnhancerConfig

MODALITY_STD = 0.02
"""Spread of the modality embeddings at the start, the usual one for embeddings (BERT, Devlin et al. 2019)."""


class EnhancedRegions(NamedTuple):
    """Enhanced embeddings of the regions, in the shape of what was given; `depth` is None without depth."""

    rgb: Float[Tensor, "*batch regions dim"]
    depth: Float[Tensor, "*batch regions dim"] | None


class RegionFeatureExtractor(nn.Module):
    """Enhance region embeddings by the other regions and by the image; exactly the identity at the start.

    Attributes:
        gradient_checkpointing: Recompute the layers in backward instead of keeping their activations.

    Args:
        dim: Width of region embeddings and image tokens.
        num_heads: Attention heads; must divide `dim`.
        num_transformer_layers: Self-attention layers over the regions of an image.
        num_cross_attn_layers: Cross-attention layers from the regions to the image tokens.
        dropout: Probability of dropping while training.
        activation: One of `region_core.config.ACTIVATIONS`.
        geometry_dim: Number of geometry values per region (see `region_core.geometry`), 0 for none. Mask-pooled
            embeddings have lost where the region is; these values tell the layers, and nothing but the layers.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_transformer_layers: int = 6,
        num_cross_attn_layers: int = 1,
        dropout: float | int = 0.1,
        activation: str = "gelu",
        *,
        geometry_dim: int = 0,
    ) -> None:
        super().__init__()
        settings = RegionEnhancerConfig(num_heads, num_transformer_layers, num_cross_attn_layers, dropout, activation)
        if dim < 1 or dim % settings.num_heads != 0:
            raise ValueError(
                f"RegionFeatureExtractor: dim must be a multiple of num_heads, got dim={dim} and num_heads={num_heads}"
            )
        if geometry_dim < 0:
            raise ValueError(f"RegionFeatureExtractor: geometry_dim must be 0 or more, got {geometry_dim}")
        self.dim = dim
        self.gradient_checkpointing = False
        # Rows: RGB, depth. One parameter, so that a batch without depth still uses it.
        self.modality_embeddings = nn.Parameter(torch.empty(2, dim))
        # Without a bias, absent geometry is the same as zero geometry and adds nothing.
        self.geometry_embedding = nn.Linear(geometry_dim, dim, bias=False) if geometry_dim > 0 else None
        self.self_attention_layers = nn.ModuleList(
            SelfAttentionBlock(dim, num_heads, dropout=dropout, activation=activation)
            for _ in range(num_transformer_layers)
        )
        self.cross_attention_layers = nn.ModuleList(
            CrossAttentionBlock(dim, num_heads, dropout=dropout, activation=activation)
            for _ in range(num_cross_attn_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.gate = LayerGate(dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the module's own parameters: the embeddings, and the gate to zero (identity)."""
        nn.init.normal_(self.modality_embeddings, std=MODALITY_STD)
        self.gate.reset_parameters()

    def forward(
        self,
        rgb_features: Float[Tensor, "*batch regions dim"],
        depth_features: Float[Tensor, "*batch regions dim"] | None = None,
        image_features: Float[Tensor, "*batch tokens dim"] | None = None,
        region_mask: Bool[Tensor, "*batch regions"] | None = None,
        geometry: Float[Tensor, "*batch regions values"] | None = None,
        depth_mask: Bool[Tensor, "*batch regions"] | None = None,
    ) -> EnhancedRegions:
        """Enhance the regions of a batch of images, or of one image without a batch axis.

        Every parameter takes part in every call, whatever is None or empty, so that ranks with different batches
        stay together in distributed training.

        Args:
            rgb_features: Embeddings of the regions; 0 regions are legal.
            depth_features: Depth embeddings of the same regions; the same weights serve with and without them.
            image_features: Tokens of the whole image; without them cross-attention reads nothing.
            region_mask: True where a region is real. Padding changes no other row and is returned as it came.
            geometry: Geometry values of each region, for a module that was built with `geometry_dim`.
            depth_mask: True where a real region has depth, for batches that mix images with and without it.

        Returns:
            The pair (rgb, depth), each in the shape and type of what was given.

        Raises:
            ValueError: Ranks, widths or lengths do not fit each other.
        """
        if rgb_features.ndim == 2:
            return self._forward_one(rgb_features, depth_features, image_features, region_mask, geometry, depth_mask)
        self._check(rgb_features, depth_features, image_features, geometry)
        num_regions = rgb_features.shape[1]
        num_modalities = 1 if depth_features is None else 2
        given = rgb_features if depth_features is None else torch.cat([rgb_features, depth_features], dim=1)
        token_mask = _token_mask(region_mask, depth_mask, given, num_modalities)

        tokens = given + self.modality_embeddings[:num_modalities].repeat_interleave(num_regions, dim=0)
        if self.geometry_embedding is not None:
            if geometry is None:
                geometry = given.new_zeros(len(given), num_regions, self.geometry_embedding.in_features)
            tokens = tokens + self.geometry_embedding(geometry.to(given.dtype)).repeat(1, num_modalities, 1)
        if token_mask is not None:
            # Attention gives padding the weight 0, but 0 x NaN is NaN: padding may hold anything.
            tokens = tokens.masked_fill(~token_mask.unsqueeze(-1), 0.0)
        update = self.gate(self.norm(self._run_layers(tokens, token_mask, image_features)))
        if token_mask is not None:
            update = update.masked_fill(~token_mask.unsqueeze(-1), 0.0)
        enhanced = given + update.to(given.dtype)
        return EnhancedRegions(enhanced[:, :num_regions], None if depth_features is None else enhanced[:, num_regions:])

    def _forward_one(
        self,
        rgb_features: Float[Tensor, "regions dim"],
        depth_features: Float[Tensor, "regions dim"] | None,
        image_features: Float[Tensor, "tokens dim"] | None,
        region_mask: Bool[Tensor, " regions"] | None,
        geometry: Float[Tensor, "regions values"] | None,
        depth_mask: Bool[Tensor, " regions"] | None,
    ) -> EnhancedRegions:
        """Enhance the regions of one image, without a batch axis in and out."""
        enhanced = self.forward(
            rgb_features.unsqueeze(0),
            None if depth_features is None else depth_features.unsqueeze(0),
            None if image_features is None else image_features.unsqueeze(0),
            None if region_mask is None else region_mask.unsqueeze(0),
            None if geometry is None else geometry.unsqueeze(0),
            None if depth_mask is None else depth_mask.unsqueeze(0),
        )
        # Index 0, not squeeze: only the axis that was added here goes away.
        return EnhancedRegions(enhanced.rgb[0], None if enhanced.depth is None else enhanced.depth[0])

    def _run_layers(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        token_mask: Bool[Tensor, "batch tokens"] | None,
        image_features: Float[Tensor, "batch image_tokens dim"] | None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Pass the tokens through all layers; without an image the cross-attention runs on a masked dummy token."""
        image_mask = None
        if image_features is None:
            image_features = tokens.new_zeros(len(tokens), 1, self.dim)
            image_mask = torch.zeros(len(tokens), 1, dtype=torch.bool, device=tokens.device)
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.self_attention_layers:
            if recompute:
                tokens = checkpoint(layer, tokens, token_mask, use_reentrant=False)
            else:
                tokens = layer(tokens, token_mask)
        for layer in self.cross_attention_layers:
            if recompute:
                tokens = checkpoint(layer, tokens, image_features, image_mask, use_reentrant=False)
            else:
                tokens = layer(tokens, image_features, image_mask)
        return tokens

    def _check(
        self,
        rgb_features: Tensor,
        depth_features: Tensor | None,
        image_features: Tensor | None,
        geometry: Tensor | None,
    ) -> None:
        """Name the input that does not fit; every tensor has a batch axis here."""
        if rgb_features.ndim != 3 or rgb_features.shape[-1] != self.dim:
            raise ValueError(
                f"RegionFeatureExtractor: expected rgb_features of shape [batch, regions, {self.dim}] or "
                f"[regions, {self.dim}], got {tuple(rgb_features.shape)}"
            )
        if depth_features is not None and depth_features.shape != rgb_features.shape:
            raise ValueError(
                f"RegionFeatureExtractor: depth_features must have the shape of rgb_features, "
                f"{tuple(rgb_features.shape)}, got {tuple(depth_features.shape)}"
            )
        if image_features is not None and (
            image_features.ndim != 3 or len(image_features) != len(rgb_features) or image_features.shape[-1] != self.dim
        ):
            raise ValueError(
                f"RegionFeatureExtractor: expected image_features of shape [{len(rgb_features)}, tokens, {self.dim}], "
                f"got {tuple(image_features.shape)}; project them to the width of the regions first"
            )
        if geometry is not None:
            num_values = 0 if self.geometry_embedding is None else self.geometry_embedding.in_features
            if geometry.shape[-1] != num_values:
                raise ValueError(
                    f"RegionFeatureExtractor: built with geometry_dim={num_values}, "
                    f"got geometry of shape {tuple(geometry.shape)}"
                )


def _token_mask(
    region_mask: Bool[Tensor, "batch regions"] | None,
    depth_mask: Bool[Tensor, "batch regions"] | None,
    tokens: Float[Tensor, "batch tokens dim"],
    num_modalities: int,
) -> Bool[Tensor, "batch tokens"] | None:
    """Which tokens are real: RGB where there is a region, depth where that region has depth too."""
    if region_mask is None and depth_mask is None:
        return None
    if region_mask is None:
        region_mask = tokens.new_ones(tokens.shape[0], tokens.shape[1] // num_modalities, dtype=torch.bool)
    if num_modalities == 1:
        return region_mask
    return torch.cat([region_mask, region_mask if depth_mask is None else region_mask & depth_mask], dim=1)


def build_region_enhancer(
    enhancer_cfg: Mapping[str, object] | RegionEnhancerConfig, dim: int, *, geometry_dim: int = 0
) -> RegionFeatureExtractor:
    """Build the module from the guide's `region_enhancer_cfg`.

    Args:
        enhancer_cfg: Settings, or a possibly partial dictionary of them; unknown keys are a ValueError.
        dim: Width of the region embeddings, which is the vision tower's and not the language model's.
        geometry_dim: Number of geometry values per region, 0 for none.
    """
    if not isinstance(enhancer_cfg, RegionEnhancerConfig):
        enhancer_cfg = RegionEnhancerConfig.from_dict(enhancer_cfg)
    return RegionFeatureExtractor(dim, **asdict(enhancer_cfg), geometry_dim=geometry_dim)


def split_enhanced_features(
    enhanced: Float[Tensor, "*batch tokens dim"] | EnhancedRegions | None, num_regions: int
) -> tuple[Float[Tensor, "*batch regions dim"] | None, Float[Tensor, "*batch regions dim"] | None]:
    """Separate RGB and depth regions that stand on one sequence axis, RGB first.

    The number of regions decides, not the half of the length: a sequence of RGB regions alone is not cut in two.

    Args:
        enhanced: A sequence of `num_regions` tokens (RGB) or of twice as many (RGB, then depth), or the pair that
            `RegionFeatureExtractor` returns, or None.
        num_regions: Number of regions on the (padded) axis.

    Returns:
        The pair (rgb, depth); both None for None, and depth None for RGB alone.

    Raises:
        ValueError: The length is neither `num_regions` nor twice that.
    """
    if enhanced is None:
        return None, None
    if isinstance(enhanced, EnhancedRegions):
        rgb, depth = enhanced
        if rgb.shape[-2] != num_regions:
            raise ValueError(f"expected {num_regions} enhanced regions, got {rgb.shape[-2]}")
        return rgb, depth
    num_tokens = enhanced.shape[-2]
    if num_tokens == num_regions:
        return enhanced, None
    if num_tokens == 2 * num_regions:
        return enhanced[..., :num_regions, :], enhanced[..., num_regions:, :]
    raise ValueError(
        f"expected {num_regions} enhanced tokens (RGB) or {2 * num_regions} (RGB and depth), got {num_tokens}"
    )
