"""How much faster is spatial pooling of video features on views than LLaVA-NeXT's, which copies?

"copies" is LLaVA-NeXT's `get_2dPool`, and transformers' LLaVA-OneVision: features are copied into channel-first maps,
pooled, and copied back into tokens. "views" is `video_autoregressive.spatial_pool`. Both see the same random features
in one process and in turn; the table gives the medians of the forward pass, of the backward pass to the features, and
of the ratios copies / views, and the largest difference of the results. The published tables are of one thread, in
CPU time:

    uv run --no-sync python benchmarks/spatial_pooling.py
    uv run --no-sync python benchmarks/spatial_pooling.py --dtype bfloat16

With more threads, or on CUDA, times are wall times:

    uv run --no-sync python benchmarks/spatial_pooling.py --threads 2
    uv run --no-sync python benchmarks/spatial_pooling.py --device cuda
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from stopwatch import DTYPES, Stopwatch, options_of
from torch import Tensor
from video_autoregressive.config import PoolMode
from video_autoregressive.pooling import spatial_pool

SIZES = ((8, 27, 896), (32, 27, 896), (16, 27, 3584))
"""Frames, patches on a side, width: SigLIP at 384 pixels behind the projectors of a 0.5B and of a 7B language model."""
QUICK_SIZES = ((1, 3, 2), (2, 5, 4))
MODES: tuple[PoolMode, ...] = ("bilinear", "average", "max")
STRIDE = 2


def pool_with_copies(features: Tensor, side: int, mode: PoolMode) -> Tensor:
    """Pool as LLaVA-NeXT does."""
    maps = features.view(len(features), side, side, -1).permute(0, 3, 1, 2).contiguous()
    if mode == "bilinear":
        maps = F.interpolate(maps, size=[math.ceil(side / STRIDE)] * 2, mode="bilinear")
    else:
        maps = (F.avg_pool2d if mode == "average" else F.max_pool2d)(maps, STRIDE)
    return maps.permute(0, 2, 3, 1).reshape(len(features), -1, features.shape[2])


def compare(size: tuple[int, int, int], mode: PoolMode, options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time both ways in turn and print their line."""
    frames, side, width = size
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(frames, side * side, width, generator=generator)
    features = features.to(options.device, DTYPES[options.dtype]).requires_grad_()
    ways = (
        partial(pool_with_copies, side=side, mode=mode),
        partial(spatial_pool, grid=(side, side), stride=STRIDE, mode=mode),
    )
    with torch.no_grad():
        copied, viewed = (way(features) for way in ways)
    difference = (copied - viewed).abs().max().item()
    gradient = torch.randn(copied.shape, generator=generator).to(copied)
    rounds: list[list[float]] = []
    for _ in range(options.repeats + 1):
        seconds = []
        for way in ways:
            features.grad = None
            start = watch.seconds()
            pooled = way(features)
            middle = watch.seconds()
            pooled.backward(gradient)
            seconds += [middle - start, watch.seconds() - middle]
        rounds.append(seconds)
    columns = list(zip(*rounds[1:], strict=True))  # the first round warms up
    times = " | ".join(f"{1000 * statistics.median(column):.2f}" for column in columns)
    ratios = " | ".join(
        f"{statistics.median(theirs / ours for theirs, ours in zip(columns[step], columns[step + 2], strict=True)):.1f}"
        for step in (0, 1)
    )
    print(f"| {mode} | {frames} x {side}² | {width} | {times} | {ratios} | {difference:.0e} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    if options.quick:
        options.repeats = 1
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; {options.dtype}, stride {STRIDE}, ms")
    print()
    print(
        "| mode | frames x patches | width | copies, forward | copies, backward | views, forward | views, backward "
        "| forward, ratio | backward, ratio | difference |"
    )
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for mode in MODES:
        for size in QUICK_SIZES if options.quick else SIZES:
            compare(size, mode, options, watch)


if __name__ == "__main__":
    main()
