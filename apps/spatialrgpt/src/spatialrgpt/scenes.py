"""Synthetic warehouse floors: boxes on a plane, ray-cast through a pinhole camera.

World axes: x right, y up, z forward, in metres, with the camera above the origin. Every pixel's ray is intersected with
every face, so image, depth and visible masks are exact and agree with each other. The camera's height and pitch differ
from scene to scene: an object's place in the image alone does not tell how far away it is.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

ObjectKind = Literal["pallet", "transporter", "shelf", "buffer"]

IMAGE_HEIGHT, IMAGE_WIDTH = 120, 160
MAX_DEPTH_M = 16.0
FOCAL_LENGTH = 0.9  # in image widths
MIN_VISIBLE_FRACTION = 0.5
MIN_VISIBLE_PIXELS = 20

# Ranges of width (x), depth (z) and height (y) in metres.
SIZES_M: dict[ObjectKind, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "pallet": ((0.9, 1.2), (0.8, 1.0), (0.3, 1.1)),
    "transporter": ((0.8, 1.0), (1.4, 1.8), (1.5, 1.9)),
    "shelf": ((2.0, 2.8), (0.7, 0.9), (2.0, 2.6)),
    "buffer": ((2.6, 3.4), (2.0, 2.8), (0.02, 0.02)),
}
COLOURS: dict[ObjectKind, tuple[int, int, int]] = {
    "pallet": (176, 124, 72),
    "transporter": (222, 96, 40),
    "shelf": (60, 96, 160),
    "buffer": (206, 186, 60),
}
SIDE_SHADE, TOP_SHADE, FRONT_SHADE = 0.62, 1.0, 0.8
FLOOR_COLOUR = (140, 142, 146)
WALL_COLOUR = (98, 104, 112)


@dataclass(frozen=True)
class FloorObject:
    """An axis-aligned box standing on the floor; `x` and `z` are its centre in metres."""

    kind: ObjectKind
    x: float
    z: float
    width: float
    depth: float
    height: float

    def distance_m(self, other: "FloorObject") -> float:
        """Distance between the centres of two objects, along the floor."""
        return float(np.hypot(self.x - other.x, self.z - other.z))

    def overlaps(self, other: "FloorObject", gap_m: float) -> bool:
        """Whether two footprints come nearer than `gap_m`."""
        return (
            abs(self.x - other.x) < (self.width + other.width) / 2 + gap_m
            and abs(self.z - other.z) < (self.depth + other.depth) / 2 + gap_m
        )

    def holds(self, other: "FloorObject", margin_m: float = 0.0) -> bool:
        """Whether the other's centre lies on this footprint, at least `margin_m` inside its edge."""
        return abs(self.x - other.x) <= self.width / 2 - margin_m and abs(self.z - other.z) <= self.depth / 2 - margin_m


class Rays(NamedTuple):
    """Directions of all pixels: the camera does not roll, so x varies along a row only, y and z along a column only."""

    x: Float[np.ndarray, " width"]
    y: Float[np.ndarray, " height"]
    z: Float[np.ndarray, " height"]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera `height_m` above the origin, looking forward and `pitch_rad` down."""

    height_m: float
    pitch_rad: float

    def rays(self) -> Rays:
        """World directions through the pixel centres, of unit length along the optical axis."""
        u = (np.arange(IMAGE_WIDTH) + 0.5) / IMAGE_WIDTH - 0.5
        v = ((np.arange(IMAGE_HEIGHT) + 0.5) / IMAGE_HEIGHT - 0.5) * IMAGE_HEIGHT / IMAGE_WIDTH
        right, down = u / FOCAL_LENGTH, v / FOCAL_LENGTH
        sine, cosine = np.sin(self.pitch_rad), np.cos(self.pitch_rad)
        return Rays(x=right, y=-sine - down * cosine, z=cosine - down * sine)


@dataclass(frozen=True)
class Scene:
    """What a camera sees: `masks[i]` are the visible pixels of `objects[i]`."""

    objects: tuple[FloorObject, ...]
    image: UInt8[np.ndarray, "height width 3"]
    depth_m: Float[np.ndarray, "height width"]
    masks: Bool[np.ndarray, "objects height width"]


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a floor with all four kinds of object and at least two pallets, all well visible."""
    while True:
        camera = Camera(height_m=float(rng.uniform(3.4, 4.8)), pitch_rad=float(np.deg2rad(rng.uniform(24, 34))))
        scene = render(_place_objects(rng), camera, rng)
        kinds = [item.kind for item in scene.objects]
        if kinds.count("pallet") >= 2 and {"transporter", "shelf", "buffer"} <= set(kinds):
            return scene


def render(objects: list[FloorObject], camera: Camera, rng: np.random.Generator) -> Scene:
    """Ray-cast the objects; those hidden by others or out of the frame are left out of the scene."""
    rays = camera.rays()
    floor = np.where(rays.y < -1e-6, camera.height_m / -np.minimum(rays.y, -1e-6), np.inf)
    floor = np.broadcast_to(floor[:, None], (IMAGE_HEIGHT, IMAGE_WIDTH))
    nearest = np.minimum(floor, MAX_DEPTH_M)
    light = 1.0 + 0.1 * rng.standard_normal(3)
    image = np.where((floor < MAX_DEPTH_M)[..., None], FLOOR_COLOUR, WALL_COLOUR) * light
    owner = np.full(nearest.shape, -1)
    footprint_pixels = []
    for index, item in enumerate(objects):
        tint = np.asarray(COLOURS[item.kind]) * (1.0 + 0.08 * rng.standard_normal(3))
        hit, shade = _cast(item, camera, rays)
        footprint_pixels.append(np.isfinite(hit).sum())
        in_front = hit < nearest
        nearest = np.where(in_front, hit, nearest)
        owner[in_front] = index
        image[in_front] = (tint * light * shade[..., None])[in_front]
    image += rng.normal(0.0, 4.0, image.shape)
    masks = owner[None] == np.arange(len(objects))[:, None, None]
    visible = masks.sum((1, 2))
    kept = (visible >= MIN_VISIBLE_PIXELS) & (visible >= MIN_VISIBLE_FRACTION * np.asarray(footprint_pixels))
    return Scene(
        objects=tuple(item for item, keep in zip(objects, kept, strict=True) if keep),
        image=np.clip(image, 0, 255).astype(np.uint8),
        depth_m=nearest,
        masks=masks[kept],
    )


def _place_objects(rng: np.random.Generator) -> list[FloorObject]:
    """Put buffers down, pallets in and around them, then shelves and transporters, without collisions."""
    placed: list[FloorObject] = []
    buffers: list[FloorObject] = []
    for _ in range(rng.integers(1, 3)):
        buffer = _sample_object("buffer", rng)
        if not any(buffer.overlaps(other, 0.4) for other in buffers):
            buffers.append(buffer)
    wanted: list[ObjectKind] = ["pallet"] * int(rng.integers(4, 8))
    wanted += ["shelf"] * int(rng.integers(1, 3)) + ["transporter"] * int(rng.integers(1, 3))
    for kind in wanted:
        for _ in range(20):
            host = buffers[rng.integers(len(buffers))] if kind == "pallet" and rng.random() < 0.5 else None
            item = _sample_object(kind, rng, host)
            if any(item.overlaps(other, 0.1) for other in placed):
                continue
            # A pallet is clearly in a buffer or clearly out of it; everything else keeps off the buffers.
            if kind == "pallet":
                fits = all(b.holds(item, 0.35) or not b.overlaps(item, 0.0) for b in buffers)
            else:
                fits = not any(b.overlaps(item, 0.1) for b in buffers)
            if fits:
                placed.append(item)
                break
    return buffers + placed


def _sample_object(kind: ObjectKind, rng: np.random.Generator, host: FloorObject | None = None) -> FloorObject:
    width, depth, height = (float(rng.uniform(*limits)) for limits in SIZES_M[kind])
    if host is None:
        z = float(rng.uniform(4.2, 12.0))
        x = float(rng.uniform(-0.5, 0.5)) * (z - 0.5)
    else:
        x = host.x + float(rng.uniform(-0.5, 0.5)) * (host.width - 0.8)
        z = host.z + float(rng.uniform(-0.5, 0.5)) * (host.depth - 0.8)
    return FloorObject(kind=kind, x=x, z=z, width=width, depth=depth, height=height)


def _cast(
    item: FloorObject, camera: Camera, rays: Rays
) -> tuple[Float[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Depth along the optical axis at which each ray enters the box (inf: misses), and the entered face's shade."""
    side_in, side_out = _slab(item.x, item.width, rays.x)
    top_in, top_out = _slab(item.height / 2 - camera.height_m, item.height, rays.y)
    front_in, front_out = _slab(item.z, item.depth, rays.z)
    row_in = np.maximum(top_in, front_in)[:, None]
    enter = np.maximum(side_in[None], row_in)
    leave = np.minimum(side_out[None], np.minimum(top_out, front_out)[:, None])
    depth = np.where((enter <= leave) & (enter > 0), enter, np.inf)
    shade = np.where(side_in[None] > row_in, SIDE_SHADE, np.where(top_in > front_in, TOP_SHADE, FRONT_SHADE)[:, None])
    return depth, shade


def _slab(
    centre: float, extent: float, directions: Float[np.ndarray, " rays"]
) -> tuple[Float[np.ndarray, " rays"], Float[np.ndarray, " rays"]]:
    """Where rays from the origin enter and leave the slab between two parallel planes."""
    safe = np.where(np.abs(directions) < 1e-9, 1e-9, directions)
    first, second = (centre - extent / 2) / safe, (centre + extent / 2) / safe
    return np.minimum(first, second), np.maximum(first, second)
