"""SPRC's retrieval losses as sums and counts: contrast with all targets of all ranks, and prompt alignment.

A query is one vector, a target one vector per learned query; their similarity is that of the best of these. Each row's
candidates are the targets of the whole global batch, gathered with gradient, so a run on several ranks has the loss and
the gradients of one process with the same samples. Another row that asks for the same image is no wrong answer and is
left out of the candidates.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from region_core.distributed import all_gather_with_grad, own_slice
from torch import Tensor, nn
from torch.nn import functional as F


class Candidates(NamedTuple):
    """What every query of this rank is compared with.

    Attributes:
        features: Target features of all ranks.
        correct: For each query of this rank, the candidate that it asks for.
        excluded: Candidates that are neither right nor wrong for a query: its own target again, from another row.
    """

    features: Float[Tensor, "candidates queries shared"]
    correct: Int[Tensor, " rows"]
    excluded: Bool[Tensor, "rows candidates"]


class Temperature(nn.Module):
    """A learned temperature, unbounded as in SPRC.

    Args:
        initial: 0.07 in BLIP-2.
    """

    def __init__(self, initial: float = 0.07) -> None:
        super().__init__()
        # One row: DeepSpeed cannot broadcast a parameter without dimensions.
        self.value = nn.Parameter(torch.tensor([initial]))

    def forward(self) -> Float[Tensor, ""]:
        """The factor that makes logits of similarities: one over the temperature."""
        return 1.0 / self.value[0]


def best_similarity(
    queries: Float[Tensor, "rows shared"], targets: Float[Tensor, "columns queries shared"]
) -> Float[Tensor, "rows columns"]:
    """Similarity of every query with every target: that of the target's best feature.

    One matrix product over all features; a broadcast product would copy all targets for every query and keep them for
    backward (about 125 times the memory at 128 rows).
    """
    products = queries @ targets.flatten(0, 1).mT
    # `amax` would keep the products for backward, to share a gradient among equal ones.
    return products.unflatten(1, targets.shape[:2]).max(dim=-1).values


def gather_candidates(
    targets: Float[Tensor, "rows queries shared"], target_ids: Int[Tensor, " rows"] | None = None
) -> Candidates:
    """Targets of all ranks; collective: every rank calls it, with or without ids alike.

    Args:
        targets: This rank's target features.
        target_ids: Number of each row's target image, equal on all ranks for equal images; without them no two rows
            are taken to ask for the same image.
    """
    rows, device = len(targets), targets.device
    features = all_gather_with_grad(targets.flatten(1)).unflatten(1, targets.shape[1:])
    correct = torch.arange(len(features), device=device)[own_slice(rows, device)]
    if target_ids is None:
        return Candidates(features, correct, torch.zeros(rows, len(features), dtype=torch.bool, device=device))
    # The bits of 64-bit integers travel as floats: they are copied, never computed with.
    bits = all_gather_with_grad(target_ids.view(torch.float64)[:, None])
    all_ids = bits.squeeze(1).contiguous().view(torch.int64)
    excluded = target_ids[:, None] == all_ids
    excluded[torch.arange(rows, device=device), correct] = False
    return Candidates(features, correct, excluded)


def contrastive_sum(
    queries: Float[Tensor, "rows shared"], candidates: Candidates, scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Sum over this rank's queries of the cross-entropy of the right candidate, from query to target only.

    Args:
        queries: This rank's queries, of length 1.
        candidates: The targets of all ranks.
        scale: Factor that makes logits of similarities.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = best_similarity(queries, candidates.features) * scale
        logits = logits.masked_fill(candidates.excluded, -torch.inf)
        return F.cross_entropy(logits, candidates.correct, reduction="sum")


def align_sum(fused: Float[Tensor, "rows queries dim"], mean_prompt: Float[Tensor, " dim"]) -> Float[Tensor, ""]:
    """Sum over rows of the mean squared distance between a row's mean fused query and the mean soft prompt."""
    precise = torch.promote_types(fused.dtype, torch.float32)
    return (fused.to(precise).mean(dim=1) - mean_prompt.to(precise)).square().mean(dim=1).sum()
