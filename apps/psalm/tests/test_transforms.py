"""From scenes to samples: geometry pixel by pixel, what may be drawn, what must not vanish."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from psalm.modes import BACKGROUND
from psalm.samples import Scene, SegmentationSample
from psalm.transforms import (
    IMAGE_PADDING,
    Geometry,
    SegmentationTransform,
    names_a_side,
    place_image,
    place_masks,
    plain_geometry,
)


def at(height: int, width: int, *pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def halves(height: int = 40, width: int = 60) -> np.ndarray:
    left = np.zeros((height, width), dtype=bool)
    left[:, : width // 2] = True
    return np.stack([left, ~left])


def class_scene(masks: np.ndarray | None = None) -> Scene:
    masks = halves() if masks is None else masks
    return Scene(
        record_id="a",
        mode="panoptic",
        image=np.random.default_rng(0).integers(0, 256, (*masks.shape[1:], 3), dtype=np.uint8),
        masks=masks,
        conditions=("cat", "dog", "road"),
        target_conditions=np.eye(len(masks), 3, dtype=bool),
        is_thing=(True, True, False),
    )


def sentence_scene(text: str, masks: np.ndarray | None = None) -> Scene:
    scene = class_scene(masks)
    belongs = np.ones((len(scene.masks), 1), dtype=bool)
    return replace(scene, mode="referring", conditions=(text,), target_conditions=belongs, is_thing=(True,))


def region_scene(masks: np.ndarray, prompts: np.ndarray, reference: np.ndarray | None = None) -> Scene:
    return replace(
        class_scene(masks),
        mode="region" if reference is None else "cross_image",
        conditions=("",) * len(prompts),
        target_conditions=np.eye(len(masks), len(prompts), dtype=bool),
        is_thing=(True,) * len(prompts),
        prompts=prompts,
        reference_image=reference,
    )


def is_flipped(sample: SegmentationSample) -> bool:
    """Whether the left half, which is the first target, lies on the right."""
    first, second = (mask.nonzero()[:, 1].float().mean() for mask in sample.masks)
    return bool(first > second)


def test_the_longer_side_is_the_squares_and_the_rest_is_padded():
    sample = SegmentationTransform(30)(class_scene())
    assert sample.content_size == (20, 30)
    assert sample.original_size == (40, 60)
    assert sample.image.shape == (3, 30, 30)
    assert (sample.image[:, 20:] == IMAGE_PADDING).all()
    assert not sample.masks[:, 20:].any()
    assert sample.masks[0, :20, :15].all()
    assert sample.masks[0].sum() == sample.masks[1].sum() == 300


@pytest.mark.parametrize(("size", "expected"), [((40, 60), (20, 30)), ((60, 40), (30, 20)), ((10, 1000), (1, 30))])
def test_plain_geometry(size, expected):
    assert plain_geometry(size, 30) == Geometry(*expected)


def test_masks_follow_the_image_through_every_geometry():
    # A white rectangle on black: where it lies in the image, there its mask must lie.
    image = np.zeros((50, 70, 3), dtype=np.uint8)
    mask = np.zeros((1, 50, 70), dtype=bool)
    image[10:30, 20:50], mask[0, 10:30, 20:50] = 255, True
    for geometry in (
        plain_geometry((50, 70), 64),
        Geometry(25, 35),
        Geometry(100, 140, 20, 31),
        Geometry(100, 140, 20, 31, flip=True),
        Geometry(37, 51, flip=True),
    ):
        pixels = place_image(image, geometry, 64).float().mean(0)
        placed = place_masks(mask, geometry, 64)[0]
        height, width = geometry.content_size(64)
        bright = torch.zeros(64, 64, dtype=torch.bool)
        bright[:height, :width] = pixels[:height, :width] > 127
        differ = (bright != placed).sum() / placed.sum()
        assert differ < 0.06, geometry  # the border pixels of a resize with another filter


def test_pixels_are_read_at_their_centres():
    # Twice the size: each pixel becomes exactly two; half the size: every second one is read.
    mask = at(2, 3, (0, 0), (1, 2))[None]
    doubled = place_masks(mask, Geometry(4, 6), 6)[0, :4].numpy()
    np.testing.assert_array_equal(doubled, np.kron(mask[0], np.ones((2, 2))) > 0)
    assert place_masks(mask, Geometry(4, 6, 1, 2, flip=True), 3)[0].tolist() == [
        [False, False, False],
        [True, False, False],
        [True, False, False],
    ]


@pytest.mark.parametrize("row", range(9))
def test_a_line_of_one_pixel_does_not_vanish_in_a_resize(row):
    masks = np.zeros((1, 90, 90), dtype=bool)
    masks[0, row] = True
    placed = place_masks(masks, Geometry(10, 10), 10)[0]
    assert placed[0].all()  # rows 0 to 8 of 90 all lie in row 0 of 10
    assert not placed[1:].any()


def test_a_mask_that_is_cropped_away_vanishes():
    masks = at(20, 20, (0, 0))[None]
    assert not place_masks(masks, Geometry(40, 40, 10, 10), 20).any()
    assert place_masks(np.zeros((0, 20, 20), dtype=bool), Geometry(10, 10), 10).shape == (0, 10, 10)


def test_classes_are_in_order_in_evaluation_and_shuffled_in_training():
    scene, transform = class_scene(), SegmentationTransform(30)
    held_out = transform(scene)
    assert held_out.conditions == ("cat", "dog", "road", BACKGROUND)
    assert held_out.target_conditions.tolist() == [[True, False, False], [False, True, False]]
    orders = set()
    for seed in range(20):
        sample = transform(scene, np.random.default_rng(seed))
        orders.add(sample.conditions)
        assert sample.conditions[-1] == BACKGROUND  # the loss takes the last one for "no object"
        names = [sample.conditions[int(row.int().argmax())] for row in sample.target_conditions]
        assert names == ["cat", "dog"]
        assert dict(zip(sample.conditions, sample.is_thing, strict=False)) == {"cat": True, "dog": True, "road": False}
        torch.testing.assert_close(sample.masks, held_out.masks)  # augment is off
    assert len(orders) == 6


def test_a_sample_is_a_function_of_the_generator():
    scene, transform = class_scene(), SegmentationTransform(32, augment=True)
    first, again, other = (transform(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert first.conditions == again.conditions
    assert not torch.equal(first.image, other.image)


def test_large_jitter_for_class_names_and_mild_for_the_others():
    transform = SegmentationTransform(60, augment=True)
    large = [transform(class_scene(), np.random.default_rng(seed)).content_size[1] for seed in range(60)]
    mild = [transform(sentence_scene("a"), np.random.default_rng(seed)).content_size[1] for seed in range(60)]
    assert min(large) < 20
    assert max(large) == 60
    assert 48 <= min(mild) < 55


def test_what_large_jitter_crops_away_is_counted():
    scene = class_scene(np.stack([at(40, 40, (0, 0)), at(40, 40, (39, 39))]))
    samples = [SegmentationTransform(40, augment=True)(scene, np.random.default_rng(seed)) for seed in range(30)]
    for sample in samples:
        assert len(sample.masks) + dict(sample.dropped).get("vanished target", 0) == 2
        assert len(sample.target_conditions) == len(sample.masks)
    assert any(len(sample.masks) < 2 for sample in samples)


def test_mild_jitter_never_crops_a_target_or_a_prompt_away():
    corners = np.stack([at(40, 40, (0, 0)), at(40, 40, (39, 39))])
    inner = np.stack([at(40, 40, (20, 20)), at(40, 40, (21, 21))])
    transform = SegmentationTransform(40, augment=True)
    reference = np.zeros((40, 40, 3), dtype=np.uint8)
    for scene in (
        sentence_scene("a", corners),
        region_scene(corners, inner),
        region_scene(inner, corners),
        region_scene(inner, corners, reference),
    ):
        for seed in range(20):
            sample = transform(scene, np.random.default_rng(seed))
            assert len(sample.masks) == 2
            assert sample.prompts is None or sample.prompts.flatten(1).any(1).all()
            assert sample.dropped == ()


@pytest.mark.parametrize(
    ("text", "says_so"),
    [
        ("the cat on the left", True),
        ("Leftmost dog", True),
        ("right-hand side", True),
        ("the right-most one", True),
        ("2nd from rightmost", True),
        ("guy on r", True),
        ("lt dude", True),
        ("a bright light", False),
        ("the upright piano", False),
        ("cleft stone", False),
        ("largest bear", False),
    ],
)
def test_a_sentence_that_names_a_side_is_never_mirrored(text, says_so):
    assert names_a_side(text) == says_so
    transform = SegmentationTransform(60, augment=True)
    flips = {is_flipped(transform(sentence_scene(text), np.random.default_rng(seed))) for seed in range(30)}
    assert flips == ({False} if says_so else {False, True})


def test_the_two_images_of_a_pair_are_augmented_independently():
    reference = np.zeros((30, 50, 3), dtype=np.uint8)
    scene = region_scene(halves(), halves(30, 50), reference)
    transform = SegmentationTransform(60, augment=True)
    held_out = transform(scene)
    assert held_out.reference_size == (36, 60)
    assert held_out.reference_image.shape == (3, 60, 60)
    assert held_out.prompts[0, :36, :30].all()
    flips = set()
    for seed in range(30):
        sample = transform(scene, np.random.default_rng(seed))
        flips.add((is_flipped(sample), is_flipped(replace(sample, masks=sample.prompts))))
    assert len(flips) == 4


def test_regions_of_one_image_move_with_it():
    scene = region_scene(halves(), halves())
    for seed in range(10):
        sample = SegmentationTransform(60, augment=True)(scene, np.random.default_rng(seed))
        assert torch.equal(sample.masks, sample.prompts)
        assert sample.reference_image is None
        assert sample.reference_size is None


def test_an_image_without_objects_is_a_sample():
    scene = replace(class_scene(np.zeros((0, 20, 30), dtype=bool)), target_conditions=np.zeros((0, 3), dtype=bool))
    sample = SegmentationTransform(32, augment=True)(scene, np.random.default_rng(0))
    assert sample.masks.shape == (0, 32, 32)
    assert sample.target_conditions.shape == (0, 3)
    assert len(sample.conditions) == 4


def test_a_square_needs_a_pixel():
    with pytest.raises(ValueError, match="image_size is 0"):
        SegmentationTransform(0)
