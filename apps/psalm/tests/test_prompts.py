"""Prompts: which type is taken, and the pen against a plain loop over pixels."""

import numpy as np
import pytest
from psalm.prompts import PEN_RADIUS, PROMPT_KEYS, dilate, read_prompt
from region_core.rle import encode_rle

HEIGHT, WIDTH = 40, 50
WHERE = "a.json record 1, annotation 0"


def at(*pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def annotation(**masks: np.ndarray) -> dict[str, object]:
    empty = np.zeros((HEIGHT, WIDTH), dtype=bool)
    return {key: encode_rle(masks.get(kind, empty)) for kind, key in PROMPT_KEYS.items()}


def by_pixels(mask: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel whose distance to some pixel of the mask is at most the radius."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    drawn = np.zeros_like(mask)
    for row, column in zip(*np.nonzero(mask), strict=True):
        drawn |= (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    return drawn


@pytest.mark.parametrize("radius", [0, 1, 5, 10])
@pytest.mark.parametrize(
    "mask",
    [
        at((20, 25)),
        at((0, 0), (39, 49)),  # the pen reaches over the edge
        np.eye(HEIGHT, WIDTH, dtype=bool),
        np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.01,
        at(),
    ],
)
def test_the_pen_is_a_disc_around_every_pixel(mask, radius):
    np.testing.assert_array_equal(dilate(mask, radius), by_pixels(mask, radius))
    np.testing.assert_array_equal(dilate(np.asfortranarray(mask), radius), by_pixels(mask, radius))


def test_points_and_scribbles_are_drawn_and_the_others_are_not():
    dot = at((20, 25))
    sizes = {
        kind: int(read_prompt(annotation(**{kind: dot}), [kind], height=HEIGHT, width=WIDTH, where=WHERE).sum())
        for kind in PROMPT_KEYS
    }
    # Points with whole coordinates in discs of radius 10 and 5: Gauss's circle problem, 317 and 81.
    assert sizes == {"point": 317, "scribble": 81, "box": 1, "mask": 1}
    assert PEN_RADIUS == {"point": 10, "scribble": 5}


def test_without_draws_the_first_type_that_is_not_empty_is_taken():
    own = annotation(box=at((1, 1)), mask=at((2, 2)))

    def taken(*types: str) -> np.ndarray:
        return read_prompt(own, types, height=HEIGHT, width=WIDTH, where=WHERE)

    assert taken("point", "box", "mask")[1, 1]
    assert taken("mask", "box")[2, 2]
    assert not taken("point", "scribble").any()
    assert not taken().any()


def test_draws_take_every_type_that_is_not_empty_and_no_other():
    own = annotation(box=at((1, 1)), mask=at((2, 2)), scribble=at((30, 30)))
    types = ("point", "box", "mask")
    found = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        prompt = read_prompt(own, types, height=HEIGHT, width=WIDTH, where=WHERE, rng=rng)
        found.add(tuple(np.argwhere(prompt)[0].tolist()))
    assert found == {(1, 1), (2, 2)}


def test_a_type_may_be_missing_or_null():
    own = {PROMPT_KEYS["point"]: None, PROMPT_KEYS["mask"]: encode_rle(at((2, 2)))}
    assert read_prompt(own, ("point", "box", "mask"), height=HEIGHT, width=WIDTH, where=WHERE)[2, 2]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"bbox": [0, 0, 1, 1]}, "annotation 0: expected one or more of point_visual_prompt_mask, .*, got bbox"),
        ({PROMPT_KEYS["point"]: [1, 2]}, r"key 'point_visual_prompt_mask': got \[1, 2\], expected an RLE"),
        ({PROMPT_KEYS["point"]: encode_rle(at().T)}, r"key 'point_visual_prompt_mask': the RLE's size is \[50, 40\]"),
    ],
)
def test_faulty_prompts_are_named(own, message):
    with pytest.raises(ValueError, match=message):
        read_prompt(own, ("point",), height=HEIGHT, width=WIDTH, where=WHERE)
