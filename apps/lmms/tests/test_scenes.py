"""Scenes are exact functions of time: where shapes are, when they are there, and that order alone tells."""

import numpy as np
import pytest
from lmms.scenes import (
    COLOURS,
    DIRECTIONS,
    FAST,
    JITTER,
    NOMINAL_SIZE,
    NUM_STEPS,
    SLOW,
    STEPS,
    MovingShape,
    Scene,
    sample_scene,
    sample_still,
)
from region_core.drawing import PALETTE

STEP_S = 0.3
DURATION_S = NUM_STEPS * STEP_S
THEMES = ("moving", "counting", "appearing")


def scene_of(theme, seed=0, size=64, direction="right", **options):
    rng = np.random.default_rng(seed)
    return sample_scene(rng, theme, size=size, step_s=STEP_S, direction=direction, **options)


def centre_of(frame, colour):
    """Centre (x, y) of what is nearly of a colour, for a shape that no side of the picture cuts."""
    rows, columns = np.nonzero(np.abs(frame.astype(int) - PALETTE[colour]).sum(-1) < 30)
    return columns.mean() + 0.5, rows.mean() + 0.5


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["circle", "square"])
def test_a_shape_is_drawn_where_its_motion_puts_it(direction, kind):
    shape = MovingShape(kind, "red", 18.0, (32.0, 30.0), direction, 10.0)
    frames = Scene("moving", (shape,), 64, 60).render(np.array([0.0, 0.5, 1.2]))
    for frame, time_s in zip(frames, (0.0, 0.5, 1.2), strict=True):
        expected = np.array([32.0, 30.0]) + 10 * time_s * np.array(STEPS[direction])
        assert np.abs(centre_of(frame, "red") - expected).max() < 0.5


def test_motion_below_a_pixel_is_seen_in_the_edges():
    shape = MovingShape("square", "red", 16.0, (32.0, 32.0), "right", 1.0)
    first, second = Scene("moving", (shape,), 64, 60).render(np.array([0.0, 0.25])).astype(float)
    # A quarter of the columns at both edges changes hands: the background's 60 against the colour's 214.
    assert second[32, 40, 0] - first[32, 40, 0] == pytest.approx((214 - 60) / 4, abs=1)
    assert first[32, 24, 0] - second[32, 24, 0] == pytest.approx((214 - 60) / 4, abs=1)


@pytest.mark.parametrize(("kind", "area"), [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5)])
def test_shapes_have_the_area_of_their_form(kind, area):
    frame = Scene("moving", (MovingShape(kind, "red", 20.0, (32.0, 32.0), "up", 1.0),), 64, 60).render(np.zeros(1))[0]
    cover = (frame[..., 0].astype(float) - 60) / (PALETTE["red"][0] - 60)
    assert cover.sum() == pytest.approx(area * 400, rel=0.02)


@pytest.mark.parametrize("theme", THEMES)
def test_shapes_differ_in_colour_and_never_hide_each_other(theme):
    times = np.linspace(0, DURATION_S, 9)
    for seed in range(20):
        scene = scene_of(theme, seed)
        assert len({shape.colour for shape in scene.shapes}) == len(scene.shapes)
        alone = [Scene(theme, (shape,), 64, 0).render(times).any(-1) for shape in scene.shapes]
        assert not (np.sum(alone, 0) > 1).any()


def test_the_first_shape_goes_where_it_was_told_and_the_others_there_or_back():
    found = {direction: set() for direction in DIRECTIONS}
    for seed in range(40):
        for direction in DIRECTIONS:
            first, *others = scene_of("appearing", seed, direction=direction).shapes
            assert first.direction == direction
            found[direction] |= {shape.direction for shape in others}
    assert found["left"] == found["right"] == {"left", "right"}
    assert found["up"] == found["down"] == {"up", "down"}


def test_a_moving_shape_is_slow_or_fast():
    speeds = {round(scene_of("moving", seed).shapes[0].speed * STEP_S) for seed in range(20)}
    assert speeds == {SLOW, FAST}
    assert all(scene_of("moving", seed).shapes[0].is_fast == (speed == FAST) for seed, speed in _speeds(20))


def _speeds(number):
    return [(seed, round(scene_of("moving", seed).shapes[0].speed * STEP_S)) for seed in range(number)]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_shapes_stay_in_the_picture_and_cross_its_middle_in_the_middle_of_the_clip(theme, direction):
    times = np.linspace(0, DURATION_S, 9)
    for seed in range(10):
        for shape in scene_of(theme, seed, direction=direction).shapes:
            places = shape.centres(times)
            assert places.min() >= shape.size / 2 - JITTER
            assert places.max() <= 64 - shape.size / 2 + JITTER
            along = places[:, 0] if shape.direction in ("left", "right") else places[:, 1]
            assert abs(along[4] - 32) <= JITTER


def test_two_shapes_appear_one_after_the_other_for_as_long():
    times = np.arange(NUM_STEPS + 1) * STEP_S
    turns = set()
    for seed in range(20):
        first, second = (shape.is_visible(times) for shape in scene_of("appearing", seed).shapes)
        # Seen backwards each has the other's time: frames without their order do not tell.
        assert first.tolist() == second[::-1].tolist()
        assert not (first & second).any()
        assert first[0]
        turns.add(int(first.sum()))
    assert turns == {2, 3}


def test_backwards_in_time_a_scene_looks_like_one_whose_answers_are_the_others():
    # Left seen backwards is right, first is last: without the order of the frames nothing is left to tell.
    shape = scene_of("moving").shapes[0]
    times = np.linspace(0, DURATION_S, 9)
    back = MovingShape(shape.kind, shape.colour, shape.size, tuple(shape.centres(times[-1:])[0]), "left", shape.speed)
    forwards, backwards = (Scene("moving", (each,), 64, 60).render(times).astype(int) for each in (shape, back))
    assert np.abs(forwards - backwards[::-1]).max() <= 1


@pytest.mark.parametrize("num_shapes", [1, 2, 3])
def test_a_scene_has_as_many_shapes_as_are_asked_for(num_shapes):
    assert len(scene_of("counting", num_shapes=num_shapes).shapes) == num_shapes


def test_scenes_grow_with_the_picture():
    small, large = (scene_of("moving", size=size) for size in (NOMINAL_SIZE, 2 * NOMINAL_SIZE))
    for one, other in zip(small.shapes, large.shapes, strict=True):
        assert other.size == pytest.approx(2 * one.size)
        assert other.speed == pytest.approx(2 * one.speed)
        assert other.start == pytest.approx(tuple(2 * value for value in one.start))


def test_a_still_shows_one_shape_near_the_middle():
    for seed in range(20):
        (shape,) = sample_still(np.random.default_rng(seed), size=64).shapes
        assert shape.colour in COLOURS
        assert all(8 <= coordinate <= 56 for coordinate in shape.start)
