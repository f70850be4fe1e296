"""Collectives for losses that compare rows across ranks, and small helpers around them.

Every function works without a process group, where there is one rank. Otherwise all of them are collective: each rank
must call them in the same order.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Item = TypeVar("Item")


def all_gather_with_grad(rows: Float[Tensor, "own dim"]) -> Float[Tensor, "all dim"]:
    """Stack the rows of all ranks in the order of the ranks, keeping the gradient of every row.

    Ranks may hold different numbers of rows, also none. In backward the gradients that all ranks computed for a row
    are summed and returned to the rank that owns it. So where each rank's loss is a sum over its own rows (as in a
    contrastive loss against all rows), the sum of the gradients over ranks is that of the summed losses.

    Args:
        rows: This rank's rows; the width is the same on all ranks.

    Returns:
        The rows of all ranks; this rank's own stand at `own_slice(len(rows))`.

    Raises:
        ValueError: Rows require a gradient on some ranks only; backward would wait for the others for ever.
    """
    if _world_size() == 1:
        return rows
    wants_grad = rows.requires_grad and torch.is_grad_enabled()
    per_rank = _gather_small([len(rows), int(wants_grad)], rows.device)
    if len({wants for _, wants in per_rank}) > 1:
        raise ValueError(
            "all_gather_with_grad: rows require a gradient on some ranks only "
            f"({[bool(wants) for _, wants in per_rank]}); run the module on a dummy row where a rank has none"
        )
    return _AllGatherRows.apply(rows, [count for count, _ in per_rank])


def own_slice(num_rows: int, device: torch.device | str = "cpu") -> slice:
    """Return where this rank's rows stand in the result of `all_gather_with_grad`.

    Args:
        num_rows: Number of rows of this rank.
        device: A device that the process group can communicate on ("cuda" for NCCL).
    """
    if _world_size() == 1:
        return slice(0, num_rows)
    counts = [count for (count,) in _gather_small([num_rows], torch.device(device))]
    start = sum(counts[: dist.get_rank()])
    return slice(start, start + num_rows)


def all_reduce_sum(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return the sum over all ranks as a new tensor without gradient; the input is unchanged."""
    total = tensor.detach().clone()
    if _world_size() > 1:
        dist.all_reduce(total)
    return total


def gather_objects(item: Item) -> list[Item]:
    """Return the objects of all ranks in the order of the ranks, on every rank; they must be picklable."""
    if _world_size() == 1:
        return [item]
    items: list = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


class _AllGatherRows(torch.autograd.Function):
    """Gather of rows with unequal counts: pad, gather, remove the padding; backward sums and slices."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, counts: list[int]) -> Tensor:
        start = sum(counts[: dist.get_rank()])
        ctx.own = slice(start, start + len(rows))  # ty: ignore[missing-attribute]  # autograd's way to keep values
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([of_rank[:count] for of_rank, count in zip(gathered, counts, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.own], None  # ty: ignore[missing-attribute]


def _gather_small(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Gather a few integers from every rank."""
    own = torch.tensor(numbers, device=device)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    return torch.stack(gathered).tolist()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
