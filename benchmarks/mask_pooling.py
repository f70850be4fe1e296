"""How much faster is `region_core.mask_pool` than SpatialRGPT's MaskPooling?

MaskPooling is written here from its description (Cheng et al. 2024): image by image, the masks are resized to the
feature map bilinearly in its dtype, and the features are averaged under them as soft weights. Both ways see the same
features and 384 x 384 bool masks of two images, run forward and backward, in one process and in turn; the table gives
the median of each and the median of the ratios. "on the grid" is `mask_pool` when the data worker has called
`masks_to_grid` already, whose own time is the last column.

    uv run --no-sync python benchmarks/mask_pooling.py --device cpu --dtype bfloat16
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
from region_core import box_to_mask, mask_pool, masks_to_grid
from stopwatch import DTYPES, Stopwatch, options_of
from torch import Tensor
from torch.nn import functional as F

NUM_IMAGES = 2


def make_masks(num_masks: int, mask_size: int) -> list[Tensor]:
    """Draw the boxes of each image as bool masks."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(NUM_IMAGES):
        corners = torch.rand(num_masks, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        boxes = [box_to_mask(box, height=mask_size, width=mask_size) for box in corners.double().tolist()]
        images.append(torch.stack([torch.from_numpy(mask) for mask in boxes]))
    return images


def mask_pooling(feature_map: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """SpatialRGPT's MaskPooling."""
    rows = []
    for features, image_masks in zip(feature_map, masks, strict=True):
        weights = image_masks.to(features.dtype)
        if weights.shape[-2:] != features.shape[-2:]:
            weights = F.interpolate(weights[:, None], size=features.shape[-2:], mode="bilinear").squeeze(1)
        weights = weights / (weights.sum(dim=(1, 2), keepdim=True) + 1e-8)
        rows.append(torch.einsum("chw,mhw->mc", features, weights))
    return torch.cat(rows)


def compare(grid: int, num_masks: int, options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time the ways in turn and print their line."""
    dtype = DTYPES[options.dtype]
    generator = torch.Generator().manual_seed(0)
    feature_map = torch.randn(NUM_IMAGES, options.dim, grid, grid, generator=generator)
    feature_map = feature_map.to(options.device, dtype).requires_grad_()
    in_worker = make_masks(num_masks, options.mask_size)
    masks = [mask.to(options.device) for mask in in_worker]
    on_grid = [masks_to_grid(mask, grid, grid).to(options.device) for mask in in_worker]
    gradient = torch.randn(NUM_IMAGES * num_masks, options.dim, generator=generator).to(options.device, dtype)

    def forward_backward(pool: Callable[[], Tensor]) -> None:
        feature_map.grad = None
        pool().backward(gradient)

    def seconds_of(step: Callable[[], object]) -> float:
        start = watch.seconds()
        step()
        return watch.seconds() - start

    ways = (
        lambda: forward_backward(lambda: mask_pooling(feature_map, masks)),
        lambda: forward_backward(lambda: mask_pool(feature_map, masks).rows),
        lambda: forward_backward(lambda: mask_pool(feature_map, on_grid).rows),
        lambda: [masks_to_grid(mask, grid, grid) for mask in in_worker],
    )
    rounds = [[seconds_of(way) for way in ways] for _ in range(options.repeats + 1)][1:]
    peer, ours, placed, worker = (1000 * statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    ratio, placed_ratio = (statistics.median(times[0] / times[way] for times in rounds) for way in (1, 2))
    print(
        f"| {grid}² | {num_masks} | {peer:.2f} | {ours:.2f} | {ratio:.1f} | {placed:.2f} | {placed_ratio:.1f} "
        f"| {worker:.2f} |"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--grids", type=int, nargs="+", default=(27, 108))
    parser.add_argument("--masks", type=int, nargs="+", default=(1, 10, 100), help="masks per image")
    parser.add_argument("--mask-size", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    if options.quick:
        options.dim, options.grids, options.masks, options.mask_size, options.repeats = 8, (4,), (1, 3), 16, 1
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; {options.dtype}, {options.dim} wide, {NUM_IMAGES} images, {options.mask_size}² masks")
    print()
    print(
        "| grid | masks per image | MaskPooling ms | mask_pool ms | ratio | on the grid ms | ratio | masks_to_grid ms |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for grid in options.grids:
        for num_masks in options.masks:
            compare(grid, num_masks, options, watch)


if __name__ == "__main__":
    main()
