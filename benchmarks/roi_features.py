"""How much faster is one RoIAlign over all boxes of a batch than one per image?

"loop" is the guide's way: image by image, tokens are laid out on their grid and pooled under the image's boxes. "batch"
is `roi_region_loss.extract_region_features` on packed boxes. Both pool the same boxes with the same sampling, forward
and backward, in one process and in turn; the table gives the median of each and the median of the ratios.

    uv run --no-sync python benchmarks/roi_features.py
    uv run --no-sync python benchmarks/roi_features.py --device cuda --batch 128 --dim 1408
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from roi_region_loss import extract_region_features
from stopwatch import Stopwatch, options_of
from torch import Tensor
from torchvision.ops import roi_align


def pool_by_image(tokens: Tensor, boxes: Sequence[Tensor], grid: int, output_size: int) -> Tensor:
    """One RoIAlign per image, on the tokens after the class token."""
    rows = []
    for image, of_image in zip(tokens, boxes, strict=True):
        feature_map = image[1:].T.reshape(1, -1, grid, grid)
        pooled = roi_align(feature_map, [of_image * grid], output_size, sampling_ratio=2, aligned=True)
        rows.append(pooled.flatten(2).mT)
    return torch.cat(rows)


def compare(boxes_per_image: int, output_size: int, options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time both ways in turn and print their line."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(options.batch, 1 + options.grid**2, options.dim, generator=generator)
    tokens = tokens.to(options.device).requires_grad_()
    corners = torch.rand(options.batch, boxes_per_image, 2, 2, generator=generator).sort(dim=2).values
    boxes = list(corners.flatten(2).to(options.device))
    packed = torch.cat(boxes)
    owner = torch.arange(options.batch, device=options.device).repeat_interleave(boxes_per_image)
    shape = (len(packed), output_size**2, options.dim)
    gradient = torch.randn(shape, generator=generator).to(options.device)

    def batched() -> Tensor:
        features = extract_region_features(
            tokens,
            packed,
            owner=owner,
            grid=(options.grid, options.grid),
            num_prefix_tokens=1,
            output_size=output_size,
            sampling_ratio=2,
        )
        return features.view(shape)

    def seconds_of(pool: Callable[[], Tensor]) -> float:
        tokens.grad = None
        start = watch.seconds()
        pool().backward(gradient)
        return watch.seconds() - start

    ways = (lambda: pool_by_image(tokens, boxes, options.grid, output_size), batched)
    difference = (ways[0]() - ways[1]()).abs().max().item()
    rounds = [[seconds_of(way) for way in ways] for _ in range(options.repeats + 1)][1:]
    loop, batch = (1000 * statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    ratio = statistics.median(times[0] / times[1] for times in rounds)
    print(f"| {boxes_per_image} | {output_size}² | {loop:.1f} | {batch:.1f} | {ratio:.1f} | {difference:.1e} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--boxes", type=int, nargs="+", default=(1, 4), help="boxes per image")
    parser.add_argument("--output-sizes", type=int, nargs="+", default=(1, 7), help="cells along a side of a region")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    if options.quick:
        options.batch, options.grid, options.dim, options.boxes, options.repeats = 2, 4, 8, (1, 3), 1
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; float32, {options.batch} images, {options.grid}² tokens, {options.dim} wide")
    print()
    print("| boxes per image | output | loop ms | batch ms | ratio | difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for boxes_per_image in options.boxes:
        for output_size in options.output_sizes:
            compare(boxes_per_image, output_size, options, watch)


if __name__ == "__main__":
    main()
