"""Multi-scale deformable cross-attention from queries to a feature pyramid (Deformable DETR, Zhu et al. 2021).

Each query finds a place (its reference point), looks at a few learned points around it on every level, and returns what
it saw in its own width. The operator does not know which image the queries are from: an image may look at itself, at
another image, or a region's vector at an image. The last layer starts at zero, so a residual around the aligner changes
no number until it is trained.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from region_core import touch
from region_core.precision import Float32Linear
from torch import Tensor, nn
from torch.nn import functional as F

from .config import DeformableProjectorConfig, ReferencePoints, SamplingBackend
from .levels import check_levels, valid_ratios
from .offsets import star_offsets
from .references import cosine_logits, grid_centres, mean_places, peak_places, sine_embedding
from .values import PyramidValues


class AlignerOutput(NamedTuple):
    """What queries saw, and where they looked.

    Attributes:
        tokens: One row per query in `output_dim`; zero for queries that the mask leaves out.
        locations: Sampling points as (x, y) in [0, 1] of each level's whole map, float32.
        weights: Weight of each point; they sum to 1 over levels and points. With `topk` references the points of all
            peaks follow each other.
        similarity: Cosine of query and cell over the temperature on the coarsest level, padding included; None for
            references that need none.
    """

    tokens: Float[Tensor, "batch queries output_dim"]
    locations: Float[Tensor, "batch queries heads levels points 2"]
    weights: Float[Tensor, "batch queries heads levels points"]
    similarity: Float[Tensor, "batch queries height width"] | None


class _Places(NamedTuple):
    """Reference points per level, where there are several the weight of each, and the similarity they came from."""

    points: Float[Tensor, "batch queries places levels coordinates"]
    weights: Float[Tensor, "batch queries places"] | None
    similarity: Float[Tensor, "batch queries height width"] | None


class MultiScaleDeformableCrossAttentionAlignment(nn.Module):
    """Lets queries look at a feature pyramid, each around its own place.

    Args:
        query_dim: Width of the queries.
        vision_dims: Channels of each level, finest first.
        hidden_dim: Width inside; a multiple of `n_heads` and of 4.
        n_heads: Heads that sample independently.
        n_points: Sampling points per head and level.
        output_dim: Width of the result; that of the queries by default.
        reference_points: How a query without a given point finds its place; see `DeformableProjectorConfig`.
        top_k: Places per query with `topk`.
        similarity_temperature: Divides cosines before their softmax.
        sample_first: Sample raw features and project the samples (True), project every position first (False), or
            sample first where that means fewer rows to project (None).
        backend: How the sampling core computes.

    Raises:
        ValueError: A size or a choice is out of range.
    """

    def __init__(
        self,
        query_dim: int,
        vision_dims: Sequence[int],
        hidden_dim: int = 256,
        n_heads: int = 8,
        n_points: int = 4,
        output_dim: int | None = None,
        *,
        reference_points: ReferencePoints = "grid",
        top_k: int = 10,
        similarity_temperature: float = 0.1,
        sample_first: bool | None = None,
        backend: SamplingBackend = "auto",
    ) -> None:
        super().__init__()
        self.config = DeformableProjectorConfig(
            hidden_dim, n_heads, n_points, reference_points, top_k, similarity_temperature, sample_first, backend
        )
        self.query_dim = query_dim
        self.vision_dims = tuple(vision_dims)
        self.output_dim = query_dim if output_dim is None else output_dim
        if min(query_dim, self.output_dim, *self.vision_dims, len(self.vision_dims)) < 1:
            raise ValueError(
                f"query_dim, output_dim and vision_dims must be at least 1, with at least one level, "
                f"got {query_dim}, {output_dim} and {list(vision_dims)}"
            )
        points = n_heads * self.num_levels * n_points
        self.query_proj = nn.Linear(query_dim, hidden_dim)
        self.values = PyramidValues(self.vision_dims, hidden_dim, n_heads, sample_first=sample_first, backend=backend)
        self.key_proj = nn.Linear(self.vision_dims[-1], hidden_dim, bias=False)
        # Offsets are added to coordinates: the three digits of bfloat16 are a cell of a large map.
        self.sampling_offsets = Float32Linear(hidden_dim, 2 * points)
        self.attention_weights = Float32Linear(hidden_dim, points)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, self.output_dim)
        self.reset_parameters()

    @property
    def num_levels(self) -> int:
        """Levels of the feature pyramid."""
        return len(self.vision_dims)

    def reset_parameters(self) -> None:
        """Initialise as Deformable DETR does, with a last layer of zero; `values` initialises itself."""
        for linear in (self.query_proj, self.key_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
        for linear in (self.sampling_offsets, self.attention_weights, self.out_proj):
            nn.init.zeros_(linear.weight)
        for linear in (self.query_proj, self.attention_weights, self.output_proj, self.out_proj):
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            offsets = star_offsets(self.config.num_heads, self.num_levels, self.config.num_points)
            self.sampling_offsets.bias.copy_(offsets)

    def offset_parameter_names(self) -> tuple[str, ...]:
        """Names of the parameters that move sampling points; Deformable DETR trains them at a tenth of the rate."""
        return ("sampling_offsets.weight", "sampling_offsets.bias")

    def forward(
        self,
        queries: Float[Tensor, "batch queries query_dim"],
        feature_maps: Sequence[Float[Tensor, "batch _ _ _"]],
        *,
        query_mask: Bool[Tensor, "batch queries"] | None = None,
        valid_masks: Sequence[Bool[Tensor, "batch _ _"]] | None = None,
        reference_points: Float[Tensor, "batch queries 2"] | Float[Tensor, "batch queries 4"] | None = None,
        region_maps: Float[Tensor, "batch _ _"] | None = None,
        grid: tuple[int, int] | None = None,
        mode: ReferencePoints | None = None,
    ) -> AlignerOutput:
        """Look.

        Args:
            queries: Rows that ask; none is legal.
            feature_maps: The pyramid, finest first.
            query_mask: False for padding rows, which give zeros.
            valid_masks: Per level True where the image is; padding holds nothing, whatever its features are.
            reference_points: A point (x, y), or a box (centre x, centre y, width, height), in [0, 1] of the *valid*
                area, instead of `mode`. Around a box, offsets are shares of its size instead of cells.
            region_maps: Shares in [0, 1] of the frame covered by regions, at any size. Values inside and outside are
                told apart by a learned tag.
            grid: (height, width) of the cells that the queries are, in grid mode; a square by default.
            mode: Replaces the module's own `reference_points` choice for this call.

        Returns:
            Tokens, sampling locations, weights and similarity.

        Raises:
            ValueError: Shapes do not fit together.
        """
        shapes = check_levels(feature_maps, self.vision_dims, valid_masks, queries.shape[0])
        if query_mask is not None:
            queries = queries.masked_fill(~query_mask[..., None], 0.0)
        hidden = self.query_proj(F.layer_norm(queries, (self.query_dim,)))
        ratios = None if valid_masks is None else valid_ratios(valid_masks)
        if reference_points is not None:
            places = _Places(self._scaled(reference_points, ratios), None, None)
        else:
            coarsest_valid = None if valid_masks is None else valid_masks[-1]
            places = self._find_places(
                mode or self.config.reference_points, hidden, feature_maps[-1], coarsest_valid, ratios, grid
            )
        locations, weights = self._look_around(hidden, places, shapes)
        sampled = self.values(feature_maps, locations, weights, valid_masks=valid_masks, region_maps=region_maps)
        tokens = self.out_proj(self.output_proj(sampled.to(hidden.dtype)))
        if query_mask is not None:
            tokens = tokens.masked_fill(~query_mask[..., None], 0.0)
        if places.similarity is None:
            # Nothing else depends on the keys, and every parameter takes part in every step.
            tokens = tokens + touch(self.key_proj(feature_maps[-1].new_zeros((1, self.vision_dims[-1]))))
        return AlignerOutput(tokens, locations, weights, places.similarity)

    def _find_places(
        self,
        mode: ReferencePoints,
        hidden: Tensor,
        coarsest: Tensor,
        valid: Tensor | None,
        ratios: Tensor | None,
        grid: tuple[int, int] | None,
    ) -> _Places:
        """Reference points by `mode`."""
        batch, queries, _ = hidden.shape
        if mode == "centre":
            centre = hidden.new_full((batch, queries, 2), 0.5, dtype=_wide(hidden.dtype))
            return _Places(self._scaled(centre, ratios), None, None)
        if mode == "grid":
            height, width = _check_grid(grid, queries)
            centres = grid_centres(height, width, device=hidden.device).to(_wide(hidden.dtype))
            return _Places(self._on_all_levels(centres.expand(batch, queries, 2)), None, None)
        keys = self.key_proj(coarsest.flatten(2).mT)
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = _wide(hidden.dtype)
            logits = cosine_logits(hidden.to(dtype), keys.to(dtype), self.config.similarity_temperature)
            logits = logits.unflatten(2, coarsest.shape[2:])
            if mode == "similarity":
                return _Places(self._on_all_levels(mean_places(logits, valid)), None, logits)
            points, weights = peak_places(logits, valid, self.config.top_k)
        return _Places(points[:, :, :, None].expand(-1, -1, -1, self.num_levels, -1).to(dtype), weights, logits)

    def _on_all_levels(self, points: Tensor) -> Tensor:
        """One place per query, the same on every level: a share of the frame is the same share of each map."""
        return points[:, :, None, None].expand(-1, -1, -1, self.num_levels, -1)

    def _scaled(self, points: Tensor, ratios: Tensor | None) -> Tensor:
        """One place per query, from shares of the valid area to shares of each level's map."""
        on_levels = self._on_all_levels(points.to(_wide(points.dtype)))
        if ratios is None:
            return on_levels
        return on_levels * ratios.repeat(1, 1, points.shape[-1] // 2)[:, None, None].to(on_levels.dtype)

    def _look_around(
        self, hidden: Tensor, places: _Places, shapes: list[tuple[int, int]]
    ) -> tuple[
        Float[Tensor, "batch queries heads levels points 2"], Float[Tensor, "batch queries heads levels points"]
    ]:
        """Sampling points and their weights; several places of a query become more points of it."""
        config = self.config
        points = places.points
        # The place is told to the query in the finest level's frame, where it is least rounded.
        at_place = hidden[:, :, None].to(points.dtype) + sine_embedding(points[..., 0, :2], config.hidden_dim)
        pattern = "b n k (h l p xy) -> b n k h l p xy"
        sizes = {"h": config.num_heads, "l": self.num_levels, "p": config.num_points}
        offsets = rearrange(self.sampling_offsets(at_place), pattern, xy=2, **sizes)
        centres = points[:, :, :, None, :, None]
        if points.shape[-1] == 4:
            locations = centres[..., :2] + offsets / config.num_points * 0.5 * centres[..., 2:]
        else:
            cells = offsets.new_tensor([(width, height) for height, width in shapes])
            locations = centres + offsets / cells[:, None]
        scores = rearrange(self.attention_weights(at_place), "b n k (h lp) -> b n k h lp", h=config.num_heads)
        weights = rearrange(scores.softmax(dim=-1), "b n k h (l p) -> b n k h l p", l=self.num_levels)
        if places.weights is not None:
            weights = weights * places.weights[..., None, None, None]
        return (
            rearrange(locations, "b n k h l p xy -> b n h l (k p) xy"),
            rearrange(weights, "b n k h l p -> b n h l (k p)"),
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Float32 at least: coordinates and softmaxes are not for half precision."""
    return torch.promote_types(dtype, torch.float32)


def _check_grid(grid: tuple[int, int] | None, queries: int) -> tuple[int, int]:
    """The grid that `queries` cells form."""
    side = math.isqrt(queries)
    height, width = (side, side) if grid is None else grid
    if height * width != queries:
        raise ValueError(
            f"grid reference points: {queries} queries do not form a grid of {height} x {width}; give `grid` as "
            "(height, width), or reference points"
        )
    return height, width
