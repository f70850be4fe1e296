"""Box files from the output of a detector: COCO's JSON and YOLO's text files. No detector comes with this package.

The boxes get labels, so that `BoxFile` pairs equal ones. What a selection leaves out is counted.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from roi_region_loss.box_files import write_box_file
from roi_region_loss.box_formats import BoxFormat, normalise, to_xyxy

ImageNames = Literal["stem", "file_name"]
"""What becomes the key: a file's name without folder and ending (as CIRR and FashionIQ have it), or as written."""


@dataclass(frozen=True)
class BoxSelection:
    """Which detections are taken.

    Attributes:
        min_score: Least confidence; detections without one count as certain.
        min_area: Least area as a share of the image.
        max_boxes: Largest number per image; the largest boxes are taken.
    """

    min_score: float = 0.3
    min_area: float = 0.01
    max_boxes: int = 5


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        num_images: Images in the box file, with or without boxes.
        num_boxes: Boxes in it.
        dropped: Boxes left out by reason: `low_score`, `no_area`, `small` and `over_cap`.
    """

    num_images: int
    num_boxes: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class _Detection:
    box: tuple[float, ...]
    label: str
    score: float


def import_coco(
    source: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    selection: BoxSelection | None = None,
    image_names: ImageNames = "stem",
) -> ImportReport:
    """Write a box file from COCO annotations, or from a list of detection results.

    Args:
        source: An object with `images`, `annotations` and `categories`, or a list of results.
        output: The box file to write.
        images: With a list of results, the annotation file that holds the images and categories.
        selection: Which detections are taken.
        image_names: What the box file's keys are.

    Raises:
        ValueError: Something is missing, or two images have the same name; names file and record.
    """
    source = Path(source)
    content = json.loads(source.read_text(encoding="utf-8"))
    if isinstance(content, list):
        if images is None:
            raise ValueError(
                f"{source}: a list of results needs `images`, the annotation file with images and categories"
            )
        described, annotations = json.loads(Path(images).read_text(encoding="utf-8")), content
    else:
        described, annotations = content, content.get("annotations")
    if annotations is None or "images" not in described:
        raise ValueError(f"{source}: expected 'images' and 'annotations', got the keys {list(described)}")
    sizes, names = {}, {}
    for index, image in enumerate(described["images"]):
        image_id, *size, file_name = _fields(
            image, "id", "width", "height", "file_name", where=f"{source}: image {index}"
        )
        sizes[image_id], names[image_id] = tuple(size), _image_name(file_name, image_names)
    _refuse_repeats(names.values(), source)
    categories = {category["id"]: category["name"] for category in described.get("categories", [])}
    found: dict[str, list[_Detection]] = {name: [] for name in names.values()}
    for index, annotation in enumerate(annotations):
        where = f"{source}: annotation {index}"
        image_id, category_id, numbers = _fields(annotation, "image_id", "category_id", "bbox", where=where)
        if image_id not in names:
            raise ValueError(f"{where}: there is no image of id {image_id!r}")
        box = _corners(numbers, "xywh_pixel", sizes[image_id], where=where)
        label = categories.get(category_id, str(category_id))
        found[names[image_id]].append(_Detection(box, label, float(annotation.get("score", 1.0))))
    return _write(found, Path(output), selection or BoxSelection())


def import_yolo(
    folder: str | Path,
    output: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    selection: BoxSelection | None = None,
) -> ImportReport:
    """Write a box file from a folder of YOLO text files, one per image: class, centre x, y, width, height[, score].

    Args:
        folder: Searched with all folders in it; a file's name without ending is the image's.
        output: The box file to write.
        class_names: Name of each class; its number stands in otherwise.
        selection: Which detections are taken.

    Raises:
        ValueError: There are no files, two have the same name, or a line is not of that form; names file and line.
    """
    paths = sorted(Path(folder).rglob("*.txt"))
    if not paths:
        raise ValueError(f"{folder}: there are no .txt files")
    _refuse_repeats((path.stem for path in paths), Path(folder))
    found = {
        path.stem: [
            _read_yolo_line(line, class_names, where=f"{path}: line {number}")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
            if line.strip()
        ]
        for path in paths
    }
    return _write(found, Path(output), selection or BoxSelection())


def _read_yolo_line(line: str, class_names: Sequence[str] | None, *, where: str) -> _Detection:
    try:
        class_index, *numbers = int(line.split()[0]), *map(float, line.split()[1:])
    except ValueError as error:
        raise ValueError(f"{where}: expected numbers, got {line!r}") from error
    if len(numbers) not in (4, 5):
        raise ValueError(f"{where}: expected class, centre x, y, width, height and perhaps a score, got {line!r}")
    if class_names is not None and not 0 <= class_index < len(class_names):
        raise ValueError(f"{where}: class {class_index} is none of the {len(class_names)} names")
    label = str(class_index) if class_names is None else class_names[class_index]
    box = _corners(numbers[:4], "cxcywh_norm", (1, 1), where=where)
    return _Detection(box, label, numbers[4] if len(numbers) == 5 else 1.0)


def _corners(numbers: object, box_format: BoxFormat, size: tuple[int, int], *, where: str) -> tuple[float, ...]:
    """Normalised corners, cut to the image, as detectors overshoot it."""
    is_numbers = isinstance(numbers, list) and all(type(number) in (int, float) for number in numbers)
    if not is_numbers or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: a box is four finite numbers, got {numbers!r}")
    corners = normalise(to_xyxy(np.array([numbers], dtype=np.float64), box_format), size)[0]
    if box_format == "cxcywh_norm" and corners.max() > 2:
        raise ValueError(f"{where}: the box lies far outside [0, 1] (in pixels?), got {numbers!r}")
    return tuple(corners.clip(0, 1).tolist())


def _write(found: Mapping[str, list[_Detection]], output: Path, selection: BoxSelection) -> ImportReport:
    dropped: Counter[str] = Counter()
    kept: dict[str, list[_Detection]] = defaultdict(list)
    for name, detections in found.items():
        for detection in detections:
            reason = _reason_to_drop(detection, selection)
            if reason:
                dropped[reason] += 1
            else:
                kept[name].append(detection)
        largest = sorted(kept[name], key=_area, reverse=True)
        dropped["over_cap"] += len(largest[selection.max_boxes :])
        kept[name] = largest[: selection.max_boxes]
    records = {
        name: {
            "boxes": [list(detection.box) for detection in detections],
            "labels": [detection.label for detection in detections],
        }
        for name, detections in kept.items()
    }
    write_box_file(output, records)
    num_boxes = sum(map(len, kept.values()))
    return ImportReport(len(kept), num_boxes, {reason: count for reason, count in dropped.items() if count})


def _reason_to_drop(detection: _Detection, selection: BoxSelection) -> str:
    x0, y0, x1, y1 = detection.box
    if detection.score < selection.min_score:
        return "low_score"
    if x1 <= x0 or y1 <= y0:
        return "no_area"
    return "small" if _area(detection) < selection.min_area else ""


def _area(detection: _Detection) -> float:
    x0, y0, x1, y1 = detection.box
    return (x1 - x0) * (y1 - y0)


def _fields(record: Mapping[str, object], *names: str, where: str) -> list:
    missing = [name for name in names if name not in record]
    if missing:
        raise ValueError(f"{where}: lacks {', '.join(missing)}, got the keys {list(record)}")
    return [record[name] for name in names]


def _image_name(file_name: str, image_names: ImageNames) -> str:
    return Path(file_name).stem if image_names == "stem" else file_name


def _refuse_repeats(names: Iterable[str], where: Path) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{where}: {len(repeated)} image names occur more than once, the first is {repeated[0]!r}")
