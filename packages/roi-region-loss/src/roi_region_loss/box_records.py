"""The entries of a box file: one image's boxes, or one triplet's pairs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from roi_region_loss.box_formats import (
    BoxFormat,
    check_format,
    find_problems,
    is_pixel_format,
    normalise,
    read_numbers,
    to_xyxy,
)
from roi_region_loss.pairing import ImageBoxes, RegionPairs

_IMAGE_KEYS = ("boxes", "labels", "size", "format")
_PAIR_KEYS = ("ref", "target", "label", "weight", "relation", "format", "ref_size", "target_size")


@dataclass(frozen=True, eq=False)
class StoredBoxes:
    """Boxes of one image as read.

    Attributes:
        corners: (x0, y0, x1, y1), normalised or in pixels.
        labels: Name per box, or None.
        in_pixels: They are in pixels of an image whose size the file does not tell.
    """

    corners: Float64[np.ndarray, "regions 4"]
    labels: tuple[str, ...] | None
    in_pixels: bool

    def normalised(self, size: tuple[int, int], *, where: str, problems: list[str]) -> ImageBoxes:
        """Boxes in pixels once the image's (width, height) is known; what does not fit goes to `problems`."""
        corners = normalise(self.corners, size)
        problems += find_problems(corners, where=where)
        return ImageBoxes(corners.clip(0, 1), self.labels)


def is_pair_record(record: object) -> bool:
    """Whether an entry lists pairs, as those of a file keyed by triplet do."""
    return isinstance(record, list) and bool(record) and isinstance(record[0], dict)


def read_image_record(record: object, box_format: BoxFormat, *, where: str, problems: list[str]) -> StoredBoxes:
    """Read the boxes of one image.

    Args:
        record: The entry, in any of the three forms.
        box_format: Form of the boxes if the entry does not say.
        where: File and key, for messages.
        problems: Receives one text per bad box.

    Raises:
        ValueError: The entry is built wrongly.
    """
    if not isinstance(record, dict):
        return _stored(read_numbers(record, where), box_format, None, None, where=where, problems=problems)
    _check_keys(record, _IMAGE_KEYS, required=("boxes",), where=where)
    numbers = read_numbers(record["boxes"], where)
    labels = record.get("labels")
    if labels is not None:
        is_texts = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
        if not is_texts or len(labels) != len(numbers):
            raise ValueError(f"{where}: 'labels' is one text for each of the {len(numbers)} boxes, got {labels!r}")
        labels = tuple(labels)
    size = _read_size(record.get("size"), f"{where}: 'size'")
    stated = check_format(record.get("format", box_format), where)
    return _stored(numbers, stated, labels, size, where=where, problems=problems)


def read_pair_record(
    record: object, box_format: BoxFormat, use_changed_pairs: bool, *, where: str, problems: list[str]
) -> RegionPairs:
    """Read the pairs of one triplet.

    Args:
        record: The entry, a list of objects with `ref` and `target`.
        box_format: Form of the boxes if a pair does not say.
        use_changed_pairs: Let pairs of `relation` "changed" keep their weight instead of 0.
        where: File and key, for messages.
        problems: Receives one text per bad box.

    Raises:
        ValueError: The entry is built wrongly.
    """
    if not isinstance(record, list) or not all(isinstance(pair, dict) for pair in record):
        raise ValueError(f"{where}: expected a list of objects with 'ref' and 'target', as in the rest of the file")
    references, targets, weights, labels = [], [], [], []
    for index, pair in enumerate(record):
        place = f"{where}: pair {index}"
        _check_keys(pair, _PAIR_KEYS, required=("ref", "target"), where=place)
        stated = check_format(pair.get("format", box_format), place)
        for side, boxes in (("ref", references), ("target", targets)):
            boxes.append(_one_box(pair, side, stated, where=f"{place}: {side!r}", problems=problems))
        weights.append(_read_weight(pair, use_changed_pairs, place))
        labels.append(pair.get("label", ""))
        if not isinstance(labels[-1], str):
            raise ValueError(f"{place}: 'label' is text, got {labels[-1]!r}")
    return RegionPairs(
        np.array(references, dtype=np.float64).reshape(-1, 4),
        np.array(targets, dtype=np.float64).reshape(-1, 4),
        np.array(weights, dtype=np.float64),
        tuple(labels),
    )


def _stored(
    numbers: Float64[np.ndarray, "regions 4"],
    box_format: BoxFormat,
    labels: tuple[str, ...] | None,
    size: tuple[int, int] | None,
    *,
    where: str,
    problems: list[str],
) -> StoredBoxes:
    stored = StoredBoxes(to_xyxy(numbers, box_format), labels, is_pixel_format(box_format) and len(numbers) > 0)
    if not stored.in_pixels:
        problems += find_problems(stored.corners, where=where)
        return StoredBoxes(stored.corners.clip(0, 1), labels, False)
    if size is None:
        problems += find_problems(stored.corners, where=where, has_unit_range=False)
        return stored
    return StoredBoxes(stored.normalised(size, where=where, problems=problems).boxes, labels, False)


def _one_box(
    pair: Mapping[str, object], side: str, box_format: BoxFormat, *, where: str, problems: list[str]
) -> Float64[np.ndarray, "4"]:
    """The box on one side of a pair; a place holder where it is bad."""
    numbers = read_numbers(pair[side], where)
    if len(numbers) != 1:
        raise ValueError(f"{where}: expected one box, got {pair[side]!r}")
    size = _read_size(pair.get(f"{side}_size"), f"{where}: '{side}_size'")
    if is_pixel_format(box_format) and size is None:
        raise ValueError(f"{where}: a box in pixels needs '{side}_size' [width, height]")
    return _stored(numbers, box_format, None, size, where=where, problems=problems).corners[0]


def _read_weight(pair: Mapping[str, object], use_changed_pairs: bool, where: str) -> float:
    relation, weight = pair.get("relation", "preserved"), pair.get("weight", 1.0)
    if relation not in ("preserved", "changed"):
        raise ValueError(f"{where}: 'relation' is 'preserved' or 'changed', got {relation!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ValueError(f"{where}: 'weight' is a number of 0 or more, got {weight!r}")
    return float(weight) if relation == "preserved" or use_changed_pairs else 0.0


def _read_size(value: object, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(side) is int and side >= 1 for side in value):
        return value[0], value[1]
    raise ValueError(f"{where} is [width, height] in pixels, got {value!r}")


def _check_keys(record: Mapping[str, object], known: tuple[str, ...], *, required: tuple[str, ...], where: str) -> None:
    unknown = [key for key in record if key not in known]
    missing = [key for key in required if key not in record]
    if unknown or missing:
        raise ValueError(f"{where}: expected the keys {list(known)}, of them {list(required)}, got {list(record)}")
