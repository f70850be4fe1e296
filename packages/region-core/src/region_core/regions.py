"""Regions of an image: one prompt in any of its forms, and the ragged batch of many.

A user gives a region as a box, mask, polygons, RLE, points or a scribble; `Region` holds exactly one of them and
`region_to_mask` makes a mask of any. A model works on all regions of a batch at once: `RegionBatch` packs the rows of
all images behind each other and keeps one count per image, so that images without regions cost nothing.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from .boxes import check_boxes
from .masks import CoordinateUnits, Number, box_to_mask, point_to_mask, polygons_to_mask, scribble_to_mask
from .rle import check_rle, decode_rle

DEFAULT_RADIUS = 0.02
"""Of the disc around a point and half the width of a scribble when none is given, by the image's shorter side."""

Point = tuple[Number, Number]

_FORMS = ("box", "mask", "polygons", "rle", "points", "scribble")
_RECORD_FORMS = ("box", "rle", "polygon", "polygons", "point", "scribble")
_RECORD_OPTIONS = {"label": None, "units": None, "radius": "point", "width": "scribble"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Region:
    """One region of an image, in exactly one of six forms.

    Coordinates are x, y from the top-left corner, normalised to [0, 1] or in pixels of the image as `units` says; an
    RLE and a mask have the image's size.

    Args:
        box: (x0, y0, x1, y1).
        mask: True inside.
        polygons: Each flat x0, y0, x1, y1, ...; the region is their union, each filled by the even-odd rule.
        rle: COCO run-length encoding: `size` [height, width] and `counts`.
        points: The region is a disc around each.
        scribble: Corners of a line drawn with a round pen.
        label: Name of what the region shows.
        units: What coordinates, radius and stroke width are in; normalised lengths are shares of the shorter side.
        radius: Of the discs around points.
        stroke_width: Of the scribble.
        where: Place of the region (file, record, key), for error messages.

    Raises:
        ValueError: Not exactly one form is given.
    """

    box: tuple[Number, Number, Number, Number] | None = None
    mask: Bool[np.ndarray, "height width"] | None = None
    polygons: tuple[tuple[Number, ...], ...] | None = None
    rle: Mapping[str, object] | None = None
    points: tuple[Point, ...] | None = None
    scribble: tuple[Point, ...] | None = None
    label: str | None = None
    units: CoordinateUnits = "normalised"
    radius: Number | None = None
    stroke_width: Number | None = None
    where: str = "region"

    def __post_init__(self) -> None:
        """Check that exactly one form is given."""
        values = (self.box, self.mask, self.polygons, self.rle, self.points, self.scribble)
        given = [form for form, value in zip(_FORMS, values, strict=True) if value is not None]
        if len(given) != 1:
            raise ValueError(f"{self.where}: a region has exactly one of {list(_FORMS)}, got {given}")


def parse_region(record: Mapping[str, object], *, where: str) -> Region:
    """Read a region from a record, as JSON holds it.

    The record has one of `box` [x0, y0, x1, y1], `rle` {size, counts}, `polygon` (flat or pairs), `polygons` (a list of
    them), `point` ([x, y] or several) and `scribble` (flat or pairs); optionally `label`, `units` ("normalised" or
    "pixels"), `radius` with a point and `width` with a scribble.

    Args:
        record: The region as read.
        where: Place of the record (file, record, key), for error messages.

    Raises:
        ValueError: A key is unknown, missing or superfluous, or a value has a wrong type or range.
    """
    known = [*_RECORD_FORMS, *_RECORD_OPTIONS]
    unknown = [key for key in record if key not in known]
    forms = [key for key in record if key in _RECORD_FORMS]
    if unknown or len(forms) != 1:
        raise ValueError(
            f"{where}: a region has exactly one of {list(_RECORD_FORMS)} and may have {list(_RECORD_OPTIONS)}, "
            f"got the keys {list(record)}"
        )
    form = forms[0]
    for option, owner in _RECORD_OPTIONS.items():
        if option in record and owner not in (None, form):
            raise ValueError(f"{where}: {option!r} belongs to a {owner}, got it with a {form}")
    label, units = record.get("label"), record.get("units", "normalised")
    if not (label is None or isinstance(label, str)):
        raise ValueError(f"{where}: 'label' is text, got {label!r}")
    if units not in ("normalised", "pixels"):
        raise ValueError(f"{where}: 'units' is 'normalised' or 'pixels', got {units!r}")
    radius, stroke_width = (
        _length(record[key], f"{where}: {key}") if key in record else None for key in ("radius", "width")
    )
    return replace(
        _parse_shape(form, record[form], is_normalised=units == "normalised", where=f"{where}: {form}"),
        label=label,
        units="pixels" if units == "pixels" else "normalised",
        radius=radius,
        stroke_width=stroke_width,
        where=where,
    )


def region_to_mask(region: Region, *, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of a region, whatever its form, in the size of its image.

    Raises:
        ValueError: The region does not fit the image; names where the region came from.
    """
    try:
        return _rasterise(region, height, width)
    except ValueError as error:
        raise ValueError(f"{region.where}: {error}") from error


def _rasterise(region: Region, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    default_radius = DEFAULT_RADIUS * (min(height, width) if region.units == "pixels" else 1)
    if region.box is not None:
        return box_to_mask(region.box, height=height, width=width, units=region.units)
    if region.polygons is not None:
        return polygons_to_mask(region.polygons, height=height, width=width, units=region.units)
    if region.rle is not None:
        return decode_rle(region.rle, height=height, width=width, where="rle")
    if region.points is not None:
        radius = default_radius if region.radius is None else region.radius
        return point_to_mask(region.points, radius, height=height, width=width, units=region.units)
    if region.scribble is not None:
        stroke_width = 2 * default_radius if region.stroke_width is None else region.stroke_width
        return scribble_to_mask(region.scribble, stroke_width, height=height, width=width, units=region.units)
    assert region.mask is not None
    if region.mask.shape != (height, width):
        raise ValueError(f"the mask is {region.mask.shape} (height, width), expected the image's {(height, width)}")
    return region.mask


def _parse_shape(form: str, value: object, *, is_normalised: bool, where: str) -> Region:
    """The region alone, without its options."""
    if form == "rle":
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is an object with 'size' and 'counts', got {reprlib.repr(value)}")
        rle = {str(key): entry for key, entry in value.items()}
        check_rle(rle, where=where)
        return Region(rle=rle)
    if form == "polygons":
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"{where} is a list of polygons, got {reprlib.repr(value)}")
        rings = [_pairs(ring, f"{where}[{index}]", minimum=3) for index, ring in enumerate(value)]
        return Region(polygons=tuple(tuple(chain.from_iterable(ring)) for ring in rings))
    if form == "polygon":
        return Region(polygons=(tuple(chain.from_iterable(_pairs(value, where, minimum=3))),))
    if form == "point":
        return Region(points=_pairs(value, where, minimum=1))
    if form == "scribble":
        return Region(scribble=_pairs(value, where, minimum=1))
    corners = _pairs(value, where, minimum=2)
    if len(corners) != 2:
        raise ValueError(f"{where} is [x0, y0, x1, y1], got {reprlib.repr(value)}")
    (x0, y0), (x1, y1) = corners
    if is_normalised:
        check_boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64), where)
    return Region(box=(x0, y0, x1, y1))


def _pairs(value: object, where: str, *, minimum: int) -> tuple[Point, ...]:
    """Points from flat numbers x, y, x, y, ... or from pairs."""
    entries = list(value) if isinstance(value, list | tuple) else []
    if entries and all(isinstance(entry, list | tuple) and len(entry) == 2 for entry in entries):
        entries = list(chain.from_iterable(entries))
    numbers = [entry for entry in entries if isinstance(entry, int | float) and not isinstance(entry, bool)]
    if len(numbers) != len(entries) or len(numbers) % 2 or len(numbers) < 2 * minimum:
        raise ValueError(
            f"{where} is numbers x, y, x, y, ... or pairs of them, {minimum} points or more, got {reprlib.repr(value)}"
        )
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where} holds a number that is not finite: {reprlib.repr(value)}")
    return tuple((float(x), float(y)) for x, y in zip(numbers[0::2], numbers[1::2], strict=True))


def _length(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{where} is a number, 0 or more, got {value!r}")
    return float(value)


@dataclass(frozen=True, eq=False)
class RegionBatch:
    """Rows of all regions of a batch, packed, with the number of regions per image.

    Images without regions and batches without images are legal. Every conversion is differentiable in the rows and has
    no loop over regions.

    Args:
        rows: One row per region, images in order: features, boxes, masks or anything else.
        counts: Regions per image; they add up to the number of rows.
    """

    rows: Shaped[Tensor, "regions ..."]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that rows and counts agree."""
        if self.rows.ndim == 0:
            raise ValueError("rows of a RegionBatch need a first dimension of regions, got a 0-d tensor")
        if any(count < 0 for count in self.counts) or sum(self.counts) != self.rows.shape[0]:
            raise ValueError(
                f"counts {list(self.counts)} must be >= 0 and add up to the {self.rows.shape[0]} rows, "
                f"they add up to {sum(self.counts)}"
            )

    @property
    def batch_size(self) -> int:
        """Images in the batch, with or without regions."""
        return len(self.counts)

    @property
    def num_regions(self) -> int:
        """Regions of all images together."""
        return self.rows.shape[0]

    @classmethod
    def from_list(
        cls,
        items: Sequence[Shaped[Tensor, "_ ..."] | None],
        *,
        row_shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "RegionBatch":
        """Pack one tensor of rows per image; None stands for an image without regions.

        Args:
            items: Per image a tensor whose rows are regions, or None.
            row_shape: Shape of one row, needed only when no image has a tensor to tell it.
            dtype: Type of the rows when no image has a tensor.
            device: Place of the rows when no image has a tensor.

        Raises:
            ValueError: The images' rows differ in shape, or nothing tells the shape.
        """
        counts = tuple(0 if item is None else item.shape[0] for item in items)
        tensors = [item for item in items if item is not None]
        if not tensors:
            if row_shape is None:
                raise ValueError(f"none of the {len(items)} images has a tensor of regions: row_shape must be given")
            return cls(torch.zeros((0, *row_shape), dtype=dtype, device=device), counts)
        expected = tensors[0].shape[1:] if row_shape is None else torch.Size(row_shape)
        for index, item in enumerate(items):
            if item is not None and item.shape[1:] != expected:
                raise ValueError(
                    f"image {index} has rows of shape {tuple(item.shape[1:])}, expected {tuple(expected)} as in the "
                    f"rest of the batch"
                )
        return cls(torch.cat(tensors), counts)

    @classmethod
    def from_padded(
        cls, padded: Shaped[Tensor, "batch max_regions ..."], region_mask: Bool[Tensor, "batch max_regions"]
    ) -> "RegionBatch":
        """Pack the rows that `region_mask` marks as real; they may stand anywhere in their image's row.

        Raises:
            ValueError: The two shapes differ.
        """
        if padded.shape[:2] != region_mask.shape:
            raise ValueError(f"padded rows {tuple(padded.shape)} and region_mask {tuple(region_mask.shape)} differ")
        return cls(padded[region_mask], tuple(region_mask.sum(1).tolist()))

    def to_list(self) -> list[Shaped[Tensor, "_ ..."]]:
        """One tensor of rows per image (views), empty where an image has no region."""
        return list(self.rows.split(self.counts)) if self.counts else []

    def to_padded(
        self, *, max_regions: int | None = None
    ) -> tuple[Shaped[Tensor, "batch max_regions ..."], Bool[Tensor, "batch max_regions"]]:
        """Rows per image, filled up with zeros, and the mask of the real ones.

        Args:
            max_regions: Width to pad to; the largest count by default.

        Raises:
            ValueError: An image has more regions than `max_regions`.
        """
        largest = max(self.counts, default=0)
        width = largest if max_regions is None else max_regions
        if width < largest:
            raise ValueError(f"max_regions is {width}, but image {self.counts.index(largest)} has {largest} regions")
        counts = torch.tensor(self.counts, dtype=torch.int64, device=self.rows.device)
        region_mask = torch.arange(width, device=self.rows.device) < counts[:, None]
        # The place of each row is computed, not searched for with nonzero(), which would make the host wait for a GPU.
        slots = self.batch_index() * width + self.position_index()
        padded = self.rows.new_zeros((self.batch_size * width, *self.rows.shape[1:])).index_copy(0, slots, self.rows)
        return padded.reshape(self.batch_size, width, *self.rows.shape[1:]), region_mask

    def batch_index(self) -> Int64[Tensor, " regions"]:
        """Which image each row belongs to."""
        return self._spread(torch.arange(self.batch_size))

    def position_index(self) -> Int64[Tensor, " regions"]:
        """Which region of its image each row is, counted from zero."""
        counts = torch.tensor(self.counts, dtype=torch.int64)
        starts = self._spread(counts.cumsum(0) - counts)
        return torch.arange(self.num_regions, device=starts.device) - starts

    def with_rows(self, rows: Shaped[Tensor, "regions ..."]) -> "RegionBatch":
        """The same regions with other rows, for instance after a projection."""
        return RegionBatch(rows, self.counts)

    def _spread(self, per_image: Int64[Tensor, " batch"]) -> Int64[Tensor, " regions"]:
        """Repeat a value per image for each of its regions, on the rows' device."""
        counts = torch.tensor(self.counts, dtype=torch.int64)
        # Done on the host, where the counts are: the device gets one copy and nothing has to be read back.
        return per_image.repeat_interleave(counts, output_size=self.num_regions).to(self.rows.device)
