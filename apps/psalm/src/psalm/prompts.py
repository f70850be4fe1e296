"""Prompts of the interactive format: four masks per object, of which one shows the model what is meant.

Points are dots and scribbles are lines of single pixels on disk; they are drawn with a round pen at the image's own
resolution, as PSALM does, so that they survive the resize. A prompt that is missing or empty is legal: another type
takes its place, and a region that has none keeps a mask without pixels, about which `transforms.py` decides.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool
from scipy.ndimage import distance_transform_edt

from psalm.annotations import Record, decode_mask
from psalm.config import PromptType

PROMPT_KEYS: Mapping[PromptType, str] = MappingProxyType(
    {
        "point": "point_visual_prompt_mask",
        "scribble": "scribble_visual_prompt_mask",
        "box": "box_visual_prompt_mask",
        "mask": "mask_visual_prompt_mask",
    }
)
Pens = Mapping[str, int]
"""Radius of the round pen for prompts that are drawn with one, in pixels of the original image."""

PEN_RADIUS: Pens = MappingProxyType({"point": 10, "scribble": 5})
"""As PSALM draws them."""


def dilate(mask: Bool[np.ndarray, "height width"], radius: int) -> Bool[np.ndarray, "height width"]:
    """Every pixel whose centre is within `radius` pixels of the centre of a pixel of the mask.

    A single pixel becomes a disc, more of them one distance transform, and only where the pen can reach.
    """
    drawn = np.zeros(mask.shape, dtype=bool)
    # argmax and any stop where they find one, which counting does not; decoded RLEs run down the columns, across which
    # they would be slow.
    runs_down = not mask.flags.c_contiguous
    lines = mask.T if runs_down else mask
    pixels = lines.reshape(-1)
    first = int(pixels.argmax()) if pixels.size else 0
    if not pixels[first : first + 1].any():
        return drawn
    if not pixels[first + 1 :].any():
        place = divmod(first, lines.shape[1])
        row, column = place[::-1] if runs_down else place
        reach = drawn[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1]
        disc = _disc(radius)[max(radius - row, 0) :, max(radius - column, 0) :]
        reach[:] = disc[: reach.shape[0], : reach.shape[1]]
        return drawn
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    near = tuple(slice(max(int(places[0]) - radius, 0), int(places[-1]) + radius + 1) for places in (rows, columns))
    drawn[near] = distance_transform_edt(~mask[near]) <= radius
    return drawn


@cache
def _disc(radius: int) -> Bool[np.ndarray, "{2*radius+1} {2*radius+1}"]:
    squares = np.arange(-radius, radius + 1) ** 2
    return squares[:, None] + squares <= radius**2


def bound_regions(kinds: Iterable[str]) -> bool:
    """Whether prompts of these kinds say how far their regions reach; those drawn with a pen lie somewhere in one."""
    return PEN_RADIUS.keys().isdisjoint(kinds)


def read_prompt(
    annotation: Record,
    types: Sequence[PromptType],
    *,
    height: int,
    width: int,
    where: str,
    rng: np.random.Generator | None = None,
    fractions: Sequence[int] = (1,),
    pens: Pens = PEN_RADIUS,
) -> Bool[np.ndarray, "{height} {width}"]:
    """The prompt of one annotation.

    Args:
        annotation: With one or more of the four fields `*_visual_prompt_mask` (RLE, or null).
        types: Prompts to choose from.
        height: Height of the image.
        width: Width of the image.
        where: Names the annotation in errors.
        rng: Draws one of the types that are not empty; without it the first of `types` that is not empty is taken.
        fractions: See `annotations.decode_mask`.
        pens: With which points and scribbles are drawn.

    Returns:
        The prompt's mask; all False where every type is missing or empty.

    Raises:
        ValueError: The annotation has none of the four fields, or a field is no RLE of the image's size.
    """
    if not has_prompts(annotation):
        raise ValueError(
            f"{where}: expected one or more of {', '.join(PROMPT_KEYS.values())}, got {', '.join(annotation)}"
        )
    order = range(len(types)) if rng is None else rng.permutation(len(types)).tolist()
    for kind in (types[place] for place in order):
        key = PROMPT_KEYS[kind]
        rle = annotation.get(key)
        if rle is None:
            continue
        if not isinstance(rle, dict):
            raise ValueError(f"{where}, key {key!r}: got {rle!r:.80}, expected an RLE")
        mask = decode_mask(rle, height=height, width=width, where=f"{where}, key {key!r}", fractions=fractions)
        if mask.any():
            return dilate(mask, pens[kind]) if kind in pens else mask
    return np.zeros((height, width), dtype=bool)


def with_pen(record: Record, pens: Pens, *, height: int, width: int) -> Record:
    """A region's record in which a point or scribble has the pen's size, if it has none of its own.

    Args:
        record: As `region_core.parse_region` reads it.
        pens: Radius by type.
        height: Height of the image.
        width: Width of the image.
    """
    # A length that is not in pixels is a share of the shorter side.
    unit = 1.0 if record.get("units") == "pixels" else 1 / min(height, width)
    if "point" in record and "radius" not in record:
        return {**record, "radius": pens["point"] * unit}
    if "scribble" in record and "width" not in record:
        return {**record, "width": 2 * pens["scribble"] * unit}
    return record


def has_prompts(annotation: Record) -> bool:
    """Whether an annotation has any of the four fields."""
    return any(key in annotation for key in PROMPT_KEYS.values())
