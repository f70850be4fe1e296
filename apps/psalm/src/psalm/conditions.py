"""Conditions: from the language model's states at their tokens to logits of every query for every condition.

A condition is a class name, a sentence or a prompted region. Its embedding is the mean of the states at its tokens,
projected by the projector of its kind; its logit for a query is the plain product with the query's state behind the
head of that kind (PSALM, Zhang et al. 2024, arXiv:2403.14598). One batch may mix all kinds: every projector and every
head runs on every row and each row keeps the result of its own kind, so that all ranks run all modules in every step
and what a batch does not need gets a gradient of exact zeros.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from region_core.regions import RegionBatch
from torch import Tensor, nn
from torch.nn import functional as F

from psalm.modes import CONDITION_KINDS
from psalm.precision import compute_in_float32

REGION = CONDITION_KINDS.index("region")
PADDED_LOGIT = -1e4
"""Logit where a sample has no further condition: no probability in float32, and finite in every float type."""


class PackedConditions(NamedTuple):
    """Where the conditions of a batch are, those of a sample one after the other, samples in order.

    Attributes:
        index: Packed number of the condition that a token belongs to; -1 for none.
        owner: Sample of each condition.
        kinds: Index into `CONDITION_KINDS` of each sample.
    """

    index: Int[Tensor, "batch tokens"]
    owner: Int[Tensor, " packed"]
    kinds: Int[Tensor, " batch"]


class PaddedConditions(NamedTuple):
    """Condition embeddings per sample.

    Attributes:
        rows: Zeros where there is no condition.
        mask: Where there is one.
    """

    rows: Float[Tensor, "batch conditions dim"]
    mask: Bool[Tensor, "batch conditions"]


def pool_conditions(
    hidden: Float[Tensor, "batch tokens dim"], condition_index: Int[Tensor, "batch tokens"], num_conditions: int
) -> Float[Tensor, "conditions dim"]:
    """Average the states at each condition's tokens, in float32.

    Args:
        hidden: Last states of the language model.
        condition_index: Packed number of the condition that a token belongs to; -1 for none.
        num_conditions: Conditions of all samples together.

    Returns:
        One row per condition; one without tokens is zeros.
    """
    chosen = condition_index >= 0
    index = condition_index[chosen]
    sums = hidden.new_zeros((num_conditions, hidden.shape[-1]), dtype=torch.float32)
    counts = torch.bincount(index, minlength=num_conditions).clamp(min=1)
    return sums.index_add(0, index, hidden[chosen].float()) / counts[:, None]


def condition_vectors(
    words: Float[Tensor, "batch tokens dim"], regions: Float[Tensor, "regions dim"], conditions: PackedConditions
) -> Float[Tensor, "packed dim"]:
    """What is asked, before the language model reads it: the mean of a text's embeddings, or a region's vector.

    Args:
        words: Embeddings of all tokens.
        regions: Vectors of all regions, samples in order.
        conditions: Where the conditions are.
    """
    texts = pool_conditions(words, conditions.index, len(conditions.owner)).to(regions.dtype)
    is_region = conditions.kinds[conditions.owner] == REGION
    return texts.index_put((is_region,), regions)


def pad_conditions(
    rows: Float[Tensor, "packed dim"], owner: Int[Tensor, " packed"], batch_size: int
) -> PaddedConditions:
    """Bring packed conditions into one row of conditions per sample.

    Args:
        rows: Conditions, those of a sample one after the other, samples in order.
        owner: Sample of each condition.
        batch_size: Samples, with or without conditions.
    """
    counts = torch.bincount(owner, minlength=batch_size).tolist()
    return PaddedConditions(*RegionBatch(rows, tuple(counts)).to_padded())


class ConditionHeads(nn.Module):
    """Projectors of the conditions and heads of the queries, one of each per kind, in float32.

    The names of the parts are those of published PSALM weights.

    Args:
        language_dim: Width of the language model.
        hidden_dim: Width of the mask decoder.
    """

    def __init__(self, language_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.class_name_projector = nn.Linear(language_dim, hidden_dim)
        self.SEG_token_projector = nn.Linear(language_dim, hidden_dim)
        self.region_projector = nn.Linear(language_dim, hidden_dim)
        self.CLASS_proj = QueryHead(hidden_dim)
        self.SEG_proj = QueryHead(hidden_dim)
        self.REGION_proj = QueryHead(hidden_dim)
        compute_in_float32(self)

    def embed(
        self, pooled: Float[Tensor, "packed language_dim"], kinds: Int[Tensor, " packed"]
    ) -> Float[Tensor, "packed dim"]:
        """Project pooled conditions into the space of the mask decoder's states.

        Args:
            pooled: Means of the language model's states.
            kinds: Index into `CONDITION_KINDS` of each condition's sample.
        """
        projectors = (self.class_name_projector, self.SEG_token_projector, self.region_projector)
        with torch.autocast(pooled.device.type, enabled=False):
            return _own_kind([projector(pooled) for projector in projectors], kinds)

    def forward(
        self, states: Float[Tensor, "batch queries dim"], conditions: PaddedConditions, kinds: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch queries conditions"]:
        """Logits of every query for every condition of its sample.

        Args:
            states: Normed states of one prediction of the mask decoder.
            conditions: Embedded and padded conditions.
            kinds: Index into `CONDITION_KINDS` of each sample.

        Returns:
            float32 logits, `PADDED_LOGIT` where there is no condition.
        """
        with torch.autocast(states.device.type, enabled=False):
            heads = (self.CLASS_proj, self.SEG_proj, self.REGION_proj)
            projected = _own_kind([head(states) for head in heads], kinds)
            logits = torch.einsum("bqd,bcd->bqc", projected, conditions.rows.float())
        return logits.masked_fill(~conditions.mask[:, None], PADDED_LOGIT)


class QueryHead(nn.Module):
    """Two linear layers with a ReLU between them.

    Args:
        dim: Width of input, middle and output.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, dim), nn.Linear(dim, dim)])

    def forward(self, states: Float[Tensor, "batch queries dim"]) -> Float[Tensor, "batch queries dim"]:
        """Project the states."""
        first, second = self.layers
        return second(F.relu(first(states)))


def _own_kind(candidates: list[Float[Tensor, "rows ..."]], kinds: Int[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
    """Of the candidates, in the order of `CONDITION_KINDS`, each row's own."""
    stacked = torch.stack(candidates)
    return stacked[kinds, torch.arange(len(kinds), device=kinds.device)]
