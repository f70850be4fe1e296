"""What the readers of all file formats share: strict JSON, images that have the size they should have, masks.

A mask belongs to an image of one size. What the annotation says of that size is compared with the upright image (its
EXIF orientation is applied), since a mask on an image that is turned or scaled is wrong in silence.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import Bool, UInt8
from region_core.regions import parse_region, region_to_mask
from region_core.rle import check_rle, decode_rle
from region_training.images import read_image
from region_training.records import parse_records, require, resolve_under

ImageId = int | str
Record = Mapping[str, object]

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{12})")
MIN_POLYGON_NUMBERS = 6
"""COCO holds a few polygons of one or two points, which have no area; its own tools leave them out."""


def read_json_object(path: Path) -> dict[str, object]:
    """A file that is one JSON object, read as strictly as records are: no key twice, no NaN.

    Raises:
        ValueError: The file is not such a file; the message names it.
        OSError: The file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if not text.lstrip().startswith("{"):
        raise ValueError(f"{path}: got a file that starts with {text.lstrip()[:20]!r}, expected one JSON object")
    return parse_records(f"[{text}]", str(path))[0]


def require_objects(record: Record, key: str, where: str) -> list[dict[str, object]]:
    """A field that is a list of objects; none at all is legal.

    Raises:
        ValueError: The field is missing or is something else.
    """
    entries = require(record, key, list, where)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}, key {key!r}, entry {index}: got {entry!r:.80}, expected an object")
    return entries


def require_id(record: Record, key: str, where: str) -> ImageId:
    """An image's number or name.

    Raises:
        ValueError: The field is missing or neither a whole number nor text.
    """
    if isinstance(record.get(key), str):
        return require(record, key, str, where)
    return require(record, key, int, where)


def image_name(record: Record, where: str) -> str:
    """File of a record's image in the list formats: `image`, or else `image_info.file_name`.

    Raises:
        ValueError: It has neither.
    """
    if "image" in record:
        return require(record, "image", str, where)
    return require(image_info(record, where), "file_name", str, f"{where}, key 'image_info'")


def image_info(record: Record, where: str) -> dict[str, object]:
    """What a record of the list formats says of its image; nothing at all is legal.

    Raises:
        ValueError: It is no object.
    """
    return require(record, "image_info", dict, where) if "image_info" in record else {}


def find_image_id(record: Record) -> ImageId | None:
    """Number of a record's image in its data set, where the record tells it; looks at nothing else and never fails."""
    info = record.get("image_info")
    if isinstance(info, dict):
        for key in ("id", "image_id", "img_id"):
            if isinstance(info.get(key), int | str):
                return info[key]
    return None


def coco_number(name: object) -> int | None:
    """COCO's number of an image, told by its file name (`000000000042.jpg`, `COCO_train2014_000000000042.jpg`)."""
    found = _COCO_NAME.fullmatch(PurePath(name).stem) if isinstance(name, str) else None
    return None if found is None else int(found[1])


def read_scene_image(
    folder: Path | str, name: str, where: str, *, declared: Record | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image and compare its size with what the annotation says.

    Args:
        folder: Folder of the images.
        name: Path of the file in it.
        where: Names the record in errors.
        declared: An object whose `height` and `width`, where it has them, must be those of the upright image.

    Raises:
        ValueError: The file is missing, no picture, damaged, leads out of the folder, or has another size.
    """
    path = resolve_under(folder, name, where)
    try:
        image = read_image(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error
    for key, found in zip(("height", "width"), image.shape, strict=False):
        if declared is not None and key in declared and require(declared, key, int, where) != found:
            raise ValueError(
                f"{where}: the image {name!r} has a {key} of {found} pixels (upright, as its EXIF orientation says), "
                f"expected {declared[key]} as the annotation says: its masks would not fit"
            )
    return image


def segmentation_to_mask(
    annotation: Record, *, height: int, width: int, where: str, fractions: Sequence[int] = (1,)
) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of a COCO annotation's `segmentation`: polygons in pixels, or an RLE with or without compressed counts.

    Args:
        annotation: The annotation.
        height: Height of its image.
        width: Width of its image.
        where: Names the annotation in errors.
        fractions: See `decode_mask`.

    Returns:
        The mask; all False where no polygon has an area.

    Raises:
        ValueError: The field is missing, is neither of the two, or does not fit the image.
    """
    where = f"{where}, key 'segmentation'"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return decode_mask(segmentation, height=height, width=width, where=where, fractions=fractions)
    if not isinstance(segmentation, list):
        raise ValueError(f"{where}: got {segmentation!r:.80}, expected an RLE or a list of polygons")
    polygons = [ring for ring in segmentation if not isinstance(ring, list) or len(ring) >= MIN_POLYGON_NUMBERS]
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return region_to_mask(
        parse_region({"polygons": polygons, "units": "pixels"}, where=where), height=height, width=width
    )


def decode_mask(
    rle: Record, *, height: int, width: int, where: str, fractions: Sequence[int] = (1,)
) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of an RLE.

    Args:
        rle: `size` and `counts`.
        height: Height of its image.
        width: Width of its image.
        where: Names the RLE in errors.
        fractions: The mask may be stored at the image's size over one of these, exactly; its pixels are then repeated.

    Raises:
        ValueError: The RLE is damaged or has another size.
    """
    check_rle(rle, where=where)
    for fraction in fractions:
        if rle["size"] == [height // fraction, width // fraction] and height % fraction == width % fraction == 0:
            small = decode_rle(rle, height=height // fraction, width=width // fraction, where=where)
            return small if fraction == 1 else small.repeat(fraction, axis=0).repeat(fraction, axis=1)
    return decode_rle(rle, height=height, width=width, where=where)


def is_crowd(annotation: Record, where: str) -> bool:
    """Whether an annotation marks a crowd: a group whose members are not told apart.

    Raises:
        ValueError: `iscrowd` is neither 0 nor 1.
    """
    value = annotation.get("iscrowd", 0)
    if value not in (0, 1):
        raise ValueError(f"{where}, key 'iscrowd': got {value!r}, expected 0 or 1")
    return bool(value)


def stack(
    masks: Sequence[Bool[np.ndarray, "height width"]], height: int, width: int
) -> Bool[np.ndarray, "masks {height} {width}"]:
    """Masks of one image in one array; none is legal."""
    return np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)


def one_hot(positions: Sequence[int], num_conditions: int) -> Bool[np.ndarray, "targets {num_conditions}"]:
    """A table of targets by conditions in which each target has one condition."""
    table = np.zeros((len(positions), num_conditions), dtype=bool)
    table[np.arange(len(positions)), list(positions)] = True
    return table


def as_dropped(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    """Counts by reason as samples carry them: sorted, without zeros."""
    return tuple(sorted((reason, count) for reason, count in counts.items() if count))
