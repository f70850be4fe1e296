"""Cross-image segmentation: regions are shown on a reference image and segmented on the target image.

Three dialects are in use; which one a record speaks is told by its keys:

- DAVIS: the target is `image` and `anns`, the reference `first_frame_image` and `first_frame_anns`; the annotations
  correspond by their order.
- Ego-Exo4D (and HANDAL): the same keys. Masks may be stored at half or a quarter of the image's resolution, and
  `image_info` then has the masks' size.
- Category pairs: the reference is `image_info` and `annotations`, the target `image1_info` and `annotations1` (its
  authors' code swaps these names on the way to the model). A region means all targets of its category.

Crowds are left out on either side. An annotation without prompt fields is itself the prompt.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from region_training.records import read_records, require

from psalm.annotations import (
    ImageId,
    Record,
    as_dropped,
    coco_number,
    find_image_id,
    image_info,
    image_name,
    is_crowd,
    read_scene_image,
    require_objects,
    segmentation_to_mask,
    stack,
)
from psalm.config import PromptType
from psalm.modes import Mode
from psalm.prompts import PEN_RADIUS, Pens, has_prompts, read_prompt
from psalm.samples import Scene

Match = Literal["one_to_one", "one_to_many"]

DIALECTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "DAVIS": frozenset({"image", "anns", "first_frame_image", "first_frame_anns"}),
        "Ego-Exo4D": frozenset({"image", "anns", "first_frame_image", "first_frame_anns", "instruction"}),
        "category pairs": frozenset({"image_info", "annotations", "image1_info", "annotations1"}),
    }
)
FRACTIONS = (1, 2, 4)
"""Ego-Exo4D keeps masks of the ego camera at half the resolution, of the exo camera at a quarter."""


class ImagePair(NamedTuple):
    """A record of any dialect in one form, as yet unread.

    With `one_to_one` region r means target r. With `one_to_many` a region means all targets of its `category_id`.
    """

    image: str
    image_info: Record
    targets: list[dict[str, object]]
    reference_image: str
    reference_info: Record
    regions: list[dict[str, object]]
    match: Match


class CrossImageSource:
    """Cross-image segmentation.

    Args:
        file: JSON of the split, in any dialect.
        images: Folder of all images.
        types: Prompts to choose from: drawn in training, else the first that is not empty.
        excluded: Numbers of COCO images to leave out, where the names of images are COCO's.
        pens: With which points and scribbles are drawn.

    Raises:
        ValueError: The file is no list of records.
        OSError: The file cannot be read.
    """

    mode: Mode = "cross_image"

    def __init__(
        self,
        file: Path,
        images: Path,
        *,
        types: Sequence[PromptType],
        excluded: Collection[ImageId] = (),
        pens: Pens = PEN_RADIUS,
    ) -> None:
        self.name = "cross_image"
        self.label_space = None
        self.file = file
        self._images = images
        self._types = tuple(types)
        self._pens = pens
        self._records = read_records(file)
        self._indices = [
            index
            for index, record in enumerate(self._records)
            if not any(coco_number(name) in excluded for name in _names(record))
        ]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._indices)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return f"{self.file.name} record {self._indices[index]}"

    def texts(self) -> list[str]:
        """No words: a region is shown."""
        return []

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one pair; `rng` draws the type of each region's prompt.

        Raises:
            ValueError: The dialect is unknown, an image is missing or damaged, a mask does not fit its image, or the
                annotations do not correspond.
        """
        where = self.where(index)
        pair = normalise(self._records[self._indices[index]], where)
        image = read_scene_image(self._images, pair.image, where)
        reference = read_scene_image(self._images, pair.reference_image, f"{where}, reference")
        _check_declared(image.shape, pair.image_info, where)
        _check_declared(reference.shape, pair.reference_info, f"{where}, reference")
        height, width = image.shape[:2]
        masks = [
            segmentation_to_mask(target, height=height, width=width, where=f"{where}, target {i}", fractions=FRACTIONS)
            for i, target in enumerate(pair.targets)
        ]
        prompts = [
            self._prompt(region, *reference.shape[:2], where=f"{where}, region {i}", rng=rng)
            for i, region in enumerate(pair.regions)
        ]
        belongs = _correspondence(pair, where)
        # Without pixels there is nothing to find, and what no region asks for is no target of this sample.
        seen = np.array([mask.any() for mask in masks], dtype=bool)
        keep = seen & belongs.any(axis=1)
        dropped = Counter({"empty target": int((~seen).sum()), "target no region asks for": int((seen & ~keep).sum())})
        number = find_image_id({"image_info": pair.image_info})
        return Scene(
            record_id=where,
            mode="cross_image",
            image=image,
            masks=stack([mask for mask, kept in zip(masks, keep, strict=True) if kept], height, width),
            conditions=("",) * len(prompts),
            target_conditions=belongs[keep],
            is_thing=(True,) * len(prompts),
            prompts=stack(prompts, *reference.shape[:2]),
            reference_image=reference,
            dropped=as_dropped(dropped),
            image_id=pair.image if number is None else number,
        )

    def _prompt(
        self, region: Record, height: int, width: int, *, where: str, rng: np.random.Generator | None
    ) -> Bool[np.ndarray, "height width"]:
        if not has_prompts(region):
            return segmentation_to_mask(region, height=height, width=width, where=where, fractions=FRACTIONS)
        return read_prompt(
            region,
            self._types,
            height=height,
            width=width,
            where=where,
            rng=rng,
            fractions=FRACTIONS,
            pens=self._pens,
        )


def normalise(record: Record, where: str) -> ImagePair:
    """Bring a record of any dialect into one form.

    Raises:
        ValueError: Its keys are those of no dialect, or a field has a wrong type.
    """
    if record.keys() >= DIALECTS["DAVIS"]:  # and so of Ego-Exo4D, which has these keys and may have one more
        targets = require_objects(record, "anns", where)
        regions = require_objects(record, "first_frame_anns", where)
        if len(regions) != len(targets):
            raise ValueError(
                f"{where}: 'first_frame_anns' has {len(regions)} annotations and 'anns' {len(targets)}, expected as "
                "many, since they correspond by their order"
            )
        kept = _without_crowds(list(zip(regions, targets, strict=True)), where)
        return ImagePair(
            image=image_name(record, where),
            image_info=image_info(record, where),
            targets=[target for _, target in kept],
            reference_image=require(record, "first_frame_image", str, where),
            reference_info={},
            regions=[region for region, _ in kept],
            match="one_to_one",
        )
    if record.keys() >= DIALECTS["category pairs"]:
        reference = require(record, "image_info", dict, where)
        target = require(record, "image1_info", dict, where)
        regions = [(entry,) for entry in require_objects(record, "annotations", where)]
        targets = [(entry,) for entry in require_objects(record, "annotations1", where)]
        return ImagePair(
            image=require(target, "image", str, f"{where}, key 'image1_info'"),
            image_info=target,
            targets=[entry for (entry,) in _without_crowds(targets, where)],
            reference_image=require(reference, "image", str, f"{where}, key 'image_info'"),
            reference_info=reference,
            regions=[entry for (entry,) in _without_crowds(regions, where)],
            match="one_to_many",
        )
    known = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, keys in DIALECTS.items())
    raise ValueError(f"{where}: got the keys {', '.join(sorted(record))}, expected those of a dialect ({known})")


def _names(record: Record) -> Iterator[object]:
    """What may be names of the images of a record of any dialect; what is wrong with it is said when it is read."""
    yield from (record.get("image"), record.get("first_frame_image"))
    for key in ("image_info", "image1_info"):
        info = record.get(key)
        if isinstance(info, dict):
            yield from (info.get("image"), info.get("file_name"))


def _without_crowds(groups: Sequence[tuple[dict[str, object], ...]], where: str) -> list[tuple[dict[str, object], ...]]:
    """Annotations that belong together leave together."""
    return [group for group in groups if not any(is_crowd(annotation, where) for annotation in group)]


def _correspondence(pair: ImagePair, where: str) -> Bool[np.ndarray, "targets regions"]:
    """Which region means which target."""
    if pair.match == "one_to_one":
        for index, (region, target) in enumerate(zip(pair.regions, pair.targets, strict=True)):
            for key in ("object_id", "category_id"):
                if key in region and key in target and region[key] != target[key]:
                    raise ValueError(
                        f"{where}: annotation {index} is {key} {region[key]!r} on the reference and {target[key]!r} on "
                        "the target image, expected the same object in the same place of both lists"
                    )
        return np.eye(len(pair.targets), dtype=bool)
    sides = (("annotations1", pair.targets), ("annotations", pair.regions))
    categories = [
        np.array([_category(entry, f"{where}, key {key!r}, entry {i}") for i, entry in enumerate(entries)], dtype=float)
        for key, entries in sides
    ]
    return categories[0][:, None] == categories[1][None]


def _category(annotation: Record, where: str) -> float:
    return require(annotation, "category_id", float, where)


def _check_declared(shape: Sequence[int], declared: Record, where: str) -> None:
    """The declared size is the image's, or, as the masks', a fraction of it."""
    size = [require(declared, key, int, where) if key in declared else None for key in ("height", "width")]
    for fraction in FRACTIONS:
        if all(known is None or known * fraction == found for known, found in zip(size, shape, strict=False)):
            return
    raise ValueError(
        f"{where}: the image is {shape[0]} x {shape[1]} pixels (height x width, upright), expected {size[0]} x "
        f"{size[1]} as the annotation says: its masks would not fit"
    )
