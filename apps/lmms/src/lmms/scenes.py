"""Plain scenes of moving shapes, as functions of time: what a clip shows at any moment is exact, at any frame rate.

Coordinates are pixels, x right, y down, origin top-left; times are seconds. A shape crosses the middle of the picture
in the middle of its clip: seen backwards it goes the other way, through the same places, so no set of frames without
their order tells where it is going. Shapes of a scene move in lanes of their own, so none ever hides another.

The world is made for small models. Frames of a clip that are taken evenly, six of them, are a *step* apart; in a step a
slow shape moves by a quarter and a fast one by half of its size.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8
from region_core.drawing import PALETTE

ShapeKind = Literal["circle", "square", "triangle"]
Direction = Literal["left", "right", "up", "down"]
Theme = Literal["moving", "counting", "appearing"]

SHAPE_KINDS: tuple[ShapeKind, ...] = get_args(ShapeKind)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
COLOURS = ("red", "green", "blue", "yellow")
STEPS: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

NOMINAL_SIZE = 64
"""Sizes and speeds below are for a picture of 64 pixels, and grow with it."""

SHAPE_SIZE = 16
LANES = (14, 32, 50)
"""Centres of the lanes."""
NUM_STEPS = 5
"""Steps of a clip."""

SLOW, FAST = 4, 8
"""Pixels per step."""
JITTER = 4
"""How far from the middle of the picture a shape may be in the middle of the clip; a single one also from its lane."""

GREYS = (40, 90)

TURNS = (2, 3)
"""Of six frames, in how many each of two shapes is there; the first has the first ones, the second the last ones."""


@dataclass(frozen=True)
class MovingShape:
    """A shape in uniform motion.

    Attributes:
        kind: Its form.
        colour: A name in `COLOURS`.
        size: Width and height in pixels.
        start: Centre at time 0.
        direction: Where it goes.
        speed: Pixels per second.
        is_fast: Whether that is fast in this world.
        visible_s: From when until when it is there; None is always.
    """

    kind: ShapeKind
    colour: str
    size: float
    start: tuple[float, float]
    direction: Direction
    speed: float
    is_fast: bool = False
    visible_s: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What a question calls it."""
        return f"{self.colour} {self.kind}"

    def centres(self, times: Float[np.ndarray, " frames"]) -> Float[np.ndarray, "frames 2"]:
        """Centres (x, y) at the given times; outside the picture they count on."""
        return np.asarray(self.start) + times[:, None] * self.speed * np.asarray(STEPS[self.direction])

    def is_visible(self, times: Float[np.ndarray, " frames"]) -> np.ndarray:
        """At which of the times it is there."""
        if self.visible_s is None:
            return np.ones(len(times), dtype=bool)
        return (times >= self.visible_s[0]) & (times < self.visible_s[1])


@dataclass(frozen=True)
class Scene:
    """What a clip shows.

    Attributes:
        theme: What can be asked: a `moving` scene has one shape, the first shape of an `appearing` one is there before
            the second, a `counting` one has one to three.
        shapes: The shapes, of different colours.
        size: Side of the picture in pixels.
        grey: Level of the background, 0 to 255.
    """

    theme: Theme
    shapes: tuple[MovingShape, ...]
    size: int
    grey: int

    def render(self, times: Float[np.ndarray, " frames"]) -> UInt8[np.ndarray, "frames size size 3"]:
        """Draw the scene at the given times, with smooth edges."""
        frames = np.full((len(times), self.size, self.size, 3), self.grey, dtype=np.float32)
        pixels = np.arange(self.size) + 0.5
        for shape in self.shapes:
            offsets = pixels - shape.centres(times)[:, :, None]
            x, y = offsets.astype(np.float32).swapaxes(0, 1)
            distance = _distance(shape.kind, x[:, None, :], y[:, :, None], shape.size / 2)
            cover = (0.5 - distance).clip(0, 1) * shape.is_visible(times)[:, None, None]
            frames += cover[..., None] * (np.asarray(PALETTE[shape.colour], dtype=np.float32) - frames)
        return frames.round().astype(np.uint8)


def sample_scene(
    rng: np.random.Generator,
    theme: Theme,
    *,
    size: int,
    step_s: float,
    direction: Direction,
    num_shapes: int | None = None,
) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of everything that the other arguments leave open.
        theme: What can be asked about it.
        size: Side of the picture in pixels.
        step_s: Length of a step.
        direction: Where the first shape goes; the others go there or back.
        num_shapes: Of a `counting` scene; by default one to three.
    """
    counts = {"moving": 1, "appearing": 2, "counting": int(rng.integers(1, 4)) if num_shapes is None else num_shapes}
    unit = size / NOMINAL_SIZE
    back: Direction = {"left": "right", "right": "left", "up": "down", "down": "up"}[direction]
    turn = TURNS[rng.integers(len(TURNS))]
    shapes = []
    for row, colour in enumerate(rng.permutation(COLOURS)[: counts[theme]].tolist()):
        way = direction if row == 0 or rng.random() < 0.5 else back
        is_fast = theme == "moving" and rng.random() < 0.5
        shapes.append(
            MovingShape(
                kind=SHAPE_KINDS[rng.integers(len(SHAPE_KINDS))],
                colour=colour,
                size=SHAPE_SIZE * unit,
                start=(0.0, 0.0),
                direction=way,
                speed=(FAST if is_fast else SLOW) * unit / step_s,
                is_fast=is_fast,
                visible_s=_window(row, turn, step_s) if theme == "appearing" else None,
            )
        )
    lanes = rng.permutation(LANES).tolist()
    spread = JITTER if len(shapes) == 1 else 0
    placed = [_placed(rng, shape, lane, spread, unit, step_s) for shape, lane in zip(shapes, lanes, strict=False)]
    return Scene(theme, tuple(placed), size, int(rng.integers(*GREYS)))


def sample_still(rng: np.random.Generator, *, size: int) -> Scene:
    """Draw a scene of one shape, for a single picture."""
    direction = DIRECTIONS[rng.integers(4)]
    scene = sample_scene(rng, "counting", size=size, step_s=1.0, direction=direction, num_shapes=1)
    # Where it would be in the middle of a clip.
    (shape,) = scene.shapes
    x, y = shape.centres(np.array([NUM_STEPS / 2]))[0]
    return replace(scene, shapes=(replace(shape, start=(float(x), float(y))),))


def _placed(
    rng: np.random.Generator, shape: MovingShape, lane: int, spread: int, unit: float, step_s: float
) -> MovingShape:
    """The shape on its way through the middle of the picture, in a lane across it or so far from that."""
    step = np.asarray(STEPS[shape.direction])
    along = NOMINAL_SIZE / 2 + rng.uniform(-JITTER, JITTER)
    across = lane + rng.uniform(-spread, spread)
    start = np.where(step == 0, across, along) * unit - step * shape.speed * step_s * NUM_STEPS / 2
    return replace(shape, start=(float(start[0]), float(start[1])))


def _window(row: int, turn: int, step_s: float) -> tuple[float, float]:
    """When the first or the second of two shapes is there; seen backwards, each has the other's time."""
    edge = (turn - 0.5) * step_s
    return (-math.inf, edge) if row == 0 else (NUM_STEPS * step_s - edge, math.inf)


def _distance(
    kind: ShapeKind, x: Float[np.ndarray, "frames 1 size"], y: Float[np.ndarray, "frames size 1"], half: float
) -> Float[np.ndarray, "frames size size"]:
    """Distance from a shape's edge in pixels, negative inside; beyond a corner it is somewhat short."""
    if kind == "circle":
        return np.hypot(x, y) - half
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - half
    # Pointing up: two flanks that rise twice as fast as they close, and a base.
    return np.maximum((2 * np.abs(x) - y - half) / math.sqrt(5), y - half)
