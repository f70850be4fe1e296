"""FashionIQ (Wu et al. 2021) on disk.

    captions/cap.{dress,shirt,toptee}.{train,val,test}.json        candidate, target, captions (two)
    image_splits/split.{dress,shirt,toptee}.{train,val,test}.json  names of all images
    images/NAME.jpg                                                or .jpeg, .png, .webp

Each category is searched in a gallery of its own. Two are in use, and scores are not comparable across them: the
images of the split's file (`split`), and the images that some triplet names (`union`). Many of the images' addresses
are dead, so that a copy of the data set may lack files: these are found and listed before anything is read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from region_training.records import read_records, require
from torch import Tensor

from sprc.data import TripletDataset
from sprc.regions import BoxOptions
from sprc.transforms import ImageTransform
from sprc.triplets import GalleryProtocol, OnMissing, Triplet, TripletSplit, read_names, require_known, require_texts

CATEGORIES = ("dress", "shirt", "toptee")
TEST_SPLIT = "test"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
"""In the order in which they are preferred where an image is there more than once."""
NUM_CAPTIONS = 2


class FashionIQDataset(TripletDataset):
    """Samples of a split of FashionIQ; in training the two captions are joined in one of four ways.

    Args:
        root: Folder of the data set.
        split: `train`, `val` or `test`.
        transform: From an image file to the model's input.
        categories: Which categories, in which order.
        gallery: Which images are searched, see `TripletSplit`.
        box_file: Boxes by image or by pair (`dress-12`); without a file samples have no regions.
        box_options: How boxes are read, paired and filtered.
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
        categories: Sequence[str] = CATEGORIES,
        gallery: GalleryProtocol = "split",
        box_file: Path | str | None = None,
        box_options: BoxOptions | None = None,
        tokens: Mapping[str, Tensor] | None = None,
        training: bool = False,
        seed: int = 0,
        on_missing: OnMissing = "raise",
    ) -> None:
        super().__init__(
            read_fashioniq(root, split, categories=categories, gallery=gallery),
            transform=transform,
            box_file=box_file,
            box_options=box_options,
            tokens=tokens,
            training=training,
            seed=seed,
            on_missing=on_missing,
        )


def read_fashioniq(
    root: Path | str, split: str, *, categories: Sequence[str] = CATEGORIES, gallery: GalleryProtocol = "split"
) -> TripletSplit:
    """Read the records of a split of FashionIQ.

    Args:
        root: Folder of the data set.
        split: `train`, `val` or `test`.
        categories: Which categories, in which order.
        gallery: Which images are searched, see `TripletSplit`.

    Raises:
        ValueError: A file is not as described above; the message names file, record and key.
        OSError: A file cannot be opened.
    """
    root = Path(root)
    triplets: list[Triplet] = []
    galleries: dict[str, list[str]] = {}
    for category in categories:
        file = root / "captions" / f"cap.{category}.{split}.json"
        names = read_names(root / "image_splits" / f"split.{category}.{split}.json")
        known = dict.fromkeys(names)
        own = [_triplet(record, index, file, category, known, split) for index, record in enumerate(read_records(file))]
        triplets += own
        galleries[category] = names if gallery == "split" else _named_by(own)
    everything = list(dict.fromkeys(name for names in galleries.values() for name in names))
    return TripletSplit(
        name=split,
        file=root / "captions",
        triplets=triplets,
        gallery=everything,
        image_files=_image_files(root / "images", everything),
        category_galleries=galleries,
        gallery_protocol=gallery,
    )


def _triplet(
    record: Mapping[str, object], index: int, file: Path, category: str, known: Mapping[str, object], split: str
) -> Triplet:
    where = f"{file.name} record {index}"
    captions = require_texts(require(record, "captions", list, where), f"{where}, key 'captions'")
    if len(captions) != NUM_CAPTIONS:
        raise ValueError(f"{where}, key 'captions': got {len(captions)}, expected {NUM_CAPTIONS}: {list(captions)!r}")
    target = None
    if "target" in record or split != TEST_SPLIT:
        target = require_known(require(record, "target", str, where), known, f"{where}, key 'target'")
    return Triplet(
        pair_id=f"{category}-{index}",
        reference=require_known(require(record, "candidate", str, where), known, f"{where}, key 'candidate'"),
        target=target,
        captions=captions,
        category=category,
    )


def _named_by(triplets: Sequence[Triplet]) -> list[str]:
    names = (name for triplet in triplets for name in (triplet.reference, triplet.target))
    return list(dict.fromkeys(name for name in names if name is not None))


def _image_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The file of every image; an image that has none gets the path that was expected."""
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    files = {}
    for name in names:
        endings = (ending for ending in IMAGE_ENDINGS if f"{name}{ending}" in present)
        files[name] = folder / f"{name}{next(endings, IMAGE_ENDINGS[0])}"
    return files
