"""OACIRR (object-anchored composed retrieval on real images, 2026) on disk.

    oacirr-*/quadruple_captions/caption_full.{train,val}.json    reference, target, modification_text_mllm,
                                                                  object_category, reference_bounding_box
    oacirr-*/image_splits/split.{train,val}.json                 name -> path of the image under the root
    oacirr-*/image_bounding_box/bounding_box.{train,val}.json    name -> box of the object

The annotations may also lie in the root itself. Every pair of images shows one and the same object, boxed in both: a
pair of corresponding regions by construction. Boxes on disk are pixels, x0 y0 x1 y1, of the original image.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from region_training.records import read_records, require, resolve_under
from rich.progress import track
from torch import Tensor

from sprc.data import TripletDataset
from sprc.regions import BoxOptions
from sprc.transforms import ImageTransform
from sprc.triplets import OnMissing, Triplet, TripletSplit, read_json, read_name_to_path, require_known

logger = logging.getLogger(__name__)

MAX_OVERHANG_PIXELS = 1.0
"""How far a box may reach beyond its image: a rounding error of the annotation, which is cut off."""
MAX_NAMED = 5


class OACIRRDataset(TripletDataset):
    """Samples of a split of OACIRR; the boxes of the anchored object are its pairs of regions.

    Args:
        root: Folder of one variant of the data set.
        split: `train` or `val`.
        transform: From an image file to the model's input.
        box_file: Other boxes, instead of those of the data set.
        box_options: How boxes are read, paired and filtered.
        with_regions: Give samples their pair of regions.
        tokens: Cached tokens of the frozen tower by image name.
        training: See `TripletDataset`.
        seed: See `TripletDataset`.
        on_missing: See `TripletDataset`.
    """

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        transform: ImageTransform,
        box_file: Path | str | None = None,
        box_options: BoxOptions | None = None,
        with_regions: bool = True,
        tokens: Mapping[str, Tensor] | None = None,
        training: bool = False,
        seed: int = 0,
        on_missing: OnMissing = "raise",
    ) -> None:
        super().__init__(
            read_oacirr(root, split, transform),
            transform=transform,
            box_file=box_file if with_regions else None,
            box_options=(box_options or BoxOptions()) if with_regions else None,
            tokens=tokens,
            training=training,
            seed=seed,
            on_missing=on_missing,
        )


def read_oacirr(root: Path | str, split: str, transform: ImageTransform) -> TripletSplit:
    """Read the records of a split of OACIRR.

    The size of every image with a box is read from its header. A box that is inverted or outside its image is left
    out, and its record then has none; how many is logged.

    Args:
        root: Folder of one variant of the data set.
        split: `train` or `val`.
        transform: Says how large an image is, since that depends on how it is turned.

    Raises:
        ValueError: A file is not as described above; the message names file, record and key.
        OSError: A file cannot be opened.
    """
    root = Path(root)
    annotations = _annotation_folder(root, split)
    file = annotations / "quadruple_captions" / f"caption_full.{split}.json"
    split_file = annotations / "image_splits" / f"split.{split}.json"
    box_file = annotations / "image_bounding_box" / f"bounding_box.{split}.json"
    paths = read_name_to_path(split_file)
    files = {name: resolve_under(root, path, f"{split_file.name}, key {name!r}") for name, path in paths.items()}
    boxes = read_json(box_file)
    if not isinstance(boxes, dict):
        raise ValueError(f"{box_file}: expected an object from image names to boxes, got {type(boxes).__name__}")
    normalise = _Normaliser(files, transform)
    triplets = []
    records = read_records(file)
    for index, record in enumerate(track(records, description=f"reading boxes of {split}", transient=True)):
        where = f"{file.name} record {index}"
        reference = require_known(require(record, "reference", str, where), paths, f"{where}, key 'reference'")
        target = require_known(require(record, "target", str, where), paths, f"{where}, key 'target'")
        category = record.get("object_category")
        triplets.append(
            Triplet(
                pair_id=str(index),
                reference=reference,
                target=target,
                captions=(require(record, "modification_text_mllm", str, where),),
                category=None if category is None else require(record, "object_category", str, where),
                reference_box=normalise(reference, record.get("reference_bounding_box"), f"{where}, reference"),
                target_box=normalise(target, boxes.get(target), f"{box_file.name}, key {target!r}"),
            )
        )
    normalise.report(file)
    return TripletSplit(name=split, file=file, triplets=triplets, gallery=list(paths), image_files=files)


class _Normaliser:
    """Pixel boxes to [0, 1]; each image's header is read once."""

    def __init__(self, files: Mapping[str, Path], transform: ImageTransform) -> None:
        self._files = files
        self._transform = transform
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._left_out: list[str] = []

    def __call__(self, name: str, box: object, where: str) -> tuple[float, ...] | None:
        """The box, normalised; None where there is none, it is no box of the image, or the image is missing."""
        if box is None:
            return None
        if not isinstance(box, list) or len(box) != 4 or not all(type(edge) in (int, float) for edge in box):
            raise ValueError(f"{where}: expected a box of 4 numbers, got {box!r}")
        size = self._size(name)
        if size is None:
            return None
        width, height = size
        x0, y0, x1, y1 = (float(edge) for edge in box)
        low, high = -MAX_OVERHANG_PIXELS, MAX_OVERHANG_PIXELS
        if not (low <= x0 < x1 <= width + high and low <= y0 < y1 <= height + high):
            self._left_out.append(f"{where}: {box!r} in an image of {width} x {height}")
            return None
        return (max(x0 / width, 0.0), max(y0 / height, 0.0), min(x1 / width, 1.0), min(y1 / height, 1.0))

    def report(self, file: Path) -> None:
        if self._left_out:
            named = "; ".join(self._left_out[:MAX_NAMED])
            logger.warning("%s: %d boxes are left out, the first: %s", file, len(self._left_out), named)

    def _size(self, name: str) -> tuple[int, int] | None:
        if name not in self._sizes:
            path = self._files[name]
            # A missing file is reported with all others, once the records are known.
            self._sizes[name] = self._transform.original_size(path) if path.is_file() else None
        return self._sizes[name]


def _annotation_folder(root: Path, split: str) -> Path:
    relative = Path("quadruple_captions") / f"caption_full.{split}.json"
    found = [folder for folder in (root, *sorted(root.glob("oacirr-*"))) if (folder / relative).is_file()]
    if len(found) != 1:
        places = ", ".join(map(str, found)) or "none"
        raise ValueError(f"{root}: expected one folder with {relative}, in it or in its oacirr-* folders, got {places}")
    return found[0]
