"""Scenes of coloured shapes and edits of them, made so that neither half of a query finds its target alone.

A scene is a few shapes on a 3 x 3 arrangement. Scenes come in clusters that share two shapes; every edit of a cluster
("make the red circle blue") is about the shared shapes and is applied to every scene of the cluster. So the same
caption belongs to as many targets as the cluster has scenes, and the same reference to as many as there are edits:
whoever reads the caption alone, or sees the reference alone, is right at most once in so many queries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from region_core.drawing import PALETTE, Colour, Shape, draw_shape, noise_background

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES: dict[str, Shape] = {
    "square": "rectangle",
    "circle": "ellipse",
    "triangle": "triangle",
    "diamond": "diamond",
    "cross": "cross",
}
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
BACKGROUNDS: tuple[Colour, ...] = ((238, 238, 238), (204, 208, 218), (226, 216, 196))
RATIOS = (1.0, 1.2, 4 / 3, 3 / 4, 3 / 2, 2 / 3)
"""Width over height of the canvases; from 1.25 on the usual preprocessing cuts off both ends of the longer side."""

NUM_SHARED = 2
OWN_ITEMS = (1, 3)
NUM_USED_PLACES = 6  # the others stay free in every scene of a cluster, so that something can move there
LONG_MARGIN, SHORT_MARGIN = 0.1, 0.03  # of the canvas, on either side; the preprocessing cuts no shape
LARGE, SMALL = 0.8, 0.45  # of a cell's shorter side
JITTER = 0.08  # of a cell, either way; drawn anew for every image
NOISE = 6.0

EditKind = Literal["recolour", "reshape", "resize", "move", "remove", "add", "swap"]


class Name(NamedTuple):
    """What a shape is called; no two shapes of a scene are called the same."""

    colour: str
    shape: str

    def __str__(self) -> str:
        """As captions say it."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Item:
    """A shape of a scene.

    Attributes:
        identity: Stays the same under every edit.
        name: Colour and shape.
        place: Index into `PLACES`.
        large: One of the two sizes.
    """

    identity: int
    name: Name
    place: int
    large: bool = True


Scene = tuple[Item, ...]


@dataclass(frozen=True)
class Edit:
    """One change of a scene.

    Attributes:
        kind: What is done.
        subject: The shape that it is done to, or that is added.
        value: The new colour, shape, size (`larger`, `smaller`) or place, or the other shape's name.
    """

    kind: EditKind
    subject: Name
    value: str = ""

    def apply(self, scene: Scene) -> Scene | None:
        """The scene after the edit; None where it cannot be done or would make two shapes alike."""
        if self.kind == "add":
            identity = max(item.identity for item in scene) + 1
            return _if_legal((*scene, Item(identity, self.subject, PLACES.index(self.value))))
        position = next((index for index, item in enumerate(scene) if item.name == self.subject), None)
        if position is None:
            return None
        if self.kind == "remove":
            return scene[:position] + scene[position + 1 :]
        if self.kind == "swap":
            return self._swap(scene, position)
        changed = self._change(scene[position])
        if changed == scene[position]:
            return None
        return _if_legal((*scene[:position], changed, *scene[position + 1 :]))

    @property
    def captions(self) -> tuple[str, str]:
        """Two ways to say it; each names the edit and nothing else of the scene."""
        subject, value = self.subject, self.value
        wordings: dict[EditKind, tuple[str, str]] = {
            "recolour": (f"make the {subject} {value}", f"the {subject} is {value} now"),
            "reshape": (f"turn the {subject} into a {value}", f"the {subject} is a {value} now"),
            "resize": (f"make the {subject} {value}", f"the {subject} is {value} now"),
            "move": (f"move the {subject} to the {value}", f"the {subject} is at the {value} now"),
            "remove": (f"remove the {subject}", f"there is no {subject} any more"),
            "add": (f"add a {subject} at the {value}", f"there is a {subject} at the {value} now"),
            "swap": (f"swap the {subject} and the {value}", f"the {subject} and the {value} change places"),
        }
        return wordings[self.kind]

    def _change(self, item: Item) -> Item:
        if self.kind == "recolour":
            return replace(item, name=Name(self.value, item.name.shape))
        if self.kind == "reshape":
            return replace(item, name=Name(item.name.colour, self.value))
        if self.kind == "resize":
            return replace(item, large=self.value == "larger")
        return replace(item, place=PLACES.index(self.value))

    def _swap(self, scene: Scene, position: int) -> Scene | None:
        other = next((index for index, item in enumerate(scene) if str(item.name) == self.value), None)
        if other is None or other == position:
            return None
        first, second = scene[position], scene[other]
        moved = {position: replace(first, place=second.place), other: replace(second, place=first.place)}
        return tuple(moved.get(index, item) for index, item in enumerate(scene))


@dataclass(frozen=True)
class Cluster:
    """Scenes with the edits that are applied to each of them."""

    scenes: tuple[Scene, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Canvas:
    """What a scene is drawn on."""

    width: int
    height: int
    background: Colour


@dataclass(frozen=True)
class Picture:
    """A drawn scene with the box (pixels, as edges) of every item by its identity."""

    image: UInt8[np.ndarray, "height width 3"]
    boxes_pixels: dict[int, tuple[int, int, int, int]]


def sample_cluster(rng: np.random.Generator, num_scenes: int, num_edits: int) -> Cluster:
    """Draw scenes that share two shapes and nothing else, and edits that every one of them allows."""
    while True:
        scenes = _sample_scenes(rng, num_scenes)
        edits = _sample_edits(rng, scenes, num_edits)
        if len(edits) == num_edits:
            return Cluster(scenes, edits)


def sample_canvas(rng: np.random.Generator, shorter_side: int) -> Canvas:
    """Draw a canvas' ratio and background."""
    ratio = RATIOS[rng.integers(len(RATIOS))]
    width, height = round(shorter_side * max(ratio, 1.0)), round(shorter_side / min(ratio, 1.0))
    return Canvas(width, height, BACKGROUNDS[rng.integers(len(BACKGROUNDS))])


def draw_scene(scene: Scene, canvas: Canvas, rng: np.random.Generator) -> Picture:
    """Draw a scene; noise and the shapes' exact positions differ from drawing to drawing."""
    image = noise_background(rng, canvas.height, canvas.width, canvas.background, NOISE)
    boxes = {}
    for item in scene:
        boxes[item.identity] = _place(item, canvas, rng)
        draw_shape(image, SHAPES[item.name.shape], boxes[item.identity], PALETTE[item.name.colour])
    return Picture(image, boxes)


def _place(item: Item, canvas: Canvas, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Box of an item: whole pixels, inside its cell."""
    lengths = np.array([canvas.width, canvas.height])
    margins = np.where(lengths == lengths.max(), LONG_MARGIN, SHORT_MARGIN) * lengths
    cell = (lengths - 2 * margins) / 3
    side = max(round(float((LARGE if item.large else SMALL) * cell.min())), 2)
    row, column = divmod(item.place, 3)
    centre = margins + (np.array([column, row]) + 0.5 + rng.uniform(-JITTER, JITTER, 2)) * cell
    left, top = np.clip(np.round(centre - side / 2), 0, lengths - side).astype(int).tolist()
    return left, top, left + side, top + side


def _sample_scenes(rng: np.random.Generator, num_scenes: int) -> tuple[Scene, ...]:
    names = [Name(*pair) for pair in product(COLOURS, SHAPES)]
    order = iter(rng.permutation(len(names)).tolist())
    shared = [names[next(order)] for _ in range(NUM_SHARED)]
    sizes = (rng.random(NUM_SHARED) < 0.5).tolist()
    used = rng.permutation(len(PLACES))[:NUM_USED_PLACES]
    scenes = []
    for _ in range(num_scenes):
        own = [names[next(order)] for _ in range(rng.integers(OWN_ITEMS[0], OWN_ITEMS[1] + 1))]
        places = rng.permutation(used).tolist()
        large = sizes + (rng.random(len(own)) < 0.5).tolist()
        scenes.append(
            tuple(
                Item(identity, name, place, is_large)
                for identity, (name, place, is_large) in enumerate(zip(shared + own, places, large, strict=False))
            )
        )
    return tuple(scenes)


def _sample_edits(rng: np.random.Generator, scenes: Sequence[Scene], num_edits: int) -> tuple[Edit, ...]:
    """Edits that all scenes allow and that end in different scenes; kinds are drawn evenly."""
    shared = [item.name for item in scenes[0][:NUM_SHARED]]
    kinds = get_args(EditKind)
    options = {kind: _shuffled(rng, list(_options(kind, shared))) for kind in kinds}
    chosen: list[Edit] = []
    results: set[frozenset[tuple[Name, int, bool]]] = set()
    while len(chosen) < num_edits and any(options.values()):
        kind = kinds[rng.integers(len(kinds))]
        if not options[kind]:
            continue
        edit = options[kind].pop()
        after = [edit.apply(scene) for scene in scenes]
        looks = {_look(scene) for scene in after if scene is not None}
        if len(looks) == len(scenes) and not looks & results:
            chosen.append(edit)
            results |= looks
    return tuple(chosen)


def _options(kind: EditKind, shared: Sequence[Name]) -> Iterator[Edit]:
    if kind == "add":
        for colour, shape, place in product(COLOURS, SHAPES, PLACES):
            yield Edit(kind, Name(colour, shape), place)
        return
    values: dict[EditKind, Sequence[str]] = {
        "recolour": COLOURS,
        "reshape": tuple(SHAPES),
        "resize": ("larger", "smaller"),
        "move": PLACES,
        "remove": ("",),
        "swap": (str(shared[1]),),
    }
    for subject, value in product(shared, values[kind]):
        yield Edit(kind, subject, value)


def _shuffled(rng: np.random.Generator, edits: Sequence[Edit]) -> list[Edit]:
    return [edits[index] for index in rng.permutation(len(edits))]


def _look(scene: Scene) -> frozenset[tuple[Name, int, bool]]:
    return frozenset((item.name, item.place, item.large) for item in scene)


def _if_legal(scene: Scene) -> Scene | None:
    """The scene, unless two of its shapes are called the same or lie in the same place."""
    names, places = {item.name for item in scene}, {item.place for item in scene}
    return scene if len(names) == len(places) == len(scene) else None
