"""CIRR (Liu et al. 2021, release rc2) on disk.

    cirr/captions/cap.rc2.{train,val,test1}.json        pairid, reference, target_hard, caption, img_set
    cirr/image_splits/split.rc2.{train,val,test1}.json  name -> "./dev/dev-....png"
    img_raw/{train/NN,dev,test1}/*.png                  the images; or the three folders beside `cirr`, as SPRC has them

The records of `test1` have no target; they are ranked for the test server.
"""

from collections.abc import Mapping
from pathlib import Path

from region_training.records import read_records, require, resolve_under
from torch import Tensor

from sprc.data import TripletDataset
from sprc.regions import BoxOptions
from sprc.transforms import ImageTransform
from sprc.triplets import (
    OnMissing,
    Triplet,
    TripletSplit,
    check_unique,
    read_name_to_path,
    require_known,
    require_texts,
)

RELEASE = "rc2"
TRAIN_SPLIT, TEST_SPLIT = "train", "test1"
NUM_MEMBERS = 6
IMAGE_FOLDERS = ("img_raw", "cirr/img_raw", ".", "cirr")


class CIRRDataset(TripletDataset):
    """Samples of a split of CIRR.

    Args:
        root: Folder of the data set.
        split: `train`, `val` or `test1`.
        transform: From an image file to the model's input.
        box_file: Boxes by image or by pair; without a file samples have no regions.
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
        box_file: Path | str | None = None,
        box_options: BoxOptions | None = None,
        tokens: Mapping[str, Tensor] | None = None,
        training: bool = False,
        seed: int = 0,
        on_missing: OnMissing = "raise",
    ) -> None:
        super().__init__(
            read_cirr(root, split),
            transform=transform,
            box_file=box_file,
            box_options=box_options,
            tokens=tokens,
            training=training,
            seed=seed,
            on_missing=on_missing,
        )


def read_cirr(root: Path | str, split: str) -> TripletSplit:
    """Read the records of a split of CIRR, in either layout of the images.

    Raises:
        ValueError: A file is not as described above; the message names file, record and key.
        OSError: A file cannot be opened.
    """
    root = Path(root)
    annotations = root / "cirr" if (root / "cirr" / "captions").is_dir() else root
    file = annotations / "captions" / f"cap.{RELEASE}.{split}.json"
    split_file = annotations / "image_splits" / f"split.{RELEASE}.{split}.json"
    paths = read_name_to_path(split_file)
    triplets = [
        _triplet(record, f"{file.name} record {index}", paths, split) for index, record in enumerate(read_records(file))
    ]
    check_unique(triplets, file)
    folder = _image_folder(root, paths, split_file)
    files = {name: resolve_under(folder, path, f"{split_file.name}, key {name!r}") for name, path in paths.items()}
    return TripletSplit(name=split, file=file, triplets=triplets, gallery=list(paths), image_files=files)


def _triplet(record: Mapping[str, object], where: str, paths: Mapping[str, str], split: str) -> Triplet:
    where = f"{where} (pairid {record.get('pairid')!r})"
    reference = require_known(require(record, "reference", str, where), paths, f"{where}, key 'reference'")
    target = None
    # Only a test split may keep its targets to itself.
    if "target_hard" in record or split != TEST_SPLIT:
        target = require_known(require(record, "target_hard", str, where), paths, f"{where}, key 'target_hard'")
    return Triplet(
        pair_id=str(require(record, "pairid", int, where)),
        reference=reference,
        target=target,
        captions=(require(record, "caption", str, where),),
        members=_members(record, where, paths, reference, split),
    )


def _members(
    record: Mapping[str, object], where: str, paths: Mapping[str, str], reference: str, split: str
) -> tuple[str, ...]:
    """The subset of look-alikes, which is scored everywhere but in training."""
    if split == TRAIN_SPLIT and "img_set" not in record:
        return ()
    where = f"{where}, key 'img_set'"
    members = require_texts(require(require(record, "img_set", dict, where), "members", list, where), where)
    if split == TRAIN_SPLIT:
        return members
    if len(set(members)) != NUM_MEMBERS or len(members) != NUM_MEMBERS or reference not in members:
        raise ValueError(
            f"{where}: expected {NUM_MEMBERS} different members with the reference {reference!r} among them, "
            f"got {list(members)!r}"
        )
    for member in members:
        require_known(member, paths, where)
    return members


def _image_folder(root: Path, paths: Mapping[str, str], split_file: Path) -> Path:
    """The folder that the paths of a split start from: the first that has the first image's own folder."""
    if not paths:
        raise ValueError(f"{split_file}: the split has no images")
    first = next(iter(paths.values()))
    for folder in IMAGE_FOLDERS:
        if (root / folder / Path(first).parent).is_dir():
            return root / folder
    tried = ", ".join(str(root / folder) for folder in IMAGE_FOLDERS)
    raise ValueError(f"{split_file}: found no folder of images: looked for {Path(first).parent} under {tried}")
