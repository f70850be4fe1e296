"""Own data: one plain JSON file (an array, or one object per line) for all modes.

A record has `image`, a path under the image folder, and any of the following; each adds samples of its mode:

- `classes` and `segments` -> panoptic, semantic and instance. `classes` is the list of all candidates, each a name or
  `{"name": ..., "thing": false}` (things are countable, which is the default), the same in every record of the file
  that has it. `segments` is a list of regions, each with its `"class"`; none is legal. In panoptic and semantic
  segmentation a pixel belongs to the first segment that covers it; instance segmentation has the things alone, whole,
  also as candidates, and no samples where there are none.
- `sentence` and `targets` -> referring. `targets` is a list of regions that the sentence means; none is legal.
- `regions` -> region, or cross_image where the record also has `reference_image`. Each has `prompt`, a region on the
  image (on the reference image, where there is one), and `targets`, the regions it means on the image; none is legal.

A region is written as `region_core.parse_region` reads it: one of `box` [x0, y0, x1, y1], `rle`, `polygon`, `polygons`,
`point`, `scribble`, in shares of the image's width and height, or in pixels with `"units": "pixels"`; an RLE has the
image's size, and a point or scribble without a size of its own is drawn with the pens of the settings. Other keys of a
record are the user's own.

    {"image": "a.jpg", "classes": ["car", {"name": "road", "thing": false}],
     "segments": [{"class": "car", "polygon": [0.1, 0.1, 0.4, 0.1, 0.4, 0.3]},
                  {"class": "road", "box": [0, 0.6, 1, 1]}]}
    {"image": "a.jpg", "sentence": "the car on the left", "targets": [{"box": [20, 30, 90, 80], "units": "pixels"}]}
    {"image": "a.jpg", "regions": [{"prompt": {"point": [0.2, 0.2]}, "targets": [{"box": [0.1, 0.1, 0.4, 0.3]}]}]}
    {"image": "b.jpg", "reference_image": "a.jpg",
     "regions": [{"prompt": {"point": [0.2, 0.2]}, "targets": [{"box": [0.5, 0.5, 0.8, 0.7]}]}]}
"""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from region_core.regions import parse_region, region_to_mask
from region_training.records import read_records, require

from psalm.annotations import (
    ImageId,
    Record,
    as_dropped,
    coco_number,
    one_hot,
    read_scene_image,
    require_objects,
    stack,
)
from psalm.label_space import LabelSpace
from psalm.modes import KIND_OF_MODE, MODES, Mode
from psalm.prompts import PEN_RADIUS, Pens, bound_regions, with_pen
from psalm.samples import Scene

KEYS = ("segments", "sentence", "regions")
"""What a record must have one or more of."""

Image = UInt8[np.ndarray, "height width 3"]


class _Region(NamedTuple):
    """A shown region and what it means."""

    prompt: Bool[np.ndarray, "prompt_height prompt_width"]
    targets: list[Bool[np.ndarray, "height width"]]
    is_bound: bool


class OwnFile:
    """A file of own data, read once and shared by all modes.

    Args:
        file: The JSON file.
        images: Folder of the images.
        excluded: Numbers of COCO images to leave out, where the names of images are COCO's.
        pens: With which points and scribbles without a size of their own are drawn.

    Raises:
        ValueError: The file is no list of records, or its records differ in `classes`.
        OSError: The file cannot be read.
    """

    def __init__(
        self, file: Path, images: Path, *, excluded: Collection[ImageId] = (), pens: Pens = PEN_RADIUS
    ) -> None:
        self.file = file
        self.images = images
        self.pens = pens
        self._excluded = excluded
        self.records = read_records(file)
        self.label_space = self._read_classes()

    def where(self, record: int) -> str:
        """What to call a record in an error."""
        return f"{self.file.name} record {record}"

    def serving(self, mode: Mode) -> list[int]:
        """Records with samples of a mode; one that has none of any mode counts to all, so that it is reported."""
        if mode == "instance" and self.label_space is not None and not any(self.label_space.is_thing):
            return []
        return [
            index
            for index, record in enumerate(self.records)
            if mode in (modes_of(record) or MODES)
            and not any(coco_number(record.get(key)) in self._excluded for key in ("image", "reference_image"))
        ]

    def modes(self) -> list[Mode]:
        """Modes that have records; all, where no record has any."""
        found = {mode for record in self.records for mode in modes_of(record)}
        return [mode for mode in MODES if mode in found or not found]

    def _read_classes(self) -> LabelSpace | None:
        first: int | None = None
        for index, record in enumerate(self.records):
            if "classes" not in record:
                continue
            if first is None:
                first = index
            elif record["classes"] != self.records[first]["classes"]:
                raise ValueError(
                    f"{self.where(index)}, key 'classes': expected the same list as in record {first}; a data set with "
                    "other classes needs a file of its own"
                )
        return None if first is None else _label_space(self.records[first], self.where(first))


class OwnSource:
    """Samples of one mode from a file of own data.

    Args:
        own: The file.
        mode: The mode.
    """

    def __init__(self, own: OwnFile, mode: Mode) -> None:
        self.mode: Mode = mode
        self.name = "own"
        self.label_space = own.label_space if KIND_OF_MODE[mode] == "class_name" else None
        if mode == "instance" and self.label_space is not None:
            self.label_space = _things_of(self.label_space)
        self._own = own
        self._indices = own.serving(mode)

    def __len__(self) -> int:
        """Number of records with this mode."""
        return len(self._indices)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return self._own.where(self._indices[index])

    def texts(self) -> list[str]:
        """Class names, or sentences."""
        if self.label_space is not None:
            return list(self.label_space.names)
        sentences = [self._own.records[index].get("sentence") for index in self._indices]
        if self.mode != "referring":
            return []
        return [" ".join(sentence.split()) for sentence in sentences if isinstance(sentence, str)]

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one record; nothing is drawn.

        Raises:
            ValueError: The record is not as described above, or an image is missing or damaged.
        """
        record, where = self._own.records[self._indices[index]], self.where(index)
        if not modes_of(record):
            raise ValueError(f"{where}: expected one or more of {', '.join(KEYS)}, got {', '.join(record)}")
        name = require(record, "image", str, where)
        image = read_scene_image(self._own.images, name, where)
        if KIND_OF_MODE[self.mode] == "class_name":
            return self._class_scene(record, image, name, where)
        if self.mode == "referring":
            return _sentence_scene(record, image, name, where, self._own.pens)
        return self._region_scene(record, image, name, where)

    def _class_scene(self, record: Record, image: Image, name: str, where: str) -> Scene:
        height, width = image.shape[:2]
        classes, listed = self.label_space, self._own.label_space
        if classes is None or listed is None or "classes" not in record:
            raise ValueError(f"{where}: 'segments' need 'classes', the list of all candidates; got {', '.join(record)}")
        free = np.ones((height, width), dtype=bool)
        masks: list[Bool[np.ndarray, "height width"]] = []
        positions: list[int] = []
        dropped: Counter[str] = Counter()
        for place, segment in enumerate(require_objects(record, "segments", where)):
            own = f"{where}, segment {place}"
            name_of_class = require(segment, "class", str, own)
            if name_of_class not in listed.names:
                raise ValueError(f"{own}, key 'class': got {name_of_class!r}, expected one of {list(listed.names)}")
            region = {key: value for key, value in segment.items() if key != "class"}
            mask = _mask(region, height, width, own, self._own.pens)
            if name_of_class not in classes.names:  # stuff is no instance
                continue
            position = classes.names.index(name_of_class)
            if self.mode != "instance":
                mask, free = mask & free, free & ~mask
            if not mask.any():
                dropped["empty target"] += 1
            elif self.mode == "semantic" and position in positions:
                masks[positions.index(position)] |= mask
            else:
                masks.append(mask)
                positions.append(position)
        return Scene(
            record_id=where,
            mode=self.mode,
            image=image,
            masks=stack(masks, height, width),
            conditions=classes.names,
            target_conditions=one_hot(positions, len(classes.names)),
            is_thing=classes.is_thing,
            dropped=as_dropped(dropped),
            image_id=name,
        )

    def _region_scene(self, record: Record, image: Image, name: str, where: str) -> Scene:
        height, width = image.shape[:2]
        reference = None
        if self.mode == "cross_image":
            reference_name = require(record, "reference_image", str, where)
            reference = read_scene_image(self._own.images, reference_name, where)
        shown_on = image if reference is None else reference
        regions = [
            _region(entry, (height, width), shown_on.shape[:2], f"{where}, region {place}", self._own.pens)
            for place, entry in enumerate(require_objects(record, "regions", where))
        ]
        # Two regions may mean the same target (a point and a box on one object): equal masks are one target.
        masks: dict[bytes, Bool[np.ndarray, "height width"]] = {}
        meant = [{mask.tobytes(): mask for mask in region.targets if mask.any()} for region in regions]
        for own in meant:
            masks.update(own)
        return Scene(
            record_id=where,
            mode=self.mode,
            image=image,
            masks=stack(list(masks.values()), height, width),
            conditions=("",) * len(regions),
            target_conditions=np.array([[key in own for own in meant] for key in masks], dtype=bool).reshape(
                len(masks), len(regions)
            ),
            is_thing=(True,) * len(regions),
            prompts=stack([region.prompt for region in regions], *shown_on.shape[:2]),
            prompts_bound=all(region.is_bound for region in regions),
            reference_image=reference,
            dropped=as_dropped(
                Counter({"empty target": sum(not mask.any() for region in regions for mask in region.targets)})
            ),
            image_id=name,
        )


def modes_of(record: Record) -> list[Mode]:
    """Modes a record gives samples of."""
    found: list[Mode] = []
    if "segments" in record:
        found += ["panoptic", "semantic", "instance"]
    if "sentence" in record:
        found.append("referring")
    if "regions" in record:
        found.append("cross_image" if "reference_image" in record else "region")
    return found


def _label_space(record: Record, where: str) -> LabelSpace:
    names, things = [], []
    for place, entry in enumerate(require(record, "classes", list, where)):
        own = f"{where}, key 'classes', entry {place}"
        fields = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, dict) or fields.keys() - {"name", "thing"}:
            raise ValueError(f"{own}: got {entry!r:.80}, expected a name or {{'name': ..., 'thing': true or false}}")
        names.append(require(fields, "name", str, own))
        things.append(require(fields, "thing", bool, own) if "thing" in fields else True)
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"{where}, key 'classes': expected one or more different names, got {names}")
    try:
        return LabelSpace(tuple(names), tuple(things), tuple(range(len(names))))
    except ValueError as error:
        raise ValueError(f"{where}, key 'classes': {error}") from error


def _things_of(space: LabelSpace) -> LabelSpace:
    """The countable classes alone; they keep their numbers."""
    things = [row for row, is_thing in enumerate(space.is_thing) if is_thing]
    names, numbers = tuple(space.names[row] for row in things), tuple(space.category_ids[row] for row in things)
    return LabelSpace(names, (True,) * len(things), numbers)


def _sentence_scene(record: Record, image: Image, name: str, where: str, pens: Pens) -> Scene:
    sentence = " ".join(require(record, "sentence", str, where).split())
    if not sentence:
        raise ValueError(f"{where}, key 'sentence': got no words, expected one or more")
    height, width = image.shape[:2]
    masks = [
        _mask(entry, height, width, f"{where}, target {place}", pens)
        for place, entry in enumerate(require_objects(record, "targets", where))
    ]
    for place, mask in enumerate(masks):
        if not mask.any():
            # Left out, the sentence would mean nothing at all, which is an answer of its own.
            raise ValueError(f"{where}, target {place}: the mask is empty")
    return Scene(
        record_id=where,
        mode="referring",
        image=image,
        masks=stack(masks, height, width),
        conditions=(sentence,),
        target_conditions=np.ones((len(masks), 1), dtype=bool),
        is_thing=(True,),
        image_id=name,
    )


def _region(entry: Record, size: tuple[int, int], prompt_size: tuple[int, int], where: str, pens: Pens) -> _Region:
    """Read a region; the sizes are (height, width) of the image and of the one that shows the prompt."""
    shown = require(entry, "prompt", dict, where)
    prompt = _mask(shown, *prompt_size, f"{where}, prompt", pens)
    targets = [
        _mask(target, *size, f"{where}, target {place}", pens)
        for place, target in enumerate(require_objects(entry, "targets", where))
    ]
    return _Region(prompt, targets, is_bound=bound_regions(shown))


def _mask(record: Record, height: int, width: int, where: str, pens: Pens) -> Bool[np.ndarray, "{height} {width}"]:
    drawn = with_pen(record, pens, height=height, width=width)
    return region_to_mask(parse_region(drawn, where=where), height=height, width=width)
