"""Scenes and edits: what is drawn is what is said, and half of a query is not enough."""

from collections import Counter
from typing import get_args

import numpy as np
import pytest
from region_core.drawing import PALETTE
from sprc.scenes import (
    NUM_SHARED,
    PLACES,
    Canvas,
    Edit,
    EditKind,
    Item,
    Name,
    draw_scene,
    sample_canvas,
    sample_cluster,
)
from sprc.transforms import build_transform

CIRCLE, SQUARE = Name("red", "circle"), Name("blue", "square")
SCENE = (Item(0, CIRCLE, 0), Item(1, SQUARE, 4, large=False), Item(2, Name("green", "cross"), 8))
CANVAS = Canvas(120, 90, (238, 238, 238))


def look(scene) -> frozenset:
    return frozenset((item.name, item.place, item.large) for item in scene)


@pytest.mark.parametrize(
    ("edit", "expected", "caption"),
    [
        (Edit("recolour", CIRCLE, "blue"), Item(0, Name("blue", "circle"), 0), "make the red circle blue"),
        (Edit("reshape", CIRCLE, "diamond"), Item(0, Name("red", "diamond"), 0), "turn the red circle into a diamond"),
        (Edit("resize", CIRCLE, "smaller"), Item(0, CIRCLE, 0, large=False), "make the red circle smaller"),
        (Edit("move", CIRCLE, "top right"), Item(0, CIRCLE, 2), "move the red circle to the top right"),
    ],
)
def test_an_edit_of_one_shape_leaves_the_others(edit, expected, caption):
    assert edit.apply(SCENE) == (expected, *SCENE[1:])
    assert edit.captions[0] == caption
    assert edit.captions[1] != caption
    assert str(edit.subject) in edit.captions[1]


def test_remove_add_and_swap():
    assert Edit("remove", SQUARE).apply(SCENE) == (SCENE[0], SCENE[2])
    added = Edit("add", Name("cyan", "circle"), "top").apply(SCENE)
    assert added == (*SCENE, Item(3, Name("cyan", "circle"), 1))
    swapped = Edit("swap", CIRCLE, str(SQUARE)).apply(SCENE)
    assert swapped == (Item(0, CIRCLE, 4), Item(1, SQUARE, 0, large=False), SCENE[2])


@pytest.mark.parametrize(
    "edit",
    [
        Edit("recolour", CIRCLE, "red"),  # changes nothing
        Edit("resize", CIRCLE, "larger"),
        Edit("move", CIRCLE, "middle"),  # taken
        Edit("add", CIRCLE, "top"),  # there would be two of them
        Edit("add", Name("cyan", "circle"), "middle"),
        Edit("remove", Name("cyan", "circle")),  # not there
        Edit("swap", CIRCLE, str(CIRCLE)),
        Edit("swap", CIRCLE, "cyan circle"),
    ],
)
def test_an_edit_that_cannot_be_done_or_tells_nothing_is_none(edit):
    assert edit.apply(SCENE) is None


def test_a_recolouring_that_makes_two_shapes_alike_is_none():
    scene = (Item(0, CIRCLE, 0), Item(1, Name("blue", "circle"), 1))
    assert Edit("recolour", CIRCLE, "blue").apply(scene) is None


@pytest.mark.parametrize("seed", range(20))
def test_every_edit_fits_every_scene_and_ends_somewhere_else(seed):
    cluster = sample_cluster(np.random.default_rng(seed), 3, 5)
    pictures = [look(scene) for scene in cluster.scenes]
    for edit in cluster.edits:
        for scene in cluster.scenes:
            after = edit.apply(scene)
            assert after is not None
            pictures.append(look(after))
    assert len(set(pictures)) == 3 * (1 + 5)


@pytest.mark.parametrize("seed", range(20))
def test_scenes_of_a_cluster_share_two_shapes_and_nothing_else(seed):
    cluster = sample_cluster(np.random.default_rng(seed), 3, 5)
    shared = [item.name for item in cluster.scenes[0][:NUM_SHARED]]
    for scene in cluster.scenes:
        assert [item.name for item in scene[:NUM_SHARED]] == shared
        assert 3 <= len(scene) <= 5
        assert len({item.name for item in scene}) == len({item.place for item in scene}) == len(scene)
    own = [item.name for scene in cluster.scenes for item in scene[NUM_SHARED:]]
    assert len(set(own)) == len(own)
    # A caption speaks of shared shapes alone (or of a new one), so it does not give the scene away.
    for edit in cluster.edits:
        assert edit.kind == "add" or edit.subject in shared
        assert not any(str(name) in caption for name in own for caption in edit.captions)


def test_captions_of_a_cluster_differ_from_each_other():
    for seed in range(20):
        cluster = sample_cluster(np.random.default_rng(seed), 3, 6)
        for wording in range(2):
            assert len({edit.captions[wording] for edit in cluster.edits}) == 6


def test_all_kinds_of_edits_are_drawn():
    kinds = Counter(edit.kind for seed in range(60) for edit in sample_cluster(np.random.default_rng(seed), 3, 5).edits)
    assert set(kinds) == set(get_args(EditKind))
    assert min(kinds.values()) >= 10


def test_boxes_are_exactly_the_shapes():
    picture = draw_scene(SCENE, CANVAS, np.random.default_rng(0))
    assert picture.image.shape == (90, 120, 3)
    for item in SCENE:
        drawn = (picture.image == PALETTE[item.name.colour]).all(-1)
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(found - picture.boxes_pixels[item.identity]).max() <= 1
    x0, y0, x1, y1 = picture.boxes_pixels[1]
    assert 40 <= x0 < x1 <= 80
    assert 30 <= y0 < y1 <= 60


def test_two_drawings_of_a_scene_differ_in_noise_and_a_little_in_place():
    pictures = [draw_scene(SCENE, CANVAS, np.random.default_rng(seed)) for seed in range(2)]
    assert (pictures[0].image != pictures[1].image).any()
    offsets = [np.subtract(pictures[0].boxes_pixels[key], pictures[1].boxes_pixels[key]) for key in range(3)]
    assert 0 < np.abs(offsets).max() <= 6


@pytest.mark.parametrize("shorter", [32, 96])
def test_no_shape_is_cut_off_by_the_usual_preprocessing(shorter):
    transform = build_transform("targetpad", 224)
    rng = np.random.default_rng(1)
    everywhere = tuple(Item(place, Name("red", "square"), place) for place in range(len(PLACES)))
    ratios = set()
    for _ in range(40):
        canvas = sample_canvas(rng, shorter)
        assert min(canvas.width, canvas.height) == shorter
        ratios.add(canvas.width / canvas.height)
        affine = transform.affine(canvas.width, canvas.height)
        size = np.array([canvas.width, canvas.height])
        for x0, y0, x1, y1 in draw_scene(everywhere, canvas, rng).boxes_pixels.values():
            corners = np.array([[x0, y0], [x1, y1]]) / size @ affine[:, :2].T + affine[:, 2]
            assert corners.min() >= -0.02
            assert corners.max() <= 1.02
    assert len(ratios) == 6
    assert min(ratios) < 0.7
    assert max(ratios) > 1.4
