"""The two heads over a set of regions: which one, and how many.

Both score each region by itself against the question, so the scores permute with the regions. A choice is a softmax
over them. A count is the number of regions that are "in": with inclusion probabilities p_i the number of successes is
Poisson-binomial, a distribution over 0..N that no permutation changes and that works for any N.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from region_heads.context import RegionContext, mask_logits, widen

UNREACHABLE = -1e9
"""Log-probability of a count that cannot occur: finite, so that gradients stay defined, and exactly 0 after `exp`."""


@dataclass(frozen=True)
class ChoiceOutput:
    """What the choice head says, in at least float32.

    Attributes:
        logits: One per region; the lowest finite number of the type (not -inf) on padding.
    """

    logits: Float[Tensor, "rows regions"]

    @property
    def probabilities(self) -> Float[Tensor, "rows regions"]:
        """Probabilities of the regions, 0 on padding."""
        return self.logits.softmax(-1)


@dataclass(frozen=True)
class CountingOutput:
    """What the counting head says, in at least float32.

    Attributes:
        inclusion_logits: One per region; the lowest finite number of the type on padding.
        log_probabilities: Of the counts 0..max_count; the last class means "max_count or more".
        expected_count: Sum of the inclusion probabilities.
    """

    inclusion_logits: Float[Tensor, "rows regions"]
    log_probabilities: Float[Tensor, "rows classes"]
    expected_count: Float[Tensor, " rows"]

    @property
    def inclusion(self) -> Float[Tensor, "rows regions"]:
        """Probability that a region is counted, 0 on padding."""
        return self.inclusion_logits.sigmoid()

    @property
    def probabilities(self) -> Float[Tensor, "rows classes"]:
        """Probabilities of the counts."""
        return self.log_probabilities.exp()


class _RegionScore(nn.Module):
    """One number per region, given the question and the other regions."""

    def __init__(self, in_dim: int, dropout: float, hidden_dim: int, *, bias: bool) -> None:
        super().__init__()
        self.context = RegionContext(in_dim, hidden_dim, dropout)
        self.hidden = nn.Linear(hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden_dim, 1, bias=bias)

    def forward(
        self,
        features: Float[Tensor, "rows regions dim"],
        region_mask: Bool[Tensor, "rows regions"] | None = None,
        question: Float[Tensor, "rows dim"] | None = None,
    ) -> tuple[Float[Tensor, "rows regions"], Bool[Tensor, "rows regions"]]:
        context = self.context(features, region_mask, question)
        hidden = self.dropout(nn.functional.gelu(self.hidden(context.regions)))
        return self.score(hidden).squeeze(-1), context.region_mask


class MultipleChoiceHead(nn.Module):
    """Which of the regions is meant: a masked softmax over one score per region.

    Args:
        in_dim: Width of the region features and the question.
        dropout: Dropout inside the head.
        hidden_dim: Width inside the head.
    """

    def __init__(self, in_dim: int, dropout: float = 0.1, hidden_dim: int = 256) -> None:
        super().__init__()
        # A constant added to all scores changes no softmax, hence no bias.
        self.region_score = _RegionScore(in_dim, dropout, hidden_dim, bias=False)

    def forward(
        self,
        features: Float[Tensor, "rows regions dim"],
        region_mask: Bool[Tensor, "rows regions"] | None = None,
        question: Float[Tensor, "rows dim"] | None = None,
    ) -> ChoiceOutput:
        """Score the regions.

        Args:
            features: At least one region per row.
            region_mask: True where a region exists; `None` where all do.
            question: The question's vector.
        """
        scores, region_mask = self.region_score(features, region_mask, question)
        return ChoiceOutput(mask_logits(scores, region_mask))


class CountingHead(nn.Module):
    """How many of the regions the question means.

    Args:
        in_dim: Width of the region features and the question.
        dropout: Dropout inside the head.
        hidden_dim: Width inside the head.
        max_count: The last class, "this many or more".
    """

    def __init__(self, in_dim: int, dropout: float = 0.1, hidden_dim: int = 256, *, max_count: int = 15) -> None:
        super().__init__()
        self.max_count = max_count
        self.region_score = _RegionScore(in_dim, dropout, hidden_dim, bias=True)

    def forward(
        self,
        features: Float[Tensor, "rows regions dim"],
        region_mask: Bool[Tensor, "rows regions"] | None = None,
        question: Float[Tensor, "rows dim"] | None = None,
    ) -> CountingOutput:
        """Count.

        Args:
            features: At least one region per row.
            region_mask: True where a region exists; `None` where all do.
            question: The question's vector.
        """
        scores, region_mask = self.region_score(features, region_mask, question)
        log_probabilities = count_log_probabilities(scores, region_mask, max_count=self.max_count)
        logits = mask_logits(scores, region_mask)
        return CountingOutput(logits, log_probabilities, logits.sigmoid().sum(-1))


def count_log_probabilities(
    inclusion_logits: Float[Tensor, "rows regions"], region_mask: Bool[Tensor, "rows regions"], *, max_count: int
) -> Float[Tensor, "rows classes"]:
    """Poisson-binomial distribution of the number of included regions, in log space.

    The recursion adds one region at a time, `P_n(k) = P_{n-1}(k) (1 - p_n) + P_{n-1}(k - 1) p_n`, over the whole batch;
    the last class absorbs. In log space a confident wrong answer keeps a finite loss and a useful gradient where the
    product of probabilities would underflow.

    Args:
        inclusion_logits: Log-odds that a region is counted.
        region_mask: True where a region exists; the others are skipped.
        max_count: The last class, "this many or more".

    Returns:
        Log-probabilities of 0..max_count in at least float32; about -1e9 for counts above the number of regions.
    """
    logits = widen(inclusion_logits)
    log_in, log_out = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
    counts = logits.new_full((len(logits), max_count + 1), UNREACHABLE)
    counts = torch.cat([counts.new_zeros(len(logits), 1), counts[:, 1:]], dim=1)
    for index in range(logits.shape[1]):
        included = counts + log_in[:, index, None]
        excluded = counts + log_out[:, index, None]
        shifted = torch.cat([included.new_full((len(logits), 1), UNREACHABLE), included[:, :-1]], dim=1)
        # The last class keeps its mass whether the region is in or out.
        excluded = torch.cat([excluded[:, :-1], counts[:, -1:]], dim=1)
        counts = torch.where(region_mask[:, index, None], torch.logaddexp(excluded, shifted), counts)
    return counts
