"""How much faster does PSALM's loader draw points and scribbles than pixel by pixel?

"loop" is the published way: for every pixel of a prompt a map of all distances in the image, and one pixel after
another of the union. "transform" is `psalm.prompts.dilate`: one distance transform where the pen can reach. Both draw
the same prompts at the original resolution, in one process and in turn; the table gives the median of each, the median
of the ratios, and how many pixels differ.

    uv run --no-sync python benchmarks/prompt_rasterising.py
    uv run --no-sync python benchmarks/prompt_rasterising.py --height 1080 --width 1920
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from psalm.config import PromptType
from psalm.prompts import PEN_RADIUS, dilate
from stopwatch import Stopwatch, options_of


def draw_by_pixels(mask: np.ndarray, radius: int) -> np.ndarray:
    """A disc around every pixel of the mask, each from a map of distances as large as the image."""
    rows, columns = np.arange(mask.shape[0])[:, None], np.arange(mask.shape[1])
    drawn = np.zeros_like(mask)
    for row, column in zip(*np.nonzero(mask), strict=True):
        drawn |= np.sqrt((rows - row) ** 2 + (columns - column) ** 2) <= radius
    return drawn


def prompts_of(height: int, width: int, objects: int) -> dict[PromptType, list[np.ndarray]]:
    """Prompts of one image: points as dots, scribbles as bent lines of a sixth to half of the image's width."""
    rng = np.random.default_rng(0)
    prompts: dict[PromptType, list[np.ndarray]] = {"point": [], "scribble": []}
    for _ in range(objects):
        dot = np.zeros((height, width), dtype=bool)
        dot[rng.integers(height), rng.integers(width)] = True
        prompts["point"].append(dot)
        length = int(width * rng.uniform(1 / 6, 1 / 2))
        columns = rng.integers(width - length) + np.arange(length)
        wave = rng.uniform(10, 20) * np.sin(np.linspace(0, 2 * np.pi, length))
        rows = np.linspace(rng.uniform(0.2, 0.8) * height, rng.uniform(0.2, 0.8) * height, length) + wave
        line = np.zeros((height, width), dtype=bool)
        line[rows.astype(int).clip(0, height - 1), columns] = True
        prompts["scribble"].append(line)
    return prompts


def compare(kind: str, masks: Sequence[np.ndarray], radius: int, options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time both ways in turn and print their line."""

    def milliseconds_of(draw: Callable[[np.ndarray, int], np.ndarray]) -> float:
        start = watch.seconds()
        for mask in masks:
            draw(mask, radius)
        return 1000 * (watch.seconds() - start)

    differ = sum(int((draw_by_pixels(mask, radius) != dilate(mask, radius)).sum()) for mask in masks)
    rounds = [[milliseconds_of(draw) for draw in (draw_by_pixels, dilate)] for _ in range(options.repeats)]
    loop, transform = (statistics.median(times) for times in zip(*rounds, strict=True))
    ratio = statistics.median(times[0] / times[1] for times in rounds)
    pixels = sum(int(mask.sum()) for mask in masks)
    print(f"| {kind} | {radius} | {pixels} | {loop:.1f} | {transform:.2f} | {ratio:.0f} | {differ} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--objects", type=int, default=7, help="prompts of each type, as many as COCO has objects")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    if options.quick:
        options.height, options.width, options.objects, options.repeats = 32, 48, 2, 1
    watch = Stopwatch("cpu", options.threads)
    print(f"{watch.describe()}; {options.objects} prompts in an image of {options.height} x {options.width}")
    print()
    print("| prompt | radius | pixels set | loop ms | transform ms | ratio | pixels that differ |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind, masks in prompts_of(options.height, options.width, options.objects).items():
        compare(kind, masks, PEN_RADIUS[kind], options, watch)


if __name__ == "__main__":
    main()
