"""Geometry of the synthetic scenes, worked out by hand or by intersecting single rays."""

import itertools

import numpy as np
import pytest
from spatialrgpt.scenes import (
    IMAGE_HEIGHT,
    IMAGE_WIDTH,
    MAX_DEPTH_M,
    MIN_VISIBLE_FRACTION,
    MIN_VISIBLE_PIXELS,
    Camera,
    FloorObject,
    render,
    sample_scene,
)

CENTRE = (IMAGE_HEIGHT // 2, IMAGE_WIDTH // 2)


def a_box(
    *, x: float = 0.0, z: float = 6.0, width: float = 2.0, depth: float = 2.0, height: float = 3.0
) -> FloorObject:
    return FloorObject("shelf", x=x, z=z, width=width, depth=depth, height=height)


def drawn(objects, camera: Camera, seed: int = 0):
    return render(list(objects), camera, np.random.default_rng(seed))


def test_a_box_straight_ahead_has_the_depth_of_its_front_face_and_the_width_of_a_pinhole_image():
    scene = drawn([a_box()], Camera(height_m=1.5, pitch_rad=0.0))
    assert scene.depth_m[CENTRE] == pytest.approx(5.0)  # centre at 6 m, 2 m deep
    # Its front face spans x = -1..1 at 5 m: 1 / 5 * 0.9 = 0.18 image widths to both sides of the middle.
    columns = np.flatnonzero(scene.masks[0][CENTRE[0]])
    assert (columns[0], columns[-1]) == (51, 108)  # 0.32 * 160 = 51.2 and 0.68 * 160 = 108.8, at pixel centres
    assert len(columns) == 58


def test_the_floor_below_a_level_camera_lies_where_similar_triangles_say():
    scene = drawn([], Camera(height_m=1.5, pitch_rad=0.0))
    row = IMAGE_HEIGHT - 1
    down = ((row + 0.5) / IMAGE_HEIGHT - 0.5) * (IMAGE_HEIGHT / IMAGE_WIDTH) / 0.9
    assert scene.depth_m[row, 3] == pytest.approx(1.5 / down)
    assert scene.depth_m[0, 3] == MAX_DEPTH_M  # above the horizon is the wall
    assert scene.masks.shape == (0, IMAGE_HEIGHT, IMAGE_WIDTH)


def test_every_pixel_shows_the_first_surface_on_its_ray():
    objects = [a_box(x=0.4, z=6.0), a_box(x=-1.2, z=8.0, height=1.0), a_box(x=3.2, z=9.0, width=1.0)]
    camera = Camera(height_m=3.8, pitch_rad=0.5)
    scene = drawn(objects, camera)
    assert scene.objects == tuple(objects)
    for row, column in itertools.product(range(5, IMAGE_HEIGHT, 23), range(3, IMAGE_WIDTH, 17)):
        depth, owner = first_surface(objects, camera, row, column)
        assert scene.depth_m[row, column] == pytest.approx(depth)
        assert np.flatnonzero(scene.masks[:, row, column]).tolist() == ([] if owner is None else [owner])


def first_surface(objects, camera: Camera, row: int, column: int) -> tuple[float, int | None]:
    """Try every face of every box on one ray; depth is what the point's distance along the optical axis is."""
    right = ((column + 0.5) / IMAGE_WIDTH - 0.5) / 0.9
    down = ((row + 0.5) / IMAGE_HEIGHT - 0.5) * (IMAGE_HEIGHT / IMAGE_WIDTH) / 0.9
    forward = np.array([0.0, -np.sin(camera.pitch_rad), np.cos(camera.pitch_rad)])
    below = np.array([0.0, -np.cos(camera.pitch_rad), -np.sin(camera.pitch_rad)])
    ray = forward + right * np.array([1.0, 0.0, 0.0]) + down * below
    eye = np.array([0.0, camera.height_m, 0.0])
    best, owner = MAX_DEPTH_M, None
    if ray[1] < 0:
        best = min(best, -camera.height_m / ray[1])
    for index, item in enumerate(objects):
        low = np.array([item.x - item.width / 2, 0.0, item.z - item.depth / 2])
        high = np.array([item.x + item.width / 2, item.height, item.z + item.depth / 2])
        for axis, plane in itertools.product(range(3), (low, high)):
            reach = (plane[axis] - eye[axis]) / ray[axis]
            point = eye + reach * ray
            others = [other for other in range(3) if other != axis]
            inside = all(low[other] <= point[other] <= high[other] for other in others)
            if inside and 0 < reach < best:
                best, owner = float(reach * (ray @ forward)), index
    return best, owner


def test_what_is_hidden_is_left_out():
    hidden = FloorObject("pallet", x=0.0, z=10.0, width=1.0, depth=1.0, height=0.5)
    wall = a_box(z=5.0, width=3.0, depth=0.5, height=4.0)
    scene = drawn([hidden, wall], Camera(height_m=1.5, pitch_rad=0.0))
    assert scene.objects == (wall,)
    assert len(scene.masks) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_sampled_scene_holds_what_the_questions_need(seed):
    scene = sample_scene(np.random.default_rng(seed))
    kinds = [item.kind for item in scene.objects]
    assert kinds.count("pallet") >= 2
    assert {"transporter", "shelf", "buffer"} <= set(kinds)
    assert scene.masks.sum(0).max() == 1  # no pixel belongs to two objects
    assert len(scene.masks) == len(scene.objects)
    assert (scene.masks.sum((1, 2)) >= MIN_VISIBLE_PIXELS).all()
    assert scene.depth_m.min() > 0
    assert scene.depth_m.max() <= MAX_DEPTH_M
    assert scene.image.std() > 5


@pytest.mark.parametrize("pitch", [0.45, 0.55])
def test_half_of_what_is_kept_can_be_seen(pitch):
    camera = Camera(height_m=4.0, pitch_rad=pitch)
    items = [a_box(x=x, z=z, height=1.5) for x, z in ((-1.0, 5.0), (-0.4, 7.5), (1.6, 6.0), (1.9, 8.4))]
    alone = [drawn([item], camera).masks[0].sum() for item in items]
    scene = drawn(items, camera)
    kept = [items.index(item) for item in scene.objects]
    assert kept
    for index, mask in zip(kept, scene.masks, strict=True):
        assert mask.sum() >= MIN_VISIBLE_FRACTION * alone[index]
    seen = {index: mask.sum() for index, mask in zip(kept, scene.masks, strict=True)}
    assert any(seen.get(index, 0) < alone[index] for index in range(len(items)))  # something really is in the way


def test_the_same_seed_draws_the_same_scene_and_another_seed_another():
    first, again, other = (sample_scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert first.objects == again.objects
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.objects != other.objects


def test_distance_overlap_and_holding_are_measured_on_the_floor():
    first, second = a_box(x=0.0, z=5.0), a_box(x=3.0, z=9.0, height=0.1)
    assert first.distance_m(second) == pytest.approx(5.0)  # 3, 4, 5
    assert not first.overlaps(second, gap_m=0.9)
    assert a_box(x=0.0, z=5.0).overlaps(a_box(x=2.5, z=5.0), gap_m=0.6)  # half a metre between them
    assert not a_box(x=0.0, z=5.0).overlaps(a_box(x=2.5, z=5.0), gap_m=0.4)
    assert first.holds(a_box(x=0.9, z=5.0))
    assert not first.holds(a_box(x=0.9, z=5.0), margin_m=0.2)
    assert not first.holds(a_box(x=1.1, z=5.0))
