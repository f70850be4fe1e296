"""What a region means for a question: the part that all four heads share.

Attention over the regions with the question as the query gives one *anchor* per row, the region (or blend of regions)
that the question is about: "closest to [the shelf]", "inside [that buffer]". Every region is then described relative to
the anchor and to the question, so that a plain score on the result can rank, select or count.

Conventions: everything here is permutation-equivariant in the regions; padding regions receive no attention and
influence nothing; without a question the query is what the projection makes of a zero vector, so the same parameters
are used with and without one (a parameter that is used on some ranks only would hang ZeRO-3).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Context(NamedTuple):
    """Regions and question at the heads' width.

    Attributes:
        regions: Every region, relative to the anchor and the question.
        question: The projected question.
        region_mask: True where a region exists.
    """

    regions: Float[Tensor, "batch regions hidden"]
    question: Float[Tensor, "batch hidden"]
    region_mask: Bool[Tensor, "batch regions"]


class RegionContext(nn.Module):
    """Projection, anchor attention and a residual MLP per region.

    Args:
        in_dim: Width of the region features and of the question vector.
        hidden_dim: Width of the result.
        dropout: Dropout inside the MLP.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.region_projection = nn.Linear(in_dim, hidden_dim)
        self.region_norm = nn.LayerNorm(hidden_dim)
        self.question_projection = nn.Linear(in_dim, hidden_dim)
        self.question_norm = nn.LayerNorm(hidden_dim)
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)
        # One linear map of the concatenation [region, |offset|, region * question, offset * question, anchor, question]
        # with offset = region - anchor, cut in two: what is the same for all regions of a row is multiplied once per
        # row. offset * question lets the question choose the side ("left of" or "right of" the anchor).
        self.mix_regions = nn.Linear(4 * hidden_dim, hidden_dim)
        self.mix_row = nn.Linear(2 * hidden_dim, hidden_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self,
        features: Float[Tensor, "batch regions dim"],
        region_mask: Bool[Tensor, "batch regions"] | None = None,
        question: Float[Tensor, "batch dim"] | None = None,
    ) -> Context:
        """Describe every region relative to the anchor and the question.

        Args:
            features: Region features in any float type; they are computed in the parameters' type.
            region_mask: True where a region exists; `None` where all do.
            question: The question's vector, e.g. the language model's state at the last prompt token.

        Returns:
            The context; padding regions hold finite values without meaning.

        Raises:
            ValueError: The features have another width than the head was built for.
        """
        if features.shape[-1] != self.in_dim:
            raise ValueError(f"expected region features of width {self.in_dim}, got shape {tuple(features.shape)}")
        if region_mask is None:
            region_mask = features.new_ones(features.shape[:2], dtype=torch.bool)
        if question is None:
            question = features.new_zeros(features.shape[0], self.in_dim)
        dtype = self.region_projection.weight.dtype
        regions = self.region_norm(self.region_projection(features.to(dtype)))
        question = self.question_norm(self.question_projection(question.to(dtype)))
        anchor = self._attend(regions, question, region_mask)
        offset = regions - anchor[:, None]
        relative = torch.cat([regions, offset.abs(), regions * question[:, None], offset * question[:, None]], dim=-1)
        row = self.mix_row(torch.cat([anchor, question], dim=-1))
        update = self.out(self.dropout(nn.functional.gelu(self.mix_regions(relative) + row[:, None])))
        return Context(regions + update, question, region_mask)

    def _attend(
        self,
        regions: Float[Tensor, "batch regions hidden"],
        question: Float[Tensor, "batch hidden"],
        region_mask: Bool[Tensor, "batch regions"],
    ) -> Float[Tensor, "batch hidden"]:
        scores = (self.key(regions) * self.query(question)[:, None]).sum(-1) * regions.shape[-1] ** -0.5
        weights = masked_log_softmax(scores, region_mask).exp() * region_mask
        return (weights.to(regions.dtype)[..., None] * regions).sum(1)


def masked_log_softmax(
    logits: Float[Tensor, "batch choices"], mask: Bool[Tensor, "batch choices"]
) -> Float[Tensor, "batch choices"]:
    """Log-softmax over the choices that exist, in at least float32.

    Args:
        logits: Scores of any float type.
        mask: True where a choice exists.

    Returns:
        Log-probabilities; the lowest finite number where no choice exists (a row without any choice is uniform). It is
        finite so that gradients and weighted sums stay free of NaN.
    """
    return mask_logits(logits, mask).log_softmax(-1)


def mask_logits(
    logits: Float[Tensor, "batch choices"], mask: Bool[Tensor, "batch choices"]
) -> Float[Tensor, "batch choices"]:
    """Widen to at least float32 and put the lowest finite number where no choice exists."""
    logits = widen(logits)
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min)


def widen(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision becomes float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
