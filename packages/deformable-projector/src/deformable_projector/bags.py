"""Deformable sampling as weighted sums of rows, which suits processors that read whole cache lines.

Every sampling point touches four cells, so one query and head sums 4 x levels x points rows of the value matrix: a bag
of embeddings. The gradient of the values is the transposed sum. Torch adds it up row after row in the order of the
queries; here the entries are sorted by row first, so that it becomes a sum over bags too and runs on all threads.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

INT32_ROWS = 2**31
"""Tables with fewer rows are indexed by 32-bit integers: half the memory, and faster to sort."""
TABLE_NUMBERS = 2**20
"""Numbers of scattered rows that are brought together at a time: with fewer at a time, calls cost."""
MIN_TABLE_DIM = 16
"""Channels of them at least: a cache line of float32."""
LINE_GAP = 16
"""Numbers between channels while they are turned into rows: maps often have 2**n cells, and lines that lie 2**n numbers
apart push each other out of the cache."""


def sample_bags(
    value: Float[Tensor, "batch positions heads dim"],
    shapes: list[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
    valid: Bool[Tensor, "batch positions"] | None = None,
) -> Float[Tensor, "batch queries heads*dim"]:
    """Sample by `embedding_bag`; arguments as for `multi_scale_deformable_attention`, all of one float dtype."""
    batch, positions, heads, dim = value.shape
    rows, corner_weights = _corners(shapes, locations, weights, positions)
    if valid is not None:
        rows, corner_weights = _leave_out(rows, corner_weights, valid, heads)
    sums = sum_rows(value, rows.flatten(0, 2), corner_weights.flatten(0, 2))
    return sums.view(batch, locations.shape[1], heads * dim)


def sum_rows(
    value: Float[Tensor, "batch positions heads dim"],
    rows: Int[Tensor, "bags entries"],
    weights: Float[Tensor, "bags entries"],
) -> Float[Tensor, "bags dim"]:
    """Sum weighted rows per bag, differentiable once in the values and the weights.

    Rows that are scattered in memory (a map with its channels first) are brought together, a few channels of them at a
    time: that is several times faster than reading them where they are, and no more than those few is ever held. The
    backward brings them together once more, so nothing but the arguments is kept.

    Args:
        value: Rows, numbered through all dimensions but the last.
        rows: Numbers of the rows of each bag.
        weights: Weight of each.
    """
    return _RowSums.apply(value, rows, weights)


def _corners(
    shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor, positions: int
) -> tuple[Tensor, Tensor]:
    """Row in the table and weight of each corner, both (batch, queries, heads, levels x points x 4)."""
    batch, _, heads = locations.shape[:3]
    num_rows = batch * positions * heads
    device, dtype = locations.device, torch.int32 if num_rows < INT32_ROWS else torch.int64
    widths = torch.tensor([[width] for _, width in shapes], device=device, dtype=dtype)
    heights = torch.tensor([[height] for height, _ in shapes], device=device, dtype=dtype)
    starts = (widths * heights).cumsum(0, dtype=dtype) - widths * heights
    columns = _neighbours(locations[..., 0], widths)
    lines = _neighbours(locations[..., 1], heights)
    image = torch.arange(batch, device=device, dtype=dtype).view(-1, 1, 1, 1, 1)
    head = torch.arange(heads, device=device, dtype=dtype).view(-1, 1, 1)
    first = (image * positions + starts) * heads + head
    rows, corner_weights = [], []
    for line, line_share in lines:
        line_start = first + line * (widths * heads)
        line_weight = weights * line_share
        for column, column_share in columns:
            rows.append(line_start + column * heads)
            corner_weights.append(line_weight * column_share)
    return torch.stack(rows, dim=-1).flatten(3), torch.stack(corner_weights, dim=-1).flatten(3)


def _leave_out(rows: Tensor, weights: Tensor, valid: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Corners without those at invalid positions, which is a fraction of the work of masking the values.

    A weight of zero is not enough, if what is there is not finite: the first valid row of the image takes its place.
    """
    counts = valid.flatten()[rows // heads]
    image = torch.arange(len(valid), device=rows.device, dtype=rows.dtype)
    first = (image * valid.shape[1] + valid.byte().argmax(1).to(rows.dtype)) * heads
    return rows.where(counts, first.view(-1, 1, 1, 1)), weights.masked_fill(~counts, 0.0)


def _neighbours(coordinates: Tensor, sizes: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The two cells around a coordinate in [0, 1], as indices and shares; outside the map the share is zero."""
    # Cell centres lie at whole numbers. Beyond one cell outside nothing counts, and huge numbers are no cell indices.
    place = (coordinates * sizes - 0.5).clamp(min=-1.0).minimum(sizes.to(coordinates.dtype))
    lower = place.detach().floor()
    share = place - lower
    lower = lower.to(sizes.dtype)
    upper = lower + 1
    last = sizes - 1
    return (
        (lower.clamp(min=0).minimum(last), (1 - share) * ((lower >= 0) & (lower <= last))),
        (upper.minimum(last), share * (upper <= last)),
    )


class _RowSums(Function):
    """Sums per bag, and their two gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, rows, weights)
        parts = [F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights) for _, table in _tables(value)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        value, rows, weights = ctx.saved_tensors
        of_value, _, of_weights = ctx.needs_input_grad
        return (
            _value_gradient(gradient, value.shape, rows, weights) if of_value else None,
            None,
            _weight_gradient(gradient, value, rows, weights) if of_weights else None,
        )


def _tables(value: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Channels, and the rows of these channels as a matrix, which is overwritten by the next."""
    batch, positions, heads, dim = value.shape
    if value.is_contiguous():
        yield slice(0, dim), value.view(-1, dim)
        return
    width = min(dim, max(MIN_TABLE_DIM, TABLE_NUMBERS // (batch * positions * heads)))
    # One block for all of them: to touch fresh memory costs more than the copies.
    block = value.new_empty(batch * positions * heads * width)
    lines = value.new_empty(width, positions * heads + LINE_GAP)
    for start in range(0, dim, width):
        channels = slice(start, min(start + width, dim))
        scattered = value[..., channels].flatten(1, 2)
        table = block[: scattered.numel()].view(scattered.shape)
        for target, source in zip(table, scattered, strict=True):
            apart = lines[: source.shape[1], : source.shape[0]]
            target.copy_(apart.copy_(source.mT).mT)
        yield channels, table.flatten(0, 1)


def _value_gradient(gradient: Tensor, shape: torch.Size, rows: Tensor, weights: Tensor) -> Tensor:
    """Each row collects from the entries that read it: sums over bags too, once the entries are sorted by row."""
    by_row = rows.flatten()
    order = by_row.argsort()
    counts = torch.bincount(by_row, minlength=math.prod(shape[:-1]))
    collected = F.embedding_bag(
        order // rows.shape[1],
        gradient.contiguous(),
        offsets=counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weights.flatten()[order],
    )
    return collected.view(shape)


def _weight_gradient(gradient: Tensor, value: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The product of each entry's row with the gradient of its bag."""
    products = torch.zeros_like(weights)
    leaf = weights.detach().requires_grad_()
    for channels, table in _tables(value):
        # Torch gives this gradient only together with the sums, which are made once more.
        with torch.enable_grad():
            sums = F.embedding_bag(rows, table, mode="sum", per_sample_weights=leaf)
        products += torch.autograd.grad(sums, leaf, gradient[:, channels])[0]
    return products
