"""Named loss terms as sums and counts, and the zero rows that keep every module in the graph.

A loss term is a *sum* over items with the *number* of items, never a ready mean: only then can a trainer that splits a
step over micro-batches and ranks return exactly the gradient of the mean over all items of the step, whatever the
split. Everything here is float32.

The second half is for distributed training. A module that is skipped on one rank hangs ZeRO-3 and makes DDP report
unused parameters, so every enabled module runs in every step, on a zero row where a batch has none of its kind:

    rows, num_dummy = with_dummy_row(rows)          # at least one row
    rows = drop_dummy(module(rows), num_dummy)      # back to the true rows; the graph stays

If nothing downstream uses the (then empty) result, `touch(output)` is the zero to add to the loss.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Real
from torch import Tensor


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss.

    Attributes:
        total: Sum of the term over its items, float32.
        count: Number of items in the sum, or the sum of their weights; with 0 the term did not apply.
        weight: Factor of the term in the weighted total.
    """

    total: Float[Tensor, ""]
    count: Real[Tensor, ""] | int | float
    weight: float | int = 1.0


class LossTerms(Mapping[str, LossTerm]):
    """An ordered mapping from a term's name to its sum, count and weight.

    A term with count 0 keeps its total in the graph with the factor 0, so that the parameters behind it are used on
    every rank, and is otherwise absent: `means` does not report it.

    Args:
        terms: Terms to start with, for instance another `LossTerms`.
    """

    def __init__(self, terms: Mapping[str, LossTerm] | None = None) -> None:
        self._terms: dict[str, LossTerm] = {}
        for name, term in (terms or {}).items():
            self.add(name, term.total, term.count, term.weight)

    def __getitem__(self, name: str) -> LossTerm:
        """Return the term of that name."""
        return self._terms[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order in which they were added."""
        return iter(self._terms)

    def __len__(self) -> int:
        """Return the number of terms, including those that did not apply."""
        return len(self._terms)

    def __repr__(self) -> str:
        """Show the terms."""
        return f"LossTerms({self._terms!r})"

    def add(
        self, name: str, total: Float[Tensor, ""], count: Real[Tensor, ""] | int | float, weight: float | int = 1.0
    ) -> None:
        """Add a term.

        Args:
            name: A name not used yet.
            total: Sum of the loss over the items, with its graph; converted to float32.
            count: Number of items summed, or the sum of their weights. A tensor stays on its device, nothing is
                synchronised here.
            weight: Factor of this term in the weighted total.

        Raises:
            ValueError: The name is empty or taken, the total is not a scalar, the count is negative, or the weight is
                not finite.
        """
        if not name:
            raise ValueError("a loss term needs a name, got an empty string")
        if name in self._terms:
            raise ValueError(f"loss term {name!r} was added twice; present are {list(self._terms)}")
        if total.ndim != 0:
            raise ValueError(f"loss term {name!r}: expected a 0-d sum over items, got shape {tuple(total.shape)}")
        if not isinstance(count, Tensor) and count < 0:
            raise ValueError(f"loss term {name!r}: expected a count of 0 or more, got {count}")
        if not math.isfinite(weight):
            raise ValueError(f"loss term {name!r}: expected a finite weight, got {weight}")
        self._terms[name] = LossTerm(total.float(), count, weight)

    def merge(self, other: "LossTerms", prefix: str = "") -> None:
        """Add every term of `other` under `prefix` + its name; a name that is taken is a ValueError."""
        for name, term in other.items():
            self.add(prefix + name, term.total, term.count, term.weight)

    def mean(self, name: str) -> Float[Tensor, ""]:
        """Unweighted mean over the items of one term, with its graph; the plain total where the count is 0."""
        term = self._terms[name]
        if isinstance(term.count, Tensor):
            return term.total / torch.where(term.count > 0, term.count, 1)
        return term.total / (term.count or 1)

    def means(self) -> dict[str, float]:
        """Unweighted means of the terms that applied (count above 0), as numbers; waits for the device."""
        return {name: self.mean(name).item() for name, term in self._terms.items() if float(term.count) > 0}

    def weighted_total(self, mean_counts: Mapping[str, float | int | Tensor] | None = None) -> Float[Tensor, ""]:
        """Sum of weight x total / denominator over the terms.

        Args:
            mean_counts: Per term, its number of items per micro-batch averaged over all micro-batches and ranks of
                the optimizer step. With it, averaging gradients over micro-steps and ranks gives exactly the gradient
                of the weighted means over all items of the step. Without it, the denominator is the term's own count.
                Names that are not among the terms are ignored; 0 removes the term.

        Returns:
            The loss, 0-d float32; 0 without any term.

        Raises:
            ValueError: `mean_counts` lacks one of the terms.
        """
        loss = torch.zeros(())
        for position, (name, term) in enumerate(self._terms.items()):
            if mean_counts is not None and name not in mean_counts:
                raise ValueError(f"mean_counts has no entry for loss term {name!r}; it names {sorted(mean_counts)}")
            denominator = term.count if mean_counts is None else mean_counts[name]
            share = term.total * _scale(term, denominator)
            loss = share if position == 0 else loss + share
        return loss


def _scale(term: LossTerm, denominator: float | int | Tensor) -> float | Tensor:
    """Factor of a term's total: weight / denominator, and 0 where the term or the denominator is empty."""
    if not isinstance(term.count, Tensor) and not isinstance(denominator, Tensor):
        return term.weight / denominator if term.count > 0 and denominator > 0 else 0.0
    count = torch.as_tensor(term.count, device=term.total.device)
    per_item = torch.as_tensor(denominator, dtype=torch.float32, device=term.total.device)
    applies = (count > 0) & (per_item > 0)
    # Dividing by 1 where it does not apply keeps the unused branch finite.
    return torch.where(applies, term.weight / torch.where(applies, per_item, 1.0), 0.0)


def with_dummy_row(rows: Float[Tensor, "rows ..."], minimum: int = 1) -> tuple[Float[Tensor, "padded ..."], int]:
    """Append zero rows until there are at least `minimum`, so that a module can run on an empty batch.

    Args:
        rows: Inputs of a module that treats rows independently.
        minimum: Number of rows that the module needs.

    Returns:
        The rows with the zero rows behind them, and how many were added (0 leaves `rows` as it is).
    """
    num_dummy = max(minimum - rows.shape[0], 0)
    if num_dummy == 0:
        return rows, 0
    return torch.cat([rows, rows.new_zeros((num_dummy, *rows.shape[1:]))]), num_dummy


def drop_dummy(rows: Float[Tensor, "padded ..."], num_dummy: int) -> Float[Tensor, "rows ..."]:
    """Remove the rows that `with_dummy_row` added.

    The result is a slice, so it stays in the graph even when no row is left: whatever is computed from it gives the
    module exact zeros as gradients, on this rank as on the others.

    Args:
        rows: The module's outputs, dummies last.
        num_dummy: The number that `with_dummy_row` returned.
    """
    return rows[: rows.shape[0] - num_dummy]


def touch(*outputs: Tensor) -> Float[Tensor, ""]:
    """Return an exact zero that depends on every tensor given.

    Added to a loss it makes backward reach the modules behind the tensors with zero gradients. Give *outputs* of
    modules, not parameters: a parameter that ZeRO-3 has partitioned holds nothing to depend on. The sum is over no
    element, so a NaN or an infinity in an output does not spoil it (0 x sum would).

    Args:
        outputs: Tensors of any shape on one device; without any, a zero without graph.
    """
    zeros = [output.flatten()[:0].float().sum() for output in outputs]
    return torch.stack(zeros).sum() if zeros else torch.zeros(())
