"""Boxes as files hold them: four numbers in one of four forms, checked and brought to normalised (x0, y0, x1, y1).

RoIAlign answers boxes in pixels with zeros and inverted boxes with plausible features, so both are errors here, before
they can train anything.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64

BoxFormat = Literal["xyxy_norm", "xyxy_pixel", "xywh_pixel", "cxcywh_norm"]
"""Corners, corners in pixels, COCO's corner and size in pixels, YOLO's centre and size."""

TOLERANCE = 1e-3
"""How far outside [0, 1] a box may reach: a rounding error of annotation tools, which is cut off."""


def check_format(box_format: object, where: str) -> BoxFormat:
    """Return the format if it is one; otherwise a ValueError that lists them."""
    for known in get_args(BoxFormat):
        if box_format == known:
            return known
    raise ValueError(f"{where}: a box format is one of {', '.join(get_args(BoxFormat))}, got {box_format!r}")


def is_pixel_format(box_format: BoxFormat) -> bool:
    """Whether boxes of this format need the size of their image."""
    return box_format.endswith("_pixel")


def read_numbers(value: object, where: str) -> Float64[np.ndarray, "regions 4"]:
    """Rows of four numbers from JSON, where a single box may stand without the outer list.

    Raises:
        ValueError: Something is no list of four numbers.
    """
    if not isinstance(value, list):
        raise ValueError(f"{where}: expected a list of boxes, got {value!r}")
    rows = [value] if value and not isinstance(value[0], list) else value
    for index, row in enumerate(rows):
        is_numbers = isinstance(row, list) and all(type(number) in (int, float) for number in row)
        if not is_numbers or len(row) != 4:
            raise ValueError(f"{where}: box {index} is not four numbers, got {row!r}")
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def to_xyxy(numbers: Float64[np.ndarray, "regions 4"], box_format: BoxFormat) -> Float64[np.ndarray, "regions 4"]:
    """Corners of boxes in any format, in the same unit."""
    first, second = numbers[:, :2], numbers[:, 2:]
    if box_format == "xywh_pixel":
        return np.concatenate([first, first + second], axis=1)
    if box_format == "cxcywh_norm":
        return np.concatenate([first - second / 2, first + second / 2], axis=1)
    return numbers


def normalise(
    corners_pixels: Float64[np.ndarray, "regions 4"], size: tuple[int, int]
) -> Float64[np.ndarray, "regions 4"]:
    """Divide corners in pixels by the image's (width, height)."""
    return corners_pixels / [*size, *size]


def find_problems(corners: Float64[np.ndarray, "regions 4"], *, where: str, has_unit_range: bool = True) -> list[str]:
    """Say what is wrong with boxes, one text per bad box.

    Args:
        corners: (x0, y0, x1, y1).
        where: Place of the boxes (file, key), which opens every text.
        has_unit_range: They should lie in [0, 1] (up to `TOLERANCE`); False for pixels of an image of unknown size.
    """
    problems = []
    for index, corner in enumerate(corners):
        problem = _problem(corner, has_unit_range=has_unit_range)
        if problem:
            problems.append(f"{where}: box {index} is {corner.tolist()} as corners, {problem}")
    return problems


def _problem(corner: Float64[np.ndarray, "4"], *, has_unit_range: bool) -> str:
    if not np.isfinite(corner).all():
        return "which is not finite"
    if has_unit_range and corner.max() > 2:
        return "far outside [0, 1]: pixels? then say so with box_format"
    if (corner[:2] >= corner[2:]).any():
        return "expected x0 < x1 and y0 < y1: inverted, empty, or width and height? then say so with box_format"
    if corner.min() < -TOLERANCE or (has_unit_range and corner.max() > 1 + TOLERANCE):
        return "which reaches outside the image"
    return ""
