"""Box files: which regions of an image, or of a triplet, take part in the region loss.

One JSON object per file, in one of two kinds. Keyed by image, every value in one of three forms:

    {"dev-1-img0": [[0.1, 0.2, 0.5, 0.9], ...],                              the guide's
     "dev-2-img0": {"boxes": [...], "labels": ["dog", ...], "size": [640, 480], "format": "xyxy_pixel"},
     "dev-3-img0": [0.1, 0.2, 0.5, 0.9]}                                     OACIRR's, one box per image

Keyed by triplet, which alone can say which region became which:

    {"12063": [{"ref": [...], "target": [...], "label": "dog", "weight": 1.0, "relation": "preserved"}, ...]}

`labels`, `size` (width, height), `format`, `label`, `weight`, `relation` ("preserved" or "changed") and, for pixels,
`ref_size` and `target_size` are optional. Everything is checked when the file is read.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from roi_region_loss.box_formats import BoxFormat, check_format
from roi_region_loss.box_records import StoredBoxes, is_pair_record, read_image_record, read_pair_record
from roi_region_loss.config import Pairing
from roi_region_loss.coverage import NUM_EXAMPLES, BoxCoverage
from roi_region_loss.pairing import ImageBoxes, RegionPairs, pair_boxes

logger = logging.getLogger(__name__)


class BoxFile:
    """The boxes of a split; made by `BoxFile.load`.

    Args:
        path: Where they come from, for messages.
        images: Boxes per image, of a file keyed by image.
        pairs: Pairs per triplet, of a file keyed by triplet.
        pairing: How boxes keyed by image become pairs.
        image_size: Gives an image's (width, height) by its name, for boxes in pixels without a size.
    """

    def __init__(
        self,
        path: Path,
        *,
        images: Mapping[str, StoredBoxes] | None = None,
        pairs: Mapping[str, RegionPairs] | None = None,
        pairing: Pairing = "auto",
        image_size: Callable[[str], tuple[int, int]] | None = None,
    ) -> None:
        if (images is None) == (pairs is None):
            raise ValueError(f"{path}: a box file is keyed by image or by triplet, give one of images and pairs")
        self.path = path
        self._images = images
        self._pairs = pairs
        self._pairing: Pairing = pairing
        self._image_size = image_size

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        box_format: BoxFormat = "xyxy_norm",
        pairing: Pairing = "auto",
        use_changed_pairs: bool = False,
        image_size: Callable[[str], tuple[int, int]] | None = None,
    ) -> "BoxFile":
        """Read and check a box file.

        Args:
            path: The JSON file.
            box_format: Form of the boxes where an entry does not say it itself.
            pairing: How boxes keyed by image become pairs; see `RegionLossConfig`.
            use_changed_pairs: Let pairs of `relation` "changed" keep their weight instead of 0.
            image_size: Gives an image's (width, height) by its name, for boxes in pixels without a size; asked when
                the boxes are.

        Raises:
            ValueError: The file is no box file, a key occurs twice, or boxes are not finite, inverted, empty or outside
                the image; names file and key, and counts the bad boxes.
        """
        path = Path(path)
        records = _read_json(path)
        check_format(box_format, str(path))
        problems: list[str] = []
        if any(is_pair_record(record) for record in records.values()):
            if pairing != "auto":
                raise ValueError(f"{path}: the file lists pairs by triplet, pairing {pairing!r} would have no effect")
            pairs = {
                key: read_pair_record(
                    record, box_format, use_changed_pairs, where=f"{path}: {key!r}", problems=problems
                )
                for key, record in records.items()
            }
            _raise_problems(path, problems)
            return cls(path, pairs=pairs)
        images = {
            name: read_image_record(record, box_format, where=f"{path}: {name!r}", problems=problems)
            for name, record in records.items()
        }
        _raise_problems(path, problems)
        sizeless = next((name for name, stored in images.items() if stored.in_pixels), None)
        if sizeless is not None and image_size is None:
            raise ValueError(f"{path}: {sizeless!r} has boxes in pixels but no 'size', and no image_size was given")
        by_index = sum(stored.labels is None and len(stored.corners) > 0 for stored in images.values())
        if by_index and pairing == "auto":
            logger.info(
                "%s: %d images have boxes without labels; the k-th box of a reference is paired with the k-th of its "
                "target, which means something only if the file was made that way",
                path,
                by_index,
            )
        return cls(path, images=images, pairing=pairing, image_size=image_size)

    @property
    def is_pair_keyed(self) -> bool:
        """Whether the file lists pairs by triplet."""
        return self._pairs is not None

    def boxes(self, name: str) -> ImageBoxes:
        """Boxes of one image; none for a name that the file lacks, and in a file keyed by triplet.

        Raises:
            ValueError: The boxes are in pixels and reach outside the image.
        """
        stored = None if self._images is None else self._images.get(name)
        if stored is None:
            return ImageBoxes()
        if not stored.in_pixels:
            return ImageBoxes(stored.corners, stored.labels)
        assert self._image_size is not None
        problems: list[str] = []
        boxes = stored.normalised(self._image_size(name), where=f"{self.path}: {name!r}", problems=problems)
        _raise_problems(self.path, problems)
        return boxes

    def pairs(self, pair_id: str, reference: str, target: str) -> RegionPairs:
        """Pairs of regions of one triplet, normalised in the original images; none where the file has nothing.

        All of them: `filter_pairs` leaves out what cannot be used, and only then caps their number.

        Args:
            pair_id: Key of the triplet.
            reference: Name of the reference image.
            target: Name of the target image.
        """
        if self._pairs is not None:
            return self._pairs.get(pair_id, RegionPairs())
        return pair_boxes(self.boxes(reference), self.boxes(target), pairing=self._pairing)

    def coverage(self, triplets: Iterable[tuple[str, str, str]]) -> BoxCoverage:
        """Count what the file holds for a split.

        Args:
            triplets: Per triplet its key, reference and target name, as for `pairs`.
        """
        wanted: dict[str, None] = {}
        num_triplets = num_with_pairs = num_pairs = num_without_weight = 0
        dropped: Counter[str] = Counter()
        for pair_id, reference, target in triplets:
            wanted.update(dict.fromkeys([pair_id] if self.is_pair_keyed else [reference, target]))
            pairs = self.pairs(pair_id, reference, target)
            num_weighted = int((pairs.weights > 0).sum())
            num_triplets += 1
            num_with_pairs += num_weighted > 0
            num_pairs += num_weighted
            num_without_weight += len(pairs) - num_weighted
            dropped.update(pairs.dropped)
        keys = self._images if self._pairs is None else self._pairs
        assert keys is not None
        missing = [key for key in wanted if key not in keys]
        unused = [key for key in keys if key not in wanted]
        return BoxCoverage(
            file=str(self.path),
            keyed_by="pair" if self.is_pair_keyed else "image",
            num_keys=len(wanted),
            num_keys_found=len(wanted) - len(missing),
            num_triplets=num_triplets,
            num_triplets_with_pairs=num_with_pairs,
            num_pairs=num_pairs,
            num_pairs_without_weight=num_without_weight,
            dropped=dict(dropped),
            missing=tuple(missing[:NUM_EXAMPLES]),
            unused=tuple(unused[:NUM_EXAMPLES]),
        )


def write_box_file(path: str | Path, records: Mapping[str, object]) -> None:
    """Write a box file so that a reader sees the old one or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(records, allow_nan=False), encoding="utf-8")
    staged.replace(path)


def _read_json(path: Path) -> dict[str, object]:
    def refuse_repeats(items: list[tuple[str, object]]) -> dict[str, object]:
        repeated = [key for key, count in Counter(key for key, _ in items).items() if count > 1]
        if repeated:
            raise ValueError(f"{path}: key {repeated[0]!r} occurs more than once")
        return dict(items)

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such box file") from error
    try:
        records = json.loads(text, object_pairs_hook=refuse_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(records, dict):
        raise ValueError(f"{path}: expected an object of image names or triplets, got a {type(records).__name__}")
    return records


def _raise_problems(path: Path, problems: list[str]) -> None:
    if problems:
        shown = "\n  ".join(problems[:NUM_EXAMPLES])
        raise ValueError(f"{path}: {len(problems)} bad boxes:\n  {shown}")
