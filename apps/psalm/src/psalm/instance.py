"""Instance segmentation: COCO's `instances_{split}2017.json`, or the list form of PSALM's builder.

    annotations/instances_{split}2017.json      images, annotations, categories
    [annotations/]instance_{split}_psalm.json   a list of image, image_info, anns, mask_classes; one record per image
    {split}2017/*.jpg                           the images

The list form has no `categories`: its classes are those that `mask_classes` names beside each annotation, in the order
of their numbers. Images without objects are samples like all others. Crowds are no targets, their pixels are void.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from region_training.records import read_records, require

from psalm.annotations import (
    ImageId,
    Record,
    as_dropped,
    find_image_id,
    image_info,
    image_name,
    is_crowd,
    one_hot,
    read_json_object,
    read_scene_image,
    require_id,
    require_objects,
    segmentation_to_mask,
    stack,
)
from psalm.label_space import LabelSpace
from psalm.modes import Mode
from psalm.samples import Scene


class InstanceRecord(NamedTuple):
    """One image with its annotations, as yet unread; `image` says file, height, width and id."""

    image: Record
    annotations: list[dict[str, object]]
    where: str


class InstanceFile(NamedTuple):
    """A split of either form."""

    label_space: LabelSpace
    records: list[InstanceRecord]


def instance_file(root: Path | str, split: str) -> Path | None:
    """Where the JSON of a split is; None where there is none of either form."""
    root = Path(root)
    places = (
        root / "annotations" / f"instances_{split}2017.json",
        root / f"instance_{split}_psalm.json",
        root / "annotations" / f"instance_{split}_psalm.json",
    )
    return next((place for place in places if place.is_file()), None)


class InstanceSource:
    """Instance segmentation: one target per object.

    Args:
        file: JSON of the split, of either form.
        images: Folder of the images.
        excluded: Numbers of images to leave out.

    Raises:
        ValueError: The file is of neither form; the message names file and record.
        OSError: The file cannot be read.
    """

    mode: Mode = "instance"

    def __init__(self, file: Path, images: Path, *, excluded: Collection[ImageId] = ()) -> None:
        self.name = "instance"
        self.label_space, records = (_read_list if _is_list(file) else _read_coco)(file)
        self._images = images
        self._records = [record for record in records if record.image.get("id") not in excluded]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._records)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return self._records[index].where

    def texts(self) -> list[str]:
        """The class names."""
        return list(self.label_space.names)

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one image; nothing is drawn.

        Raises:
            ValueError: The image is missing or damaged, a mask does not fit it, or a class is unknown.
        """
        record, where = self._records[index], self.where(index)
        image = read_scene_image(self._images, image_name(record.image, where), where, declared=record.image)
        height, width = image.shape[:2]
        masks, positions = [], []
        void = np.zeros((height, width), dtype=bool)
        dropped: Counter[str] = Counter()
        for place, annotation in enumerate(record.annotations):
            own = f"{where}, annotation {place}"
            mask = segmentation_to_mask(annotation, height=height, width=width, where=own)
            position = self.label_space.position(require(annotation, "category_id", int, own), own)
            if is_crowd(annotation, own):
                void |= mask
                dropped["crowd"] += 1
            elif not mask.any():
                dropped["empty target"] += 1
            else:
                masks.append(mask)
                positions.append(position)
        return Scene(
            record_id=where,
            mode="instance",
            image=image,
            masks=stack(masks, height, width),
            conditions=self.label_space.names,
            target_conditions=one_hot(positions, len(self.label_space.names)),
            is_thing=self.label_space.is_thing,
            void=void if void.any() else None,
            dropped=as_dropped(dropped),
            image_id=require_id(record.image, "id", where) if "id" in record.image else index,
        )


def _is_list(file: Path) -> bool:
    with file.open(encoding="utf-8-sig") as stream:
        return stream.read(1024).lstrip().startswith("[")


def _read_coco(file: Path) -> InstanceFile:
    content = read_json_object(file)
    label_space = LabelSpace.from_categories(require(content, "categories", list, file.name), file.name)
    by_image: dict[ImageId, list[dict[str, object]]] = {}
    images = require_objects(content, "images", file.name)
    for index, image in enumerate(images):
        number = require_id(image, "id", f"{file.name}, image {index}")
        if number in by_image:
            raise ValueError(f"{file.name}, image {index}: the id {number!r} stands twice")
        by_image[number] = []
    for index, annotation in enumerate(require_objects(content, "annotations", file.name)):
        place = f"{file.name}, annotation {index}"
        number = require_id(annotation, "image_id", place)
        if number not in by_image:
            raise ValueError(f"{place}, key 'image_id': 'images' of the file has no image {number!r}")
        by_image[number].append(annotation)
    records = [
        InstanceRecord(
            # The list formats have the file's name under "image"; here it is the image's own "file_name".
            {**image, "image_info": image},
            by_image[require_id(image, "id", file.name)],
            f"{file.name} record {index} (image {image.get('id')!r})",
        )
        for index, image in enumerate(images)
    ]
    return InstanceFile(label_space, records)


def _read_list(file: Path) -> InstanceFile:
    records, names = [], {}
    for index, record in enumerate(read_records(file)):
        where = f"{file.name} record {index} (image {find_image_id(record)!r})"
        annotations = require_objects(record, "anns", where)
        classes = require(record, "mask_classes", list, where)
        _check_classes(classes, annotations, where)
        for name, annotation in zip(classes, annotations, strict=True):
            category = require(annotation, "category_id", int, where)
            if names.setdefault(category, name) != name:
                raise ValueError(f"{where}: category {category} is called {name!r}, before it was {names[category]!r}")
        info = image_info(record, where)
        records.append(InstanceRecord({**info, "image": image_name(record, where)}, annotations, where))
    ids = sorted(names)
    try:
        space = LabelSpace(tuple(names[number] for number in ids), (True,) * len(ids), tuple(ids))
    except ValueError as error:
        raise ValueError(f"{file.name}, key 'mask_classes': {error}") from error
    return InstanceFile(space, records)


def _check_classes(classes: Sequence[object], annotations: Sequence[Record], where: str) -> None:
    if len(classes) != len(annotations) or not all(isinstance(name, str) for name in classes):
        raise ValueError(
            f"{where}, key 'mask_classes': expected one class name for each of the {len(annotations)} annotations, got "
            f"{classes!r:.80}"
        )
