"""Small panoptic scenes: things in front of two or three surfaces, and pairs of scenes that share things.

Every class of things has a shape and a hue of its own, so that a small model learns the classes in minutes; shade,
place and size tell the things of a class apart. Every pixel belongs to exactly one thing or surface, and the masks are
what is visible of them, by construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8
from region_core import draw_shape, noise_background
from region_core.drawing import Colour, Shape

Shade = Literal["dark", "light"]
SHADES: tuple[Shade, ...] = get_args(Shade)


class Kind(NamedTuple):
    """How a class of things looks: its shape, and its colour in either shade."""

    shape: Shape
    dark: Colour
    light: Colour


THINGS = {
    "apple": Kind("ellipse", (140, 16, 24), (238, 84, 84)),
    "brick": Kind("rectangle", (158, 78, 8), (250, 160, 40)),
    "tree": Kind("triangle", (8, 74, 28), (52, 206, 84)),
    "kite": Kind("diamond", (86, 24, 130), (190, 110, 234)),
    "cross": Kind("cross", (16, 16, 20), (118, 118, 126)),  # black and grey: the one class without a hue
}
"""The classes of things. Every dark colour is darker than every light one, whatever the class."""


class Surface(NamedTuple):
    """How a surface looks: mean colour, noise in grey levels, height of its ripples in grey levels."""

    colour: Colour
    grain: float
    ripple: float


STUFF = {
    "sky": Surface((184, 208, 236), 2.0, 0.0),
    "grass": Surface((126, 150, 92), 14.0, 0.0),
    "water": Surface((74, 122, 150), 4.0, 14.0),
    "sand": Surface((222, 204, 166), 7.0, 0.0),
}
"""The surfaces; none has the colour of a thing."""

RATIOS = (1.0, 4 / 3, 3 / 4)
"""Width over height of the images."""

MAX_THINGS = 4
LENGTHS = (0.19, 0.4)
"""Range of a thing's longer side, in longer sides of the image."""
SMALL_LENGTHS, LARGE_LENGTHS = (0.19, 0.26), (0.32, 0.4)
"""In a pair a thing is small in one image and large in the other."""
SQUAREST, NARROWEST = 1.0, 0.75  # shorter over longer side of a thing's box

MIN_VISIBLE_SHARE = 0.6
"""Of every thing so much is visible at least."""
MIN_STUFF_SHARE = 0.06
"""Of the image, for every surface."""
MAX_BOX_OVERLAP = 0.2  # of the smaller box
SAME_KIND_GAP = 3  # pixels; things of a class that touch could not be told apart
PLACING_ATTEMPTS = 30
MIN_SHIFT = 0.2
"""In a pair a thing's centre moves by so much at least, in widths and heights of the images."""
SHARED_ODDS = (0.15, 0.4, 0.45)  # of one, two, three shared things; three fit less often

THING_NOISE = 4.0
BRIGHTNESS = 8.0


class Name(NamedTuple):
    """What a thing is called: its shade and its class, one of `THINGS`."""

    shade: Shade
    kind: str

    @property
    def colour(self) -> Colour:
        """The colour that the thing is drawn in."""
        kind = THINGS[self.kind]
        return kind.dark if self.shade == "dark" else kind.light


@dataclass(frozen=True, eq=False)
class DrawnScene:
    """An image with what is in it.

    Attributes:
        image: Pixels.
        names: What the things are.
        masks: What is visible of each thing.
        stuff: Names of the surfaces.
        stuff_masks: What is visible of each surface.
    """

    image: UInt8[np.ndarray, "height width 3"]
    names: tuple[Name, ...]
    masks: Bool[np.ndarray, "things height width"]
    stuff: tuple[str, ...]
    stuff_masks: Bool[np.ndarray, "surfaces height width"]


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two scenes that share things.

    Attributes:
        reference: The image that shows the prompted things.
        target: The image to find them in: other places, sizes, surfaces and other things beside them.
        matches: For every shared thing its row in the reference and its row in the target.
    """

    reference: DrawnScene
    target: DrawnScene
    matches: tuple[tuple[int, int], ...]


def sample_scene(rng: np.random.Generator, image_size: int) -> DrawnScene:
    """Draw a scene with one to four things; many are of another one's class, in the same shade or in the other.

    Args:
        rng: Source of everything that is random.
        image_size: Longer side of the image in pixels.
    """
    while True:
        names: list[Name] = []
        for _ in range(rng.integers(1, MAX_THINGS + 1)):
            names.append(_sample_name(rng, names))
        scene = _try_scene(rng, names, rng.uniform(*LENGTHS, len(names)), _sample_stuff(rng), image_size)
        if scene is not None:
            return scene


def sample_pair(rng: np.random.Generator, image_size: int) -> ScenePair:
    """Draw two scenes that share one to three things; no other thing has both the class and the shade of one of these.

    Args:
        rng: Source of everything that is random.
        image_size: Longer side of the images in pixels.
    """
    while True:
        num_shared = int(rng.choice(len(SHARED_ODDS), p=SHARED_ODDS)) + 1
        num_others = MAX_THINGS - num_shared
        shared = _sample_distinct(rng, num_shared, [])
        reference_others = _sample_distinct(rng, int(rng.integers(0, num_others + 1)), shared)
        target_others = _sample_distinct(rng, int(rng.integers(1, num_others + 1)), shared + reference_others)
        stuff, target_stuff = _sample_stuff(rng), _sample_stuff(rng)
        if set(stuff) == set(target_stuff):
            continue
        is_large = rng.random(len(shared)) < 0.5
        reference = _try_pair_side(rng, shared, reference_others, is_large, stuff, image_size)
        target = _try_pair_side(rng, shared, target_others, ~is_large, target_stuff, image_size)
        if reference is None or target is None:
            continue
        matches = tuple((reference.names.index(name), target.names.index(name)) for name in shared)
        if all(_shift(reference.masks[row], target.masks[column]) >= MIN_SHIFT for row, column in matches):
            return ScenePair(reference, target, matches)


def _shift(mask: Bool[np.ndarray, "height width"], other: Bool[np.ndarray, "other_height other_width"]) -> float:
    """Distance of two masks' centres, each in widths and heights of its image."""
    centres = [(np.argwhere(one) + 0.5).mean(0) / one.shape for one in (mask, other)]
    return float(np.linalg.norm(centres[0] - centres[1]))


def _try_pair_side(
    rng: np.random.Generator,
    shared: Sequence[Name],
    others: Sequence[Name],
    is_large: Bool[np.ndarray, " shared"],
    stuff: Sequence[str],
    image_size: int,
) -> DrawnScene | None:
    lengths = np.where(is_large, rng.uniform(*LARGE_LENGTHS, len(shared)), rng.uniform(*SMALL_LENGTHS, len(shared)))
    lengths = np.concatenate([lengths, rng.uniform(*LENGTHS, len(others))])
    names = [*shared, *others]
    order = rng.permutation(len(names))  # any thing may be the one in front
    return _try_scene(rng, [names[row] for row in order], lengths[order], stuff, image_size)


def _sample_name(rng: np.random.Generator, earlier: Sequence[Name]) -> Name:
    """A name that often repeats the class of an earlier one, and now and then its shade as well."""
    kinds = tuple(THINGS)
    shade, kind = SHADES[rng.integers(len(SHADES))], kinds[rng.integers(len(kinds))]
    if not earlier:
        return Name(shade, kind)
    like = earlier[int(rng.integers(len(earlier)))]
    draw = rng.random()
    if draw < 0.35:
        return Name(shade, like.kind)
    return like if draw < 0.45 else Name(shade, kind)


def _sample_distinct(rng: np.random.Generator, number: int, earlier: Sequence[Name]) -> list[Name]:
    """Names that are neither among the earlier ones nor equal to each other."""
    names: list[Name] = []
    while len(names) < number:
        name = _sample_name(rng, [*earlier, *names])
        if name not in names and name not in earlier:
            names.append(name)
    return names


def _sample_stuff(rng: np.random.Generator) -> tuple[str, ...]:
    """Two or three surfaces, from the top down; the sky is at the top or absent."""
    grounds = [name for name in STUFF if name != "sky"]
    order = [grounds[row] for row in rng.permutation(len(grounds))]
    top = ["sky"] if rng.random() < 0.75 else []
    return tuple([*top, *order][: rng.integers(2, 4)])


def _try_scene(
    rng: np.random.Generator,
    names: Sequence[Name],
    lengths: Float[np.ndarray, " things"],
    stuff: Sequence[str],
    image_size: int,
) -> DrawnScene | None:
    """Draw things of the given lengths; None where they do not fit or too little of something stays visible."""
    ratio = RATIOS[rng.integers(len(RATIOS))]
    height, width = round(image_size / max(ratio, 1.0)), round(image_size * min(ratio, 1.0))
    boxes = _place(rng, names, lengths * image_size, height, width)
    if boxes is None:
        return None
    areas = _split_area(rng, len(stuff), height, width)
    image = _paint(rng, stuff, areas)
    whole = np.stack(
        [draw_shape(image, THINGS[name.kind].shape, box, name.colour) for name, box in zip(names, boxes, strict=True)]
    )
    owner = np.where(whole.any(0), len(whole) - 1 - whole[::-1].argmax(0), -1)  # the last one drawn lies in front
    masks = owner[None] == np.arange(len(whole))[:, None, None]
    stuff_masks = areas & (owner == -1)
    hidden = masks.sum((1, 2)) < MIN_VISIBLE_SHARE * whole.sum((1, 2))
    if hidden.any() or (stuff_masks.mean((1, 2)) < MIN_STUFF_SHARE).any():
        return None
    noise = rng.standard_normal(image.shape, dtype=np.float32) * THING_NOISE * (owner >= 0)[..., None]
    image = (image + noise).round().clip(0, 255).astype(np.uint8)
    return DrawnScene(image, tuple(names), masks, tuple(stuff), stuff_masks)


def _place(
    rng: np.random.Generator,
    names: Sequence[Name],
    lengths_pixels: Float[np.ndarray, " things"],
    height: int,
    width: int,
) -> list[tuple[int, int, int, int]] | None:
    """Boxes in whole pixels inside the image; None where one finds no place."""
    boxes: list[tuple[int, int, int, int]] = []
    for name, length in zip(names, lengths_pixels.tolist(), strict=True):
        sides = np.array([length, length * rng.uniform(NARROWEST, SQUAREST)])
        box_width, box_height = np.maximum(np.round(rng.permutation(sides)), 3).astype(int).tolist()
        for _ in range(PLACING_ATTEMPTS):
            left = int(rng.integers(0, width - box_width + 1))
            top = int(rng.integers(0, height - box_height + 1))
            box = (left, top, left + box_width, top + box_height)
            if all(
                _may_lie_together(box, other, name.kind == earlier.kind)
                for other, earlier in zip(boxes, names, strict=False)
            ):
                boxes.append(box)
                break
        else:
            return None
    return boxes


def _may_lie_together(box: tuple[int, int, int, int], other: tuple[int, int, int, int], same_kind: bool) -> bool:
    across = min(box[2], other[2]) - max(box[0], other[0])
    down = min(box[3], other[3]) - max(box[1], other[1])
    if same_kind:
        return max(-across, -down) >= SAME_KIND_GAP
    smaller = min((edges[2] - edges[0]) * (edges[3] - edges[1]) for edges in (box, other))
    return max(across, 0) * max(down, 0) <= MAX_BOX_OVERLAP * smaller


def _split_area(
    rng: np.random.Generator, number: int, height: int, width: int
) -> Bool[np.ndarray, "{number} {height} {width}"]:
    """Cut the image in two by a wavy, slanted line; with three surfaces another line cuts the lower part."""
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    upper = rows < height * _border(rng, columns / width)
    if number == 2:
        return np.stack([upper, ~upper])
    left = columns < width * _border(rng, rows / height)
    return np.stack([upper, ~upper & left, ~upper & ~left])


def _border(rng: np.random.Generator, along: Float[np.ndarray, "*size"]) -> Float[np.ndarray, "*size"]:
    """Height of a line over its length, both in [0, 1]."""
    middle, slope, wave = rng.uniform(0.35, 0.65), rng.uniform(-0.3, 0.3), rng.uniform(0.0, 0.07)
    waves, phase = rng.uniform(0.5, 2.0), rng.uniform(0.0, 2 * np.pi)
    return middle + slope * (along - 0.5) + wave * np.sin(2 * np.pi * waves * along + phase)


def _paint(
    rng: np.random.Generator, stuff: Sequence[str], areas: Bool[np.ndarray, "surfaces height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Fill each area with its surface, a little brighter or darker than in other scenes."""
    height, width = areas.shape[1:]
    image = np.empty((height, width, 3), dtype=np.uint8)
    for name, area in zip(stuff, areas, strict=True):
        surface = STUFF[name]
        texture = noise_background(rng, height, width, surface.colour, surface.grain).astype(np.float64)
        crests = np.sin(np.arange(height) * (2 * np.pi / rng.uniform(5, 8)) + rng.uniform(0, 2 * np.pi))
        texture += surface.ripple * crests[:, None, None] + rng.normal(0.0, BRIGHTNESS)
        image[area] = texture.round().clip(0, 255).astype(np.uint8)[area]
    return image
