"""A split of triplets without pixels, and what the readers of CIRR, FashionIQ and OACIRR share."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from region_training.records import parse_records

logger = logging.getLogger(__name__)

OnMissing = Literal["raise", "drop"]
GalleryProtocol = Literal["split", "union"]
MAX_NAMED = 10


@dataclass(frozen=True)
class Triplet:
    """One record of a split, without pixels.

    Attributes:
        pair_id: Unique in the split: CIRR's `pairid` as text, FashionIQ's category and number (`dress-12`).
        reference: Name of the reference image.
        target: Name of the target image; None where the split keeps its targets to itself.
        captions: What shall be different: one caption (CIRR, OACIRR) or two (FashionIQ).
        members: CIRR's subset of six look-alikes, the reference among them.
        category: FashionIQ's category, or the category of OACIRR's object.
        reference_box: OACIRR's anchored object in the reference image, normalised to [0, 1].
        target_box: The same object in the target image.
    """

    pair_id: str
    reference: str
    target: str | None
    captions: tuple[str, ...]
    members: tuple[str, ...] = ()
    category: str | None = None
    reference_box: tuple[float, ...] | None = None
    target_box: tuple[float, ...] | None = None


@dataclass(frozen=True)
class TripletSplit:
    """A split without pixels.

    Attributes:
        name: Name of the split.
        file: The file (FashionIQ: the folder) with the captions.
        triplets: All records in the order of the file.
        gallery: Names of all images of the split; equal scores rank in this order.
        image_files: File of every image by name.
        category_galleries: FashionIQ's gallery of each category; empty for the others.
        gallery_protocol: What the galleries hold: `split`, all images of the split's file, or `union`, the images that
            some triplet names. Scores are not comparable across the two.
    """

    name: str
    file: Path
    triplets: list[Triplet]
    gallery: list[str]
    image_files: Mapping[str, Path]
    category_galleries: dict[str, list[str]] = field(default_factory=dict)
    gallery_protocol: GalleryProtocol = "split"

    def image_path(self, name: str) -> Path:
        """The file of an image.

        Raises:
            ValueError: The split has no image of that name.
        """
        if name not in self.image_files:
            raise ValueError(f"{self.file}: the split {self.name!r} has no image {name!r}")
        return self.image_files[name]


def check_images(split: TripletSplit, *, whole_gallery: bool, on_missing: OnMissing = "raise") -> TripletSplit:
    """Look for every image file of a split before anything is read.

    Args:
        split: The split.
        whole_gallery: Images that no triplet names must be there as well.
        on_missing: `raise`, or `drop` triplets and images and say how many.

    Returns:
        The split, without what was dropped.

    Raises:
        ValueError: Files are missing, or every triplet would be dropped.
    """
    names = {name for triplet in split.triplets for name in (triplet.reference, triplet.target) if name is not None}
    if whole_gallery:
        names.update(split.gallery)
    missing = {name for name in names if not split.image_path(name).is_file()}
    if not missing:
        return split
    listed = ", ".join(str(split.image_path(name)) for name in sorted(missing)[:MAX_NAMED])
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    found = f"{split.file}: {len(missing)} of {len(names)} image files of the split {split.name!r} are missing: "
    if on_missing == "raise":
        raise ValueError(f"{found}{listed}{more}")
    kept = [triplet for triplet in split.triplets if not {triplet.reference, triplet.target} & missing]
    if split.triplets and not kept:
        raise ValueError(f"{found}{listed}{more}; no triplet is left")
    logger.warning(
        "%s%s%s; %d of %d triplets are dropped, and scores are not comparable with those of the whole split",
        *(found, listed, more, len(split.triplets) - len(kept), len(split.triplets)),
    )
    return replace(
        split,
        triplets=kept,
        gallery=_without(split.gallery, missing),
        category_galleries={category: _without(names, missing) for category, names in split.category_galleries.items()},
    )


def read_json(path: Path) -> object:
    """Any JSON value, read as strictly as records are: no key twice, no NaN, no number that no float holds.

    Raises:
        ValueError: The file is not such a file.
        OSError: The file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        json.loads(text)  # so that a syntax error has the line and column of the file itself
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    return parse_records(f'[{{"value": {text}}}]', str(path))[0]["value"]


def read_names(path: Path) -> list[str]:
    """A split file that lists names (FashionIQ); a name that stands twice is an error."""
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a list of image names, got {_short(names)}")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: the image {twice!r} is listed twice")
    return names


def read_name_to_path(path: Path) -> dict[str, str]:
    """A split file that gives each name its path (CIRR, OACIRR)."""
    table = read_json(path)
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ValueError(f"{path}: expected an object from image names to paths, got {_short(table)}")
    return table


def require_texts(value: object, where: str) -> tuple[str, ...]:
    """A list of texts as a tuple.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}: expected a list of texts, got {_short(value)}")
    return tuple(value)


def require_known(name: str, known: Mapping[str, object], where: str) -> str:
    """A name that the split must have.

    Raises:
        ValueError: The split has no such image.
    """
    if name not in known:
        raise ValueError(f"{where}: {name!r} is no image of the split, which has {len(known)}")
    return name


def check_unique(triplets: Sequence[Triplet], file: Path) -> None:
    """Check that no pair id stands twice.

    Raises:
        ValueError: One does.
    """
    seen: set[str] = set()
    for triplet in triplets:
        if triplet.pair_id in seen:
            raise ValueError(f"{file}: the pair {triplet.pair_id!r} stands twice, expected unique ids")
        seen.add(triplet.pair_id)


def _without(names: Sequence[str], missing: set[str]) -> list[str]:
    return [name for name in names if name not in missing]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
