"""Scenes are what they say: exact masks, everything clearly visible, pairs that share things and little else."""

import colorsys
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from psalm.scenes import (
    MIN_SHIFT,
    MIN_STUFF_SHARE,
    MIN_VISIBLE_SHARE,
    RATIOS,
    SHADES,
    STUFF,
    THINGS,
    DrawnScene,
    Name,
    sample_pair,
    sample_scene,
)
from region_core import SHAPES

EVERY_NAME = [Name(shade, kind) for shade, kind in product(SHADES, THINGS)]
NUM_SCENES, NUM_PAIRS = 60, 30
IMAGE_SIZE = 96


@pytest.fixture(scope="module")
def scenes() -> list[DrawnScene]:
    return [sample_scene(np.random.default_rng([0, index]), IMAGE_SIZE) for index in range(NUM_SCENES)]


@pytest.fixture(scope="module")
def pairs():
    return [sample_pair(np.random.default_rng([1, index]), IMAGE_SIZE) for index in range(NUM_PAIRS)]


def both_images(pairs):
    return [scene for pair in pairs for scene in (pair.reference, pair.target)]


def longer_side(mask):
    return max(mask.any(0).sum(), mask.any(1).sum())


def hue_and_saturation(colour):
    """Hue in turns, saturation in [0, 1]."""
    hue, saturation, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    return hue, saturation


def luma(colour):
    return np.dot(colour, (0.299, 0.587, 0.114))


def test_every_class_has_a_shape_and_a_hue_of_its_own():
    assert sorted(kind.shape for kind in THINGS.values()) == sorted(SHAPES)
    hues = {}
    for name, kind in THINGS.items():
        (dark, *_), (light, *_) = looks = [hue_and_saturation(colour) for colour in (kind.dark, kind.light)]
        if name == "cross":  # black and grey
            assert max(saturation for _, saturation in looks) < 0.25
            continue
        assert min(saturation for _, saturation in looks) > 0.5
        assert min(abs(dark - light), 1 - abs(dark - light)) < 0.03  # ten degrees: both shades are of one hue
        hues[name] = [dark, light]
    assert len(hues) == 4
    for one, other in combinations(hues.values(), 2):
        for first, second in product(one, other):
            assert min(abs(first - second), 1 - abs(first - second)) > 0.06


def test_shades_are_plain_within_a_class_and_across_classes():
    for kind in THINGS.values():
        assert luma(kind.light) - luma(kind.dark) > 60
    # "the dark one on the left" names no class: whatever is called dark is darker than whatever is called light.
    assert max(luma(kind.dark) for kind in THINGS.values()) + 20 < min(luma(kind.light) for kind in THINGS.values())


def test_no_thing_has_the_colour_of_a_surface_or_of_another_thing():
    colours = [*(name.colour for name in EVERY_NAME), *(surface.colour for surface in STUFF.values())]
    for one, other in combinations(colours, 2):
        assert np.abs(np.subtract(one, other)).sum() > 60


def test_both_shades_occur_with_every_class(scenes, pairs):
    for drawn in (scenes, both_images(pairs)):
        found = Counter(name for scene in drawn for name in scene.names)
        assert all(found[name] >= 3 for name in EVERY_NAME)


def test_every_pixel_belongs_to_exactly_one_thing_or_surface(scenes, pairs):
    for scene in [*scenes, *both_images(pairs)]:
        owners = scene.masks.sum(0) + scene.stuff_masks.sum(0)
        assert (owners == 1).all()
        assert len(scene.masks) == len(scene.names)
        assert len(scene.stuff_masks) == len(scene.stuff)


def test_a_mask_is_where_the_things_colour_is(scenes):
    for scene in scenes:
        for name, mask in zip(scene.names, scene.masks, strict=True):
            away = np.abs(scene.image[mask].astype(int) - name.colour)
            assert away.max() < 30  # noise of 4 grey levels
            others = scene.image[~mask].astype(int)
            if scene.names.count(name) == 1:
                assert (np.abs(others - name.colour).max(1) < 15).mean() < 0.01


def test_surfaces_have_colours_of_their_own(scenes):
    means = {name: [] for name in STUFF}
    for scene in scenes:
        for name, mask in zip(scene.stuff, scene.stuff_masks, strict=True):
            means[name].append(scene.image[mask].mean(0))
    for name, found in means.items():
        assert len(found) >= 5
        for mean in found:
            nearest = min(STUFF, key=lambda other: np.abs(mean - STUFF[other].colour).sum())
            assert nearest == name


def test_enough_of_everything_is_visible(scenes, pairs):
    for scene in [*scenes, *both_images(pairs)]:
        assert (scene.stuff_masks.mean((1, 2)) >= MIN_STUFF_SHARE).all()
        assert (scene.masks.sum((1, 2)) >= 40).all()
    # A brick fills its box, so the visible share can be read off it where no edge of it is hidden.
    shares = [
        mask.sum() / (mask.any(0).sum() * mask.any(1).sum())
        for scene in scenes
        for name, mask in zip(scene.names, scene.masks, strict=True)
        if name.kind == "brick"
    ]
    assert min(shares) >= MIN_VISIBLE_SHARE
    assert max(shares) == 1


def test_things_of_one_class_never_touch(scenes, pairs):
    for scene in [*scenes, *both_images(pairs)]:
        for row, name in enumerate(scene.names):
            for other in range(row):
                if scene.names[other].kind == name.kind:
                    grown = np.pad(scene.masks[row], 1)
                    near = grown[2:, 1:-1] | grown[:-2, 1:-1] | grown[1:-1, 2:] | grown[1:-1, :-2]
                    assert not (near & scene.masks[other]).any()


def test_numbers_sizes_and_ratios_vary(scenes):
    assert {len(scene.names) for scene in scenes} == {1, 2, 3, 4}
    assert {len(scene.stuff) for scene in scenes} == {2, 3}
    assert {scene.image.shape[:2] for scene in scenes} == {(96, 96), (72, 96), (96, 72)}
    assert len(RATIOS) == 3
    lengths = [longer_side(mask) for scene in scenes for mask in scene.masks]
    assert min(lengths) < 0.25 * IMAGE_SIZE
    assert 0.35 * IMAGE_SIZE < max(lengths) <= 0.41 * IMAGE_SIZE


def test_scenes_often_show_a_class_twice(scenes):
    # Then the class alone names no thing: it takes the shade, or with equal shades the place or the size.
    repeated = {True: 0, False: 0}  # by whether the shades are equal
    for scene in scenes:
        for one, other in combinations(scene.names, 2):
            if one.kind == other.kind:
                repeated[one == other] += 1
    assert min(repeated.values()) >= 10


def test_a_pair_shares_things_by_shade_and_class_without_doubt(pairs):
    numbers = Counter(len(pair.matches) for pair in pairs)
    assert set(numbers) == {1, 2, 3}
    assert numbers[1] < NUM_PAIRS / 2
    for pair in pairs:
        assert len(set(pair.reference.names)) == len(pair.reference.names)
        assert len(set(pair.target.names)) == len(pair.target.names)
        matched = {pair.reference.names[row] for row, _ in pair.matches}
        assert matched == set(pair.reference.names) & set(pair.target.names)
        for row, column in pair.matches:
            assert pair.reference.names[row] == pair.target.names[column]


def test_the_target_of_a_pair_is_another_scene(pairs):
    for pair in pairs:
        assert set(pair.reference.stuff) != set(pair.target.stuff)
        assert len(pair.target.names) > len(pair.matches)  # there is always something else to be mistaken for it
        for row, column in pair.matches:
            before, after = pair.reference.masks[row], pair.target.masks[column]
            centres = [np.argwhere(mask).mean(0) / mask.shape for mask in (before, after)]
            assert np.linalg.norm(centres[0] - centres[1]) > MIN_SHIFT - 0.01
            lengths = sorted(longer_side(mask) for mask in (before, after))
            assert lengths[1] > lengths[0]


def test_a_scene_depends_on_its_generator_alone():
    first, again, other = (sample_scene(np.random.default_rng(seed), 64) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert first.image.shape != other.image.shape or (first.image != other.image).any()
