"""The two heads that compare two regions: how far apart they are, and which stands left.

Their symmetries hold by construction. A distance is a function of symmetric pair features and of a selection over
unordered pairs, so no permutation of the regions changes it. A side is the difference of one score with its arguments
in both orders, so swapping the two regions swaps the two logits.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from region_heads.config import WAREHOUSE_MEAN_M, WAREHOUSE_STD_M
from region_heads.context import Context, RegionContext, masked_log_softmax, widen


@dataclass(frozen=True)
class DistanceOutput:
    """What the distance head says, in at least float32.

    Attributes:
        distance_m: The answer in metres, never negative: the pairs' metres weighted by their probabilities.
        pair_distance_m: Metres between the two regions of every pair.
        pair_log_probabilities: How likely the question is about that pair; the lowest finite number for pairs with
            padding.
        pairs: Indices of the pairs. The first is (0, 0) and stands for a row with a single region; it is excluded
            wherever there are two.
    """

    distance_m: Float[Tensor, " rows"]
    pair_distance_m: Float[Tensor, "rows pairs"]
    pair_log_probabilities: Float[Tensor, "rows pairs"]
    pairs: Int64[Tensor, "pairs 2"]

    @property
    def pair_probabilities(self) -> Float[Tensor, "rows pairs"]:
        """Probabilities of the pairs; they sum to one in every row."""
        return self.pair_log_probabilities.exp()


@dataclass(frozen=True)
class LeftRightOutput:
    """What the left/right head says, in at least float32.

    Attributes:
        logits: For "region 0 stands left of region 1" and for "right of"; each is minus the other.
    """

    logits: Float[Tensor, "rows 2"]

    @property
    def probabilities(self) -> Float[Tensor, "rows 2"]:
        """Probabilities of left and right."""
        return self.logits.softmax(-1)


class DistanceHead(nn.Module):
    """Metres between the two regions that a question is about, out of any number of regions.

    A question with N regions has N(N-1)/2 candidate pairs. Each region gets a selection score, a pair is as likely as
    the softmax of the sum of its two scores says, and the answer is the mean of the pairs' metres under these
    probabilities. With two regions this is exactly the plain pair head.

    Metres are `std * softplus(offset + z)` of the network's output z: never negative, about linear in z over the usual
    range, and equal to `mean_m` at z = 0.

    Args:
        in_dim: Width of the region features and the question.
        dropout: Dropout inside the head.
        hidden_dim: Width inside the head.
        mean_m: Mean of the training distances.
        std_m: Their standard deviation.
    """

    def __init__(
        self,
        in_dim: int,
        dropout: float = 0.1,
        hidden_dim: int = 256,
        *,
        mean_m: float = WAREHOUSE_MEAN_M,
        std_m: float = WAREHOUSE_STD_M,
    ) -> None:
        super().__init__()
        self.std_m = std_m
        self.offset = math.log(math.expm1(mean_m / std_m))
        self.context = RegionContext(in_dim, hidden_dim, dropout)
        self.selection = nn.Linear(hidden_dim, 1, bias=False)
        self.mix_pair = nn.Linear(3 * hidden_dim, hidden_dim)
        self.mix_question = nn.Linear(hidden_dim, hidden_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.metres = nn.Linear(hidden_dim, 1)

    def forward(
        self,
        features: Float[Tensor, "rows regions dim"],
        region_mask: Bool[Tensor, "rows regions"] | None = None,
        question: Float[Tensor, "rows dim"] | None = None,
    ) -> DistanceOutput:
        """Select a pair and measure it.

        Args:
            features: At least one region per row.
            region_mask: True where a region exists; `None` where all do.
            question: The question's vector.
        """
        context = self.context(features, region_mask, question)
        pairs, pair_mask = _candidate_pairs(context.region_mask)
        # The pair of a lone region with itself needs that region wherever it stands: the mean over valid regions is it.
        lone = _masked_mean(context)[:, None]
        first = torch.cat([lone, context.regions[:, pairs[1:, 0]]], dim=1)
        second = torch.cat([lone, context.regions[:, pairs[1:, 1]]], dim=1)
        scores = self.selection(context.regions).squeeze(-1)
        scores = torch.cat([scores.new_zeros(len(scores), 1), scores[:, pairs[1:]].sum(-1)], dim=1)
        pair_log_probabilities = masked_log_softmax(scores, pair_mask)
        mixed = self.mix_pair(torch.cat([first + second, (first - second).abs(), first * second], dim=-1))
        mixed = nn.functional.gelu(mixed + self.mix_question(context.question)[:, None])
        z = widen(self.metres(self.dropout(mixed)).squeeze(-1))
        pair_distance_m = self.std_m * nn.functional.softplus(self.offset + z)
        distance_m = (pair_log_probabilities.exp() * pair_distance_m).sum(-1)
        return DistanceOutput(distance_m, pair_distance_m, pair_log_probabilities, pairs)


class LeftRightHead(nn.Module):
    """Whether region 0 stands left or right of region 1; later regions are not looked at.

    A row with a single region compares it with itself: both answers are equally likely.

    Args:
        in_dim: Width of the region features and the question.
        dropout: Dropout inside the head.
        hidden_dim: Width inside the head.
    """

    def __init__(self, in_dim: int, dropout: float = 0.1, hidden_dim: int = 256) -> None:
        super().__init__()
        self.context = RegionContext(in_dim, hidden_dim, dropout)
        self.mix = nn.Linear(3 * hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(hidden_dim, 1, bias=False)

    def forward(
        self,
        features: Float[Tensor, "rows regions dim"],
        region_mask: Bool[Tensor, "rows regions"] | None = None,
        question: Float[Tensor, "rows dim"] | None = None,
    ) -> LeftRightOutput:
        """Compare the first two regions.

        Args:
            features: At least one region per row.
            region_mask: True where a region exists; `None` where all do.
            question: The question's vector.
        """
        mask = None if region_mask is None else region_mask[:, :2]
        context = self.context(features[:, :2], mask, question)
        first = context.regions[:, 0]
        second = torch.where(context.region_mask[:, -1:], context.regions[:, -1], first)
        forwards = self._score(first, second, context.question)
        backwards = self._score(second, first, context.question)
        left = widen(forwards - backwards)
        return LeftRightOutput(torch.cat([left, -left], dim=-1) / 2)

    def _score(
        self,
        first: Float[Tensor, "rows hidden"],
        second: Float[Tensor, "rows hidden"],
        question: Float[Tensor, "rows hidden"],
    ) -> Float[Tensor, "rows 1"]:
        return self.score(self.dropout(nn.functional.gelu(self.mix(torch.cat([first, second, question], dim=-1)))))


def _candidate_pairs(
    region_mask: Bool[Tensor, "rows regions"],
) -> tuple[Int64[Tensor, "pairs 2"], Bool[Tensor, "rows pairs"]]:
    """All unordered pairs behind the pair (0, 0), which exists only where there are fewer than two regions."""
    num_regions = region_mask.shape[1]
    pairs = torch.triu_indices(num_regions, num_regions, offset=1, device=region_mask.device).T
    both = region_mask[:, pairs].all(-1)
    lone = region_mask.sum(1, keepdim=True) < 2
    return torch.cat([pairs.new_zeros(1, 2), pairs]), torch.cat([lone, both], dim=1)


def _masked_mean(context: Context) -> Float[Tensor, "rows hidden"]:
    mask = context.region_mask[..., None]
    return (context.regions * mask).sum(1) / mask.sum(1).clamp_min(1)
