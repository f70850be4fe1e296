"""Ranks and the best k of a row of scores, exact and the same on every run.

Equal scores are ordered by position: the lower one comes first. So the rank of an item is 1 + the number of items that
score more + the number of items before it that score the same, which needs no sort. A score that is not finite is an
error, since NaN compares false with everything and would end up at rank 1.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

ABSENT = -1
"""Fills up the rows of a table of positions; also the position of a place that nothing is left for."""


def best_first(
    scores: Float[Tensor, "queries items"], k: int, *, allowed: Bool[Tensor, "queries items"] | None = None
) -> tuple[Int64[Tensor, "queries k"], Float[Tensor, "queries k"]]:
    """The k best items of each row, the best first, of equal ones the lower position first.

    Args:
        scores: Finite scores.
        k: How many; at least 1.
        allowed: The items that may be taken; all by default.

    Returns:
        Positions and scores. Where fewer than k items are left, the places at the end hold `ABSENT` and -inf.

    Raises:
        ValueError: k is not positive, or a score is not finite.
    """
    if k < 1:
        raise ValueError(f"got k = {k}, expected at least 1")
    check_finite(scores)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    taken = min(k, scores.shape[1])
    # `topk` leaves open which of equal scores it takes: only the smallest score that it lets in is read from it.
    threshold = scores.topk(taken, dim=1).values[:, -1:]
    above, equal = scores > threshold, scores == threshold
    room = taken - above.sum(dim=1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(dim=1) <= room))
    positions = chosen.nonzero()[:, 1].view(scores.shape[0], taken)
    values, order = scores.gather(1, positions).sort(dim=1, descending=True, stable=True)
    positions = positions.gather(1, order).masked_fill(values == -torch.inf, ABSENT)
    missing = (0, k - taken)
    return F.pad(positions, missing, value=ABSENT), F.pad(values, missing, value=-torch.inf)


def count_ranks(
    scores: Float[Tensor, "queries items"],
    targets: Int64[Tensor, " queries"],
    *,
    positions: Int64[Tensor, "queries items"] | None = None,
    allowed: Bool[Tensor, "queries items"] | None = None,
) -> Int64[Tensor, " queries"]:
    """The rank of one item in each row, from 1, by counting.

    Args:
        scores: Finite scores.
        targets: The column of each row's item.
        positions: What decides between equal scores; the columns by default.
        allowed: The items that take part; all by default. The target always does.

    Raises:
        ValueError: A score is not finite.
    """
    check_finite(scores)
    columns = targets[:, None]
    own = scores.gather(1, columns)
    if positions is None:
        positions = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    before = (scores > own) | ((scores == own) & (positions < positions.gather(1, columns)))
    if allowed is not None:
        before &= allowed
    return before.sum(dim=1) + 1


def mask_of(table: Int64[Tensor, "queries longest"], num_items: int) -> Bool[Tensor, "queries items"]:
    """A mask that is true at the positions of each row; `ABSENT` marks nothing."""
    # One more column takes what is absent, and is cut off.
    mask = torch.zeros(table.shape[0], num_items + 1, dtype=torch.bool, device=table.device)
    mask.scatter_(1, table.masked_fill(table == ABSENT, num_items), True)
    return mask[:, :num_items]


def check_finite(scores: Float[Tensor, "queries items"], *, first_query: int = 0) -> None:
    """Refuse scores that are NaN or infinite.

    Args:
        scores: Some rows of scores.
        first_query: The number of the first row, for the message.

    Raises:
        ValueError: There is one; the message says where the first is.
    """
    bad = ~scores.isfinite()
    if bad.any():
        query, item = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{int(bad.sum())} of {scores.numel()} scores are not finite, the first is {scores[query, item].item()} of "
            f"query {first_query + query} and item {item}; expected numbers"
        )
