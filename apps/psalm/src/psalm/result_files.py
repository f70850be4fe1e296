"""Predictions in the forms that other tools score: COCO panoptic (PNG and JSON), COCO instances, and lines of JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from region_core.rle import decode_rle
from region_training.images import write_png

from psalm.label_space import LabelSpace
from psalm.metrics.average_precision import rle_area
from psalm.records import EvaluatedRecord

RECORDS = "predictions.jsonl"


def write_results(
    folder: Path, records: Sequence[EvaluatedRecord], label_spaces: Mapping[str, LabelSpace | None]
) -> list[Path]:
    """Write the result files of an evaluation.

    Args:
        folder: Where to; it is made if need be.
        records: What was found.
        label_spaces: The classes of every group of records; None where it has none of its own.

    Returns:
        The files: `predictions.jsonl` with all records, and for every group of the modes panoptic and instance what
        COCO's tools read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / RECORDS]
    with files[0].open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(record)) + "\n" for record in records)
    for group in dict.fromkeys(record.group for record in records):
        own = [record for record in records if record.group == group]
        name = group.replace("/", "_")
        category = _categories(own, label_spaces.get(group))
        if own[0].mode == "panoptic":
            files.append(_write_panoptic(folder, name, own, category))
        elif own[0].mode == "instance":
            files.append(folder / f"{name}.json")
            files[-1].write_text(json.dumps([entry for record in own for entry in coco_masks(record, category)]))
    return files


def coco_masks(record: EvaluatedRecord, category: Callable[[str], int]) -> list[dict[str, object]]:
    """The masks of a record as COCO's detection results."""
    return [
        {
            "image_id": record.image_id,
            "category_id": category(found.label),
            "segmentation": found.rle,
            "score": found.score,
        }
        for found in record.masks
    ]


def _categories(records: Sequence[EvaluatedRecord], label_space: LabelSpace | None) -> Callable[[str], int]:
    """Number of a class: the data set's own, or else its place among the found ones by name, from 1."""
    if label_space is not None:
        return dict(zip(label_space.names, label_space.category_ids, strict=True)).__getitem__
    names = sorted({found.label for record in records for found in record.masks})
    return {name: number for number, name in enumerate(names, 1)}.__getitem__


def _write_panoptic(
    folder: Path, name: str, records: Sequence[EvaluatedRecord], category: Callable[[str], int]
) -> Path:
    annotations = []
    for record in records:
        # Several records may be of one image, and an image's name may hold what no file's may.
        file_name = f"{record.index:08d}.png"
        write_png(folder / name / file_name, panoptic_png(record))
        segments = [
            {"id": number, "category_id": category(found.label), "area": rle_area(found.rle), "score": found.score}
            for number, found in enumerate(record.masks, 1)
        ]
        annotations.append({"image_id": record.image_id, "file_name": file_name, "segments_info": segments})
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return path


def panoptic_png(record: EvaluatedRecord) -> np.ndarray:
    """Number of the segment at each pixel as R + 256 G + 65536 B."""
    height, width = record.size
    numbers = np.zeros((height, width), dtype=np.int64)
    for number, found in enumerate(record.masks, 1):
        numbers[decode_rle(found.rle, height=height, width=width)] = number
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], axis=-1).astype(np.uint8)
