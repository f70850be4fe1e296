"""COCO's panoptic format: one PNG per image whose colours number the segments, one JSON that says what they are.

    annotations/panoptic_{split}2017.json   images, annotations[image_id, file_name, segments_info], categories
    panoptic_{split}2017/*.png              R + 256 G + 65536 B is the segment's number; 0 belongs to none (void)
    {split}2017/*.jpg                       the images

A class's number in the file becomes its position in `categories`, and the records stay as they were read (upstream
writes the position back into them, so that a second epoch maps it twice). Crowds are no targets: their pixels are
void, as unlabelled ones are.
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from region_training.images import read_image
from region_training.records import require, resolve_under

from psalm.annotations import (
    ImageId,
    as_dropped,
    is_crowd,
    one_hot,
    read_json_object,
    read_scene_image,
    require_id,
    require_objects,
)
from psalm.label_space import LabelSpace
from psalm.modes import Mode
from psalm.samples import Scene

VOID = 0


class Segment(NamedTuple):
    """One segment of an image: its number in the PNG, the position of its class, whether it is a crowd."""

    number: int
    position: int
    is_crowd: bool


class PanopticImage(NamedTuple):
    """One record as it is on disk."""

    image: UInt8[np.ndarray, "height width 3"]
    numbers: Int64[np.ndarray, "height width"]
    segments: list[Segment]


def panoptic_file(root: Path | str, split: str) -> Path:
    """Where the JSON of a split is."""
    return Path(root) / "annotations" / f"panoptic_{split}2017.json"


class PanopticFile:
    """A panoptic split, read once and shared by panoptic and semantic segmentation.

    Args:
        root: Folder of COCO.
        split: `train` or `val`.

    Raises:
        ValueError: The file is no panoptic JSON, or has an image twice; the message names file and key.
        OSError: The file cannot be read.
    """

    def __init__(self, root: Path | str, split: str) -> None:
        self.root = Path(root)
        self.split = split
        self.file = panoptic_file(root, split)
        content = read_json_object(self.file)
        self.label_space = LabelSpace.from_categories(
            require(content, "categories", list, self.file.name), self.file.name
        )
        self._records = require_objects(content, "annotations", self.file.name)
        self._images: dict[ImageId, dict[str, object]] = {}
        for index, image in enumerate(require_objects(content, "images", self.file.name)):
            number = require_id(image, "id", f"{self.file.name}, image {index}")
            if number in self._images:
                raise ValueError(f"{self.file.name}, image {index}: the id {number!r} stands twice")
            self._images[number] = image
        self._check_unique()

    def keep(self, excluded: Collection[ImageId]) -> list[int]:
        """Indices of the records whose image is not one of these."""
        return [index for index, record in enumerate(self._records) if record.get("image_id") not in excluded]

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return f"{self.file.name} record {index} (image {self._records[index].get('image_id')!r})"

    def image_id(self, index: int) -> ImageId:
        """Number of a record's image."""
        return require_id(self._records[index], "image_id", self.where(index))

    def read(self, index: int) -> PanopticImage:
        """Read one record's image, PNG and segments.

        Raises:
            ValueError: A file is missing or damaged, sizes differ, a class is unknown, or PNG and JSON name different
                segments; the message names the record.
        """
        record, where, number = self._records[index], self.where(index), self.image_id(index)
        if number not in self._images:
            raise ValueError(f"{where}: 'images' of the file has no such image")
        declared = self._images[number]
        name = require(declared, "file_name", str, where)
        image = read_scene_image(self.root / f"{self.split}2017", name, where, declared=declared)
        numbers = self._read_numbers(require(record, "file_name", str, where), where)
        if numbers.shape != image.shape[:2]:
            raise ValueError(
                f"{where}: the PNG is {numbers.shape[0]} x {numbers.shape[1]} pixels (height x width), the image "
                f"{image.shape[0]} x {image.shape[1]}, expected the same"
            )
        segments = [
            self._segment(entry, f"{where}, segment {place}")
            for place, entry in enumerate(require_objects(record, "segments_info", where))
        ]
        _check_agreement(numbers, segments, where)
        return PanopticImage(image, numbers, segments)

    def _read_numbers(self, name: str, where: str) -> Int64[np.ndarray, "height width"]:
        path = resolve_under(self.root / f"panoptic_{self.split}2017", name, where)
        try:
            colours = read_image(path).astype(np.int64)
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {error}") from error
        return colours @ np.array([1, 256, 65_536])

    def _segment(self, entry: dict[str, object], where: str) -> Segment:
        number = require(entry, "id", int, where)
        if number == VOID:
            raise ValueError(f"{where}, key 'id': got {VOID}, which stands for pixels without a segment")
        category = require(entry, "category_id", int, where)
        return Segment(number, self.label_space.position(category, where), is_crowd(entry, where))

    def _check_unique(self) -> None:
        seen: dict[object, int] = {}
        for index, record in enumerate(self._records):
            number = record.get("image_id")
            if isinstance(number, int | str) and seen.setdefault(number, index) != index:
                raise ValueError(f"{self.where(index)}: the image has a record already, number {seen[number]}")


class PanopticFileSource:
    """What the tasks on a panoptic file have in common: an image is a sample, the class names are its conditions.

    Args:
        panoptic: The split.
        excluded: Numbers of images to leave out.
    """

    mode: Mode

    def __init__(self, panoptic: PanopticFile, *, excluded: Collection[ImageId] = ()) -> None:
        self.name = self.mode
        self.label_space = panoptic.label_space
        self.panoptic = panoptic
        self.indices = panoptic.keep(excluded)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return self.panoptic.where(self.indices[index])

    def texts(self) -> list[str]:
        """The class names."""
        return list(self.label_space.names)


class PanopticSource(PanopticFileSource):
    """Panoptic segmentation: one target per segment, things and stuff."""

    mode: Mode = "panoptic"

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one image; nothing is drawn.

        Raises:
            ValueError: The record is bad, see `PanopticFile.read`.
        """
        record = self.indices[index]
        found = self.panoptic.read(record)
        targets = [segment for segment in found.segments if not segment.is_crowd]
        numbers = np.array([segment.number for segment in targets], dtype=np.int64)
        return Scene(
            record_id=self.where(index),
            mode=self.mode,
            image=found.image,
            masks=found.numbers == numbers[:, None, None],
            conditions=self.label_space.names,
            target_conditions=one_hot([segment.position for segment in targets], len(self.label_space.names)),
            is_thing=self.label_space.is_thing,
            void=~np.isin(found.numbers, numbers),
            dropped=as_dropped(Counter(crowd=len(found.segments) - len(targets))),
            image_id=self.panoptic.image_id(record),
        )


def _check_agreement(numbers: Int64[np.ndarray, "height width"], segments: list[Segment], where: str) -> None:
    """PNG and JSON must name the same segments, each once."""
    listed = [segment.number for segment in segments]
    drawn = set(np.unique(numbers).tolist()) - {VOID}
    if len(set(listed)) != len(listed):
        twice = next(number for number in listed if listed.count(number) > 1)
        raise ValueError(f"{where}: 'segments_info' has the segment {twice} twice")
    if drawn - set(listed):
        raise ValueError(f"{where}: the PNG has the segment {min(drawn - set(listed))}, 'segments_info' does not")
    if set(listed) - drawn:
        raise ValueError(
            f"{where}: 'segments_info' has the segment {min(set(listed) - drawn)}, the PNG has no such pixel"
        )
