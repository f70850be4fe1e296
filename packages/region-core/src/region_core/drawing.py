"""Drawing for synthetic worlds: flat shapes with exact masks, and noisy backgrounds.

Images are uint8 (height, width, 3). Shapes are drawn in place without smoothing, so a shape's mask is exactly the set
of pixels that took its colour. Everything depends on the arguments alone; randomness comes from the generator given.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Real, UInt8

from .masks import Number, box_to_mask, polygons_to_mask

Colour = tuple[int, int, int]
Shape = Literal["rectangle", "ellipse", "triangle", "diamond", "cross"]

SHAPES: tuple[Shape, ...] = get_args(Shape)
"""All shapes that `draw_shape` knows."""

PALETTE: Mapping[str, Colour] = MappingProxyType(
    {
        "red": (214, 48, 49),
        "orange": (240, 147, 43),
        "yellow": (246, 217, 60),
        "green": (46, 160, 67),
        "cyan": (52, 205, 214),
        "blue": (41, 98, 204),
        "purple": (136, 60, 180),
        "pink": (240, 130, 190),
        "brown": (125, 82, 50),
        "white": (245, 245, 245),
        "grey": (128, 128, 128),
        "black": (20, 20, 20),
    }
)
"""Colours far enough apart to be told from each other under noise and JPEG."""


def draw_shape(
    image: UInt8[np.ndarray, "height width 3"],
    shape: Shape,
    box_pixels: Sequence[Number],
    colour: Colour,
) -> Bool[np.ndarray, "height width"]:
    """Draw a shape that fills a box, and return its mask; what overhangs the image is cut off.

    Args:
        image: Drawn on in place.
        shape: The triangle points up; the bars of the cross are a third of the box wide.
        box_pixels: (x0, y0, x1, y1) as edges.
        colour: Red, green, blue, 0 to 255.

    Raises:
        ValueError: The box is not finite, ordered and within reach of the image.
    """
    mask = _shape_mask(shape, box_pixels, image.shape[0], image.shape[1])
    image[mask] = colour
    return mask


def draw_polygon(
    image: UInt8[np.ndarray, "height width 3"],
    points_pixels: Sequence[Number] | Sequence[Sequence[Number]] | Real[np.ndarray, "..."],
    colour: Colour,
) -> Bool[np.ndarray, "height width"]:
    """Fill a polygon (corners x, y, flat or in pairs) by the even-odd rule, and return its mask.

    Raises:
        ValueError: There are fewer than three corners, or one is not finite or out of reach of the image.
    """
    mask = polygons_to_mask([points_pixels], height=image.shape[0], width=image.shape[1], units="pixels")
    image[mask] = colour
    return mask


def noise_background(
    rng: np.random.Generator, height: int, width: int, colour: Colour, strength: Number
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """An image of one colour under normal noise.

    Args:
        rng: Source of the noise.
        height: Height of the image.
        width: Width of the image.
        colour: Mean of the pixels, as far as the range 0 to 255 is not reached.
        strength: Standard deviation of each channel, in grey levels; 0 gives the flat colour.

    Raises:
        ValueError: The strength is negative.
    """
    if not strength >= 0:
        raise ValueError(f"strength is {strength!r}, expected 0 or more grey levels")
    noise = rng.standard_normal((height, width, 3), dtype=np.float32) * strength
    return (np.asarray(colour, dtype=np.float32) + noise).round().clip(0, 255).astype(np.uint8)


def _shape_mask(
    shape: Shape, box_pixels: Sequence[Number], height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    box_mask = box_to_mask(box_pixels, height=height, width=width, units="pixels")
    x0, y0, x1, y1 = box_pixels
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    if shape == "rectangle":
        return box_mask
    if shape == "ellipse":
        return _ellipse_mask((x0, y0, x1, y1), height, width)
    if shape == "cross":
        third_x, third_y = (x1 - x0) / 3, (y1 - y0) / 3
        upright = box_to_mask((x0 + third_x, y0, x1 - third_x, y1), height=height, width=width, units="pixels")
        level = box_to_mask((x0, y0 + third_y, x1, y1 - third_y), height=height, width=width, units="pixels")
        return upright | level
    corners = {
        "triangle": (middle_x, y0, x1, y1, x0, y1),
        "diamond": (middle_x, y0, x1, middle_y, middle_x, y1, x0, middle_y),
    }[shape]
    return polygons_to_mask([corners], height=height, width=width, units="pixels")


def _ellipse_mask(
    box_pixels: tuple[Number, Number, Number, Number], height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    x0, y0, x1, y1 = box_pixels
    if x1 <= x0 or y1 <= y0:
        return np.zeros((height, width), dtype=bool)
    x = (np.arange(width) + 0.5 - (x0 + x1) / 2) / ((x1 - x0) / 2)
    y = (np.arange(height) + 0.5 - (y0 + y1) / 2) / ((y1 - y0) / 2)
    return x**2 + y[:, None] ** 2 <= 1
