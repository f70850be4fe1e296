"""How fast are the backends of multi-scale deformable attention?

"reference" is the plain core, by `grid_sample`; "bags" sums rows of the value matrix, and "auto" takes one of the two
by size: all three are `deformable_projector.multi_scale_deformable_attention`. "transformers" is the function of that
name in transformers' Mask2Former. All see the same random points, forward and backward to values, points and weights,
in one process and in turn; the table gives the medians, the medians of the ratios to "auto", and the largest difference
of a result to that of transformers. The published table is of one thread, in CPU time, with five repeats:

    uv run --no-sync python benchmarks/deformable_attention.py --repeats 5

With more threads, or on CUDA, times are wall times:

    uv run --no-sync python benchmarks/deformable_attention.py --threads 2
    uv run --no-sync python benchmarks/deformable_attention.py --device cuda
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from deformable_projector import SamplingBackend, multi_scale_deformable_attention
from stopwatch import Stopwatch, options_of
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import (
    multi_scale_deformable_attention as transformers_function,
)

NUM_LEVELS, NUM_POINTS = 4, 4
SIZES = (
    (1, 4096, 8, 32, 256),
    (2, 4096, 8, 32, 128),
    (2, 1024, 8, 32, 64),
    (1, 256, 8, 32, 256),
    (1, 21760, 8, 32, 128),
    (2, 100, 8, 32, 32),
    (1, 32, 8, 32, 32),
    (4, 64, 4, 8, 16),
    (2, 1024, 4, 16, 64),
)
"""Images, queries, heads, numbers per head, side of the finest level."""
QUICK_SIZES = ((1, 3, 2, 4, 8), (2, 40, 2, 32, 16))


def ways_to_sample(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """Every way by its name, those to compare with "auto" first."""

    def ours(backend: SamplingBackend) -> Callable[[], Tensor]:
        return lambda: multi_scale_deformable_attention(value, shapes, locations, weights, backend=backend)

    return {
        "transformers": lambda: transformers_function(value, shapes, locations, weights),
        "reference": ours("reference"),
        "bags": ours("bags"),
        "auto": ours("auto"),
    }


def compare(size: tuple[int, int, int, int, int], options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time the ways in turn and print their line."""
    batch, queries, heads, dim, side = size
    generator = torch.Generator().manual_seed(0)
    shapes = [(side >> level, side >> level) for level in range(NUM_LEVELS)]
    positions = sum(height * width for height, width in shapes)
    points = (batch, queries, heads, NUM_LEVELS, NUM_POINTS)
    value, locations, weights = (
        tensor.to(options.device).requires_grad_()
        for tensor in (
            torch.randn(batch, positions, heads, dim, generator=generator),
            torch.rand(*points, 2, generator=generator),
            torch.rand(points, generator=generator),
        )
    )
    gradient = torch.randn(batch, queries, heads * dim, generator=generator).to(options.device)
    ways = ways_to_sample(value, shapes, locations, weights)

    def seconds_of(way: Callable[[], Tensor]) -> float:
        value.grad = locations.grad = weights.grad = None
        start = watch.seconds()
        way().backward(gradient)
        return watch.seconds() - start

    with torch.no_grad():
        results = [way() for way in ways.values()]
    difference = max((result - results[0]).abs().max().item() for result in results[1:])
    rounds = [[seconds_of(way) for way in ways.values()] for _ in range(options.repeats + 1)][1:]
    columns = list(zip(*rounds, strict=True))
    times = " | ".join(f"{1000 * statistics.median(column):.2f}" for column in columns)
    ratios = " | ".join(
        f"{statistics.median(other / auto for other, auto in zip(column, columns[-1], strict=True)):.2f}"
        for column in columns[:2]
    )
    print(f"| {batch} x {queries} | {heads} x {dim} | {side}² | {times} | {ratios} | {difference:.0e} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(words)
    if options.quick:
        options.repeats = 1
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; float32, {NUM_LEVELS} levels x {NUM_POINTS} points, forward and backward, ms")
    print()
    print(
        "| queries | heads | finest | transformers | reference | bags | auto "
        "| transformers / auto | reference / auto | difference |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for size in QUICK_SIZES if options.quick else SIZES:
        compare(size, options, watch)


if __name__ == "__main__":
    main()
