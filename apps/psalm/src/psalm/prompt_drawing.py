"""Visual prompts for a mask, drawn as an annotator might: a point, a scribble, a rough box, a painted mask.

The kinds are those of PSALM's interactive data; all are masks of the image's size, and none is ever empty. Whole arrays
are worked on at once. PSALM's masks are the objects themselves, blurred a little; ours are painted with a broad brush,
as by a user who has no time for edges, so that to repeat the prompt is not yet to answer it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64
from region_core.masks import box_to_mask

from psalm.prompts import dilate

CENTRAL_SHARE = 0.1
"""The point is one of this share of the mask's pixels: the nearest to its centre."""
END_SHARE = 0.15
"""A scribble begins and ends in this share of the pixels: the outermost in some direction."""
MAX_BEND = 0.15  # of a scribble's length, to either side
JITTER = 0.05  # of the box's side, for each edge: the sides change by 10 % at most
BRUSH = (0.2, 0.3)  # radius in square roots of the mask's area: a stroke covers about three fifths of what it shows


class Prompts(NamedTuple):
    """The four prompts of one region."""

    point: Bool[np.ndarray, "height width"]
    scribble: Bool[np.ndarray, "height width"]
    box: Bool[np.ndarray, "height width"]
    mask: Bool[np.ndarray, "height width"]


def draw_prompts(mask: Bool[np.ndarray, "height width"], rng: np.random.Generator) -> Prompts:
    """Draw all four prompts.

    Args:
        mask: What is visible of a thing.
        rng: Source of everything that is random.

    Returns:
        One pixel inside the mask, a line one pixel wide inside it, a filled box, and a stroke of a broad round brush
        along another such line, which leaves parts of the mask out and runs over its edge in others.

    Raises:
        ValueError: The mask is empty.
    """
    pixels = np.argwhere(mask)
    if not len(pixels):
        raise ValueError(f"a prompt needs a mask with pixels, got an empty one of {mask.shape[0]} x {mask.shape[1]}")
    centre = _central_pixel(pixels, rng)
    point = np.zeros_like(mask)
    point[tuple(centre)] = True
    scribble = _draw_scribble(mask, pixels, centre, rng)
    return Prompts(point, scribble, _draw_box(mask, pixels, rng), _paint_mask(mask, pixels, rng))


def _central_pixel(pixels: Int64[np.ndarray, "pixels 2"], rng: np.random.Generator) -> Int64[np.ndarray, "2"]:
    distances = ((pixels - pixels.mean(0)) ** 2).sum(1)
    nearest = np.argsort(distances, kind="stable")[: max(round(CENTRAL_SHARE * len(pixels)), 1)]
    return pixels[nearest[rng.integers(len(nearest))]]


def _draw_scribble(
    mask: Bool[np.ndarray, "height width"],
    pixels: Int64[np.ndarray, "pixels 2"],
    centre: Int64[np.ndarray, "2"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "height width"]:
    """A bent line from one end of the mask over its centre to the other; what leaves the mask is left out."""
    angle = rng.uniform(0, np.pi)
    order = np.argsort(pixels @ np.array([np.sin(angle), np.cos(angle)]), kind="stable")
    num_ends = max(round(END_SHARE * len(pixels)), 1)
    start, end = pixels[order[rng.integers(num_ends)]], pixels[order[-1 - rng.integers(num_ends)]]
    bends = rng.uniform(-MAX_BEND, MAX_BEND, 2)
    halves = [_bent_line(start, centre, bends[0], mask.shape), _bent_line(centre, end, bends[1], mask.shape)]
    return (halves[0] | halves[1]) & mask


def _bent_line(
    start: Int64[np.ndarray, "2"], end: Int64[np.ndarray, "2"], bend: float, shape: tuple[int, ...]
) -> Bool[np.ndarray, "height width"]:
    along = np.linspace(0, 1, 2 * int(np.abs(end - start).sum()) + 2)[:, None]
    across = np.array([end[1] - start[1], start[0] - end[0]])
    places = start + along * (end - start) + bend * np.sin(np.pi * along) * across
    rows, columns = np.round(places).astype(int).clip(0, np.array(shape) - 1).T
    line = np.zeros(shape, dtype=bool)
    line[rows, columns] = True
    return line


def _draw_box(
    mask: Bool[np.ndarray, "height width"], pixels: Int64[np.ndarray, "pixels 2"], rng: np.random.Generator
) -> Bool[np.ndarray, "height width"]:
    height, width = mask.shape
    top, left = pixels.min(0)
    bottom, right = pixels.max(0) + 1
    edges = np.array([left, top, right, bottom])
    sides = np.array([right - left, bottom - top] * 2)
    edges = (edges + rng.uniform(-JITTER, JITTER, 4) * sides).clip(0, (width, height) * 2)
    return box_to_mask(edges, height=height, width=width, units="pixels")


def _paint_mask(
    mask: Bool[np.ndarray, "height width"], pixels: Int64[np.ndarray, "pixels 2"], rng: np.random.Generator
) -> Bool[np.ndarray, "height width"]:
    line = _draw_scribble(mask, pixels, _central_pixel(pixels, rng), rng)
    return dilate(line, round(rng.uniform(*BRUSH) * len(pixels) ** 0.5))
