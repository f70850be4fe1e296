"""Masks from boxes, polygons, points and scribbles, and masks on a token grid.

Rasterisers are numpy and work in data workers. A pixel belongs to a shape when its centre does: pixel (row r, column c)
has its centre at (c + 0.5, r + 0.5), borders are half open (left and top belong to the shape), so shapes that share a
border never share a pixel. Coordinates are normalised to [0, 1] by default, in pixels with `units="pixels"`. What has
an area and lies in the image never rasterises to nothing: if it misses all pixel centres it gets the pixel it lies in.
"""

import math
import reprlib
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Real
from torch import Tensor

Number = int | float

CoordinateUnits = Literal["normalised", "pixels"]

MAX_OVERHANG = 1.0
"""How far outside the image a coordinate may lie, in widths (heights) of the image.

What overhangs is cut off, what lies further out is taken for an error; it bounds the work a bad record can ask for."""

_PIXELS_IN_CACHE = 2**20

Mask = Bool[np.ndarray, "height width"]
Points = Float64[np.ndarray, "points 2"]


def box_to_mask(
    box: Sequence[Number] | Real[np.ndarray, "4"], *, height: int, width: int, units: CoordinateUnits = "normalised"
) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of a box (x0, y0, x1, y1); a box without area gives an empty mask.

    Raises:
        ValueError: The box is not four finite, ordered numbers within reach of the image.
    """
    corners = _points_in_pixels(box, height, width, units, "box")
    if len(corners) != 2 or (corners[1] < corners[0]).any():
        raise ValueError(f"a box is (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1, got {reprlib.repr(box)}")
    (left, top), (right, bottom) = np.ceil(corners - 0.5).clip(0, (width, height)).astype(int).tolist()
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    if (right <= left or bottom <= top) and (corners[1] > corners[0]).all():
        _mark_thin_box(mask, corners)
    return mask


def polygons_to_mask(
    polygons: Sequence[Sequence[Number] | Sequence[Sequence[Number]] | Real[np.ndarray, "..."]],
    *,
    height: int,
    width: int,
    units: CoordinateUnits = "normalised",
) -> Bool[np.ndarray, "{height} {width}"]:
    """Union of polygons, each filled by the even-odd rule.

    Args:
        polygons: Each as flat x0, y0, x1, y1, ... (COCO's segmentation) or as pairs; closed by itself.
        height: Height of the mask.
        width: Width of the mask.
        units: What the coordinates are in.

    Raises:
        ValueError: A polygon has fewer than three points, or one that is not finite or out of reach of the image.
    """
    mask = np.zeros((height, width), dtype=bool)
    for index, polygon in enumerate(polygons):
        vertices = _points_in_pixels(polygon, height, width, units, f"polygon {index}")
        if len(vertices) < 3:
            raise ValueError(f"polygon {index} has {len(vertices)} points, a polygon needs three or more")
        _fill_polygon(mask, vertices)
    return mask


def point_to_mask(
    points: Sequence[Number] | Sequence[Sequence[Number]] | Real[np.ndarray, "..."],
    radius: Number,
    *,
    height: int,
    width: int,
    units: CoordinateUnits = "normalised",
) -> Bool[np.ndarray, "{height} {width}"]:
    """Union of discs around one or more points (x, y); without points an empty mask.

    Args:
        points: One pair or several.
        radius: Of the disc; normalised by the shorter side of the image, so that the disc stays round. With 0 each
            point marks its own pixel.
        height: Height of the mask.
        width: Width of the mask.
        units: What coordinates and radius are in.

    Raises:
        ValueError: A point or the radius is not finite or out of reach of the image.
    """
    centres = _points_in_pixels(points, height, width, units, "point")
    radius_pixels = _length_in_pixels(radius, height, width, units, "radius")
    return _stamp_segments(centres, centres, radius_pixels, height, width)


def scribble_to_mask(
    points: Sequence[Number] | Sequence[Sequence[Number]] | Real[np.ndarray, "..."],
    stroke_width: Number,
    *,
    height: int,
    width: int,
    units: CoordinateUnits = "normalised",
) -> Bool[np.ndarray, "{height} {width}"]:
    """Stroke of a round pen along a line of points (x, y); one point gives a disc.

    Args:
        points: Corners of the line, in order.
        stroke_width: Of the pen, edge to edge; normalised by the shorter side of the image.
        height: Height of the mask.
        width: Width of the mask.
        units: What coordinates and stroke width are in.

    Raises:
        ValueError: A point or the stroke width is not finite or out of reach of the image.
    """
    corners = _points_in_pixels(points, height, width, units, "scribble")
    radius_pixels = _length_in_pixels(stroke_width, height, width, units, "stroke_width") / 2
    starts = corners if len(corners) < 2 else corners[:-1]
    ends = corners if len(corners) < 2 else corners[1:]
    return _stamp_segments(starts, ends, radius_pixels, height, width)


def masks_to_grid(
    masks: Real[Tensor, "regions mask_height mask_width"] | Bool[Tensor, "regions mask_height mask_width"],
    height: int,
    width: int,
) -> Float[Tensor, "regions {height} {width}"]:
    """Share of each grid cell that a mask covers, by exact area.

    Every cell is the mean of the mask over the rectangle the cell covers, fractions of pixels included, so any two
    sizes go together, the mean of a mask is kept and no pixel is lost, however small the grid: a bilinear resize of
    384 to 27 reads 2 % of the pixels and misses small regions. On a finer grid each pixel spreads evenly.

    Args:
        masks: Bool, or integers (0 is outside, more is inside), or soft masks in [0, 1].
        height: Rows of the grid.
        width: Columns of the grid.

    Returns:
        Soft masks in [0, 1]; float32 (float64 for float64 masks), whatever autocast says.

    Raises:
        ValueError: A size is zero.
    """
    if height < 1 or width < 1 or 0 in masks.shape[1:]:
        raise ValueError(f"got masks of shape {tuple(masks.shape)} and a grid of {height} x {width}, no size may be 0")
    if masks.stride(1) < masks.stride(2):  # decoded RLEs run down the columns: work on them as they lie in memory
        return masks_to_grid(masks.mT, width, height).mT.contiguous()
    dtype = torch.float64 if masks.dtype == torch.float64 else torch.float32
    if masks.dtype == torch.bool:
        masks = masks.view(torch.uint8)  # the same bytes, and torch turns bytes into floats twice as fast
    elif not masks.is_floating_point():
        masks = masks.clamp(0, 1)
    # On a CPU the float copy of a few masks stays in the cache, which saves a third of the time.
    masks_at_once = _PIXELS_IN_CACHE // (masks.shape[1] * masks.shape[2]) if masks.is_cpu else len(masks)
    with torch.autocast(masks.device.type, enabled=False):
        # The weights repeat themselves block by block, so one block of them serves all: for 384 pixels on 108 cells
        # twelve blocks of 32 x 9 weights, a twelfth of the products with the whole matrix.
        blocks_down, blocks_across = math.gcd(masks.shape[1], height), math.gcd(masks.shape[2], width)
        down = _overlap_weights(masks.shape[1] // blocks_down, height // blocks_down, dtype, masks.device)
        across = _overlap_weights(masks.shape[2] // blocks_across, width // blocks_across, dtype, masks.device)
        placed = []
        for some in masks.split(max(masks_at_once, 1)):
            rows = (down @ some.to(dtype).unflatten(1, (blocks_down, -1))).flatten(1, 2)
            placed.append((rows.unflatten(2, (blocks_across, -1)) @ across.T).flatten(2))
        return torch.cat(placed)


def _overlap_weights(
    size: int, num_cells: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "{num_cells} {size}"]:
    """Share of each cell's length that each pixel fills; every row adds up to one."""
    return torch.tensor(_overlap_shares(size, num_cells), device=device, dtype=dtype)


@cache
def _overlap_shares(size: int, num_cells: int) -> Float[np.ndarray, "{num_cells} {size}"]:
    edges = np.arange(num_cells + 1) * (size / num_cells)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return overlap.clip(0) * (num_cells / size)


def _points_in_pixels(
    points: Sequence[Number] | Sequence[Sequence[Number]] | Real[np.ndarray, "..."],
    height: int,
    width: int,
    units: CoordinateUnits,
    name: str,
) -> Points:
    """Read flat or paired coordinates, check that they are finite and within reach, and scale them to pixels."""
    if height < 1 or width < 1:
        raise ValueError(f"a mask needs height, width >= 1, got {height} x {width}")
    try:
        numbers = np.asarray(points)
    except ValueError:
        numbers = np.empty(0, dtype=object)
    flat = numbers.reshape(-1)
    paired = (numbers.ndim == 1 and len(flat) % 2 == 0) or (numbers.ndim == 2 and numbers.shape[-1] == 2)
    if not paired or flat.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be numbers x, y, x, y, ... or pairs of them, got {reprlib.repr(points)}")
    size = np.array([width, height], dtype=np.float64)
    unit = np.ones(2) if units == "normalised" else size
    pairs = flat.astype(np.float64).reshape(-1, 2)
    # A comparison with NaN is false, so this catches NaN and infinity too.
    reachable = ((pairs >= -MAX_OVERHANG * unit) & (pairs <= (1 + MAX_OVERHANG) * unit)).all(axis=1)
    if not reachable.all():
        row = int(np.argmin(reachable))
        value = flat.reshape(-1, 2)[row].tolist()
        looks_like_pixels = units == "normalised" and np.isfinite(pairs).all()
        hint = "; these look like pixels: say units='pixels'" if looks_like_pixels else ""
        raise ValueError(
            f"{name}: point {row} is {value} in {units} coordinates, not a finite point within reach of the image "
            f"of {width} x {height} (width x height){hint}"
        )
    return pairs * (size / unit)


def _length_in_pixels(length: Number, height: int, width: int, units: CoordinateUnits, name: str) -> float:
    side = min(height, width) if units == "normalised" else 1
    longest = (height + width) / side
    if not 0 <= length <= longest:
        raise ValueError(f"{name} is {length!r} in {units} units, expected 0 to {longest:g} in this image")
    return float(length * side)


def _mark_thin_box(mask: Mask, corners: Points) -> None:
    """Mark the pixels that a box between pixel centres lies in: one row or column, or a single pixel."""
    height, width = mask.shape
    low, high = corners.clip(0, (width, height))
    if (high <= low).any():
        return  # the box lies outside the image
    # An axis that holds pixel centres keeps exactly those; an axis that holds none gets the pixel of its middle.
    first, last = np.ceil(low - 0.5), np.ceil(high - 0.5)
    middle = np.minimum(np.floor((low + high) / 2), (width - 1, height - 1))
    first, last = np.where(last > first, (first, last), (middle, middle + 1)).astype(int)
    mask[first[1] : last[1], first[0] : last[0]] = True


def _fill_polygon(mask: Mask, vertices: Points) -> None:
    """Even-odd scan-line fill: each edge flips every pixel to its right in the rows whose centre line it crosses."""
    height, width = mask.shape
    start, end = vertices, np.roll(vertices, -1, axis=0)
    start, end = np.where((start[:, 1] <= end[:, 1])[:, None], (start, end), (end, start))
    first = np.ceil(start[:, 1] - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(end[:, 1] - 0.5).clip(0, height).astype(np.int64)
    num_rows = last - first
    if num_rows.any():
        edge = np.repeat(np.arange(len(vertices)), num_rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(num_rows) - num_rows - first, num_rows)
        rise = end[:, 1] - start[:, 1]
        slope = np.divide(end[:, 0] - start[:, 0], rise, out=np.zeros_like(rise), where=rise > 0)
        crossing = start[edge, 0] + (row + 0.5 - start[edge, 1]) * slope[edge]
        column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
        top, left, bottom, right = int(row.min()), int(column.min()), int(row.max()) + 1, int(column.max())
        shape = (bottom - top, right - left + 1)  # to the right of the last crossing every pixel is outside
        flips = np.bincount((row - top) * shape[1] + column - left, minlength=shape[0] * shape[1]).astype(np.uint8)
        filled = (np.add.accumulate(flips.reshape(shape), axis=1, dtype=np.uint8) & 1).view(bool)[:, :-1]
        if filled.any():
            mask[top:bottom, left:right] |= filled
            return
    x, y = vertices.T
    double_area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
    if double_area > 1e-9:  # passes between all pixel centres; less is a line, after rounding
        _mark_own_pixels(mask, vertices)


def _mark_own_pixels(mask: Mask, points: Points) -> None:
    """Mark the pixels that points of the image lie in, its right and bottom edge included."""
    height, width = mask.shape
    x, y = points.T
    inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    column = np.minimum(x[inside].astype(int), width - 1)
    row = np.minimum(y[inside].astype(int), height - 1)
    mask[row, column] = True


def _stamp_segments(
    starts: Points, ends: Points, radius: float, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """Mark every pixel whose centre is within `radius` of a segment, and the pixels its ends lie in."""
    mask = np.zeros((height, width), dtype=bool)
    for start, end in zip(starts, ends, strict=True):
        low = np.floor(np.minimum(start, end) - radius).clip(0, (width, height)).astype(int)
        high = np.ceil(np.maximum(start, end) + radius).clip(0, (width, height)).astype(int)
        x = np.arange(low[0], high[0]) + 0.5 - start[0]
        y = (np.arange(low[1], high[1]) + 0.5 - start[1])[:, None]
        run, rise = end - start
        length_squared = run * run + rise * rise
        along = 0.0 if length_squared == 0 else ((x * run + y * rise) / length_squared).clip(0, 1)
        near = (x - along * run) ** 2 + (y - along * rise) ** 2 <= radius * radius
        mask[low[1] : high[1], low[0] : high[0]] |= near
    _mark_own_pixels(mask, np.concatenate([starts, ends]))
    return mask
