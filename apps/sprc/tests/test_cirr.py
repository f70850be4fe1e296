"""CIRR on disk: both layouts, every field, and what is said of faults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sprc.cirr import CIRRDataset, read_cirr
from sprc.data import NO_IMAGE_ID
from sprc.transforms import build_transform

TRANSFORM = build_transform("targetpad", 16)
NAMES = [f"dev-{index}" for index in range(7)]


def record(pair_id: int = 1, reference: int = 0, target: int | None = 1, **changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "pairid": pair_id,
        "reference": NAMES[reference],
        "caption": "Show ONE dog.",
        "img_set": {"id": 9, "members": NAMES[:6], "reference_rank": 0},
    }
    if target is not None:
        made |= {"target_hard": NAMES[target], "target_soft": {NAMES[target]: 1.0}}
    return made | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records beside seven images of 40 x 24 pixels."""

    def make(*records: dict[str, object], split: str = "val", images: str = "img_raw") -> Path:
        for index, name in enumerate(NAMES):
            path = tmp_path / images / "dev" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((24, 40, 3), 10 * index, dtype=np.uint8)).save(path)
        for folder, kind, value in (
            ("captions", "cap", list(records)),
            ("image_splits", "split", {name: f"./dev/{name}.png" for name in NAMES}),
        ):
            file = tmp_path / "cirr" / folder / f"{kind}.rc2.{split}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value))
        return tmp_path

    return make


@pytest.mark.parametrize("images", ["img_raw", "cirr/img_raw", "."])
def test_all_layouts_of_the_images_are_read(write, images):
    root = write(record(12), record(13, 2, 3), images=images)
    split = read_cirr(root, "val")
    assert [triplet.pair_id for triplet in split.triplets] == ["12", "13"]
    assert split.gallery == NAMES
    assert split.category_galleries == {}
    assert split.triplets[1].reference == "dev-2"
    assert split.triplets[1].target == "dev-3"
    assert split.triplets[0].members == tuple(NAMES[:6])
    assert split.image_path("dev-4") == root / images / "dev" / "dev-4.png"
    assert split.file.name == "cap.rc2.val.json"


def test_annotations_may_lie_in_the_root_itself(write):
    root = write(record())
    for folder in ("captions", "image_splits"):
        shutil.move(root / "cirr" / folder, root / folder)
    assert len(read_cirr(root, "val").triplets) == 1


def test_a_sample_is_pixels_and_a_clean_caption(write):
    dataset = CIRRDataset(write(record(5, 2, 3)), "val", transform=TRANSFORM)
    sample = dataset[0]
    assert len(dataset) == 1
    assert sample.caption == "show one dog"
    assert sample.pair_id == "5"
    assert sample.reference_image.shape == (3, 16, 16)
    # The guide's first five fields, and black above and below since the image is wide.
    reference, target, _, reference_boxes, target_boxes = sample[:5]
    assert reference[:, 8, 8].tolist() == [20] * 3
    assert target[:, 8, 8].tolist() == [30] * 3
    assert reference[:, 0].max() == 0
    assert reference_boxes.shape == target_boxes.shape == (0, 4)


def test_the_test_split_has_queries_without_targets(write):
    dataset = CIRRDataset(write(record(target=None), split="test1"), "test1", transform=TRANSFORM)
    sample = dataset[0]
    assert sample.target_image is None
    assert sample.target_id == NO_IMAGE_ID
    assert dataset.split.triplets[0].target is None
    assert len(dataset.split.triplets[0].members) == 6


def test_training_records_need_no_subset(write):
    bare = record()
    del bare["img_set"]
    assert read_cirr(write(bare, split="train"), "train").triplets[0].members == ()


def test_the_same_image_has_the_same_id_on_either_side(write):
    dataset = CIRRDataset(write(record(1, 0, 1), record(2, 1, 2)), "val", transform=TRANSFORM)
    assert dataset[0].target_id == dataset[1].reference_id
    assert dataset[0].reference_id != dataset[0].target_id


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairid": "seven"}, "cap.rc2.val.json record 0 .*'pairid'.*expected int"),
        ({"reference": "dev-99"}, "record 0 .*'reference'.*'dev-99' is no image of the split"),
        ({"target_hard": "dev-99"}, "'target_hard'.*'dev-99' is no image of the split"),
        ({"caption": None}, "'caption' is None"),
        ({"img_set": {"members": NAMES[:5]}}, "'img_set'.*expected 6 different members"),
        ({"img_set": {"members": NAMES[1:7]}}, "'img_set'.*reference 'dev-0'"),
        ({"img_set": {"members": [*NAMES[:5], "dev-99"]}}, "'img_set'.*'dev-99' is no image"),
        ({"img_set": {"members": "six"}}, "'members' is 'six'"),
    ],
)
def test_a_faulty_record_is_named_with_its_key(write, changes, says):
    with pytest.raises(ValueError, match=says):
        read_cirr(write(record() | changes), "val")


def test_a_missing_target_is_an_error_outside_the_test_split(write):
    with pytest.raises(ValueError, match="'target_hard' is missing"):
        read_cirr(write(record(target=None)), "val")


def test_a_pair_that_stands_twice_is_an_error(write):
    with pytest.raises(ValueError, match="pair '4' stands twice"):
        read_cirr(write(record(4), record(4)), "val")


def test_an_image_outside_the_root_is_refused(write):
    root = write(record())
    file = root / "cirr/image_splits/split.rc2.val.json"
    file.write_text(json.dumps({name: f"./dev/{name}.png" for name in NAMES[:-1]} | {NAMES[-1]: "../../secret.png"}))
    with pytest.raises(ValueError, match=r"'dev-6'.*leads out of"):
        read_cirr(root, "val")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('["dev-0"]', "expected an object from image names to paths"),
        ('{"dev-0": "a.png", "dev-0": "b.png"}', "the key 'dev-0' stands twice"),
        ('{"dev-0": ', "split.rc2.val.json.*line 1"),
        ("{}", "the split has no images"),
    ],
)
def test_a_faulty_split_file_is_named(write, text, says):
    root = write()
    (root / "cirr/image_splits/split.rc2.val.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        read_cirr(root, "val")


def test_without_images_the_places_are_named(write):
    root = write(record())
    shutil.rmtree(root / "img_raw")
    with pytest.raises(ValueError, match=r"no folder of images.*img_raw"):
        read_cirr(root, "val")


def test_missing_images_are_listed_before_anything_is_read(write):
    root = write(record(1, 0, 1), record(2, 2, 3))
    for index in (1, 6):
        (root / f"img_raw/dev/dev-{index}.png").unlink()
    with pytest.raises(ValueError, match=r"2 of 7 image files .*dev-1\.png.*dev-6\.png"):
        CIRRDataset(root, "val", transform=TRANSFORM)
    # Nothing is ranked in training, so the image that no triplet names may be missing.
    with pytest.raises(ValueError, match=r"1 of 4 image files .*dev-1\.png"):
        CIRRDataset(root, "val", transform=TRANSFORM, training=True)
    dataset = CIRRDataset(root, "val", transform=TRANSFORM, on_missing="drop")
    assert [triplet.pair_id for triplet in dataset.split.triplets] == ["2"]
    assert dataset.split.gallery == [name for name in NAMES if name not in ("dev-1", "dev-6")]


def test_dropping_everything_is_an_error(write):
    root = write(record(1, 0, 1))
    (root / "img_raw/dev/dev-1.png").unlink()
    with pytest.raises(ValueError, match="no triplet is left"):
        CIRRDataset(root, "val", transform=TRANSFORM, on_missing="drop")


def test_a_damaged_image_is_named_with_its_record(write):
    # Trap "swallowed exceptions": upstream returns None and the batch shrinks in silence.
    root = write(record(3, 0, 1))
    (root / "img_raw/dev/dev-1.png").write_bytes(b"\x89PNG broken")
    dataset = CIRRDataset(root, "val", transform=TRANSFORM)
    with pytest.raises(ValueError, match=r"cap\.rc2\.val\.json, pair '3'.*'dev-1'.*dev-1\.png"):
        dataset[0]


def test_cached_tokens_replace_the_images(write):
    root = write(record(3, 0, 1))
    tokens = {name: torch.full((5, 4), float(index)) for index, name in enumerate(NAMES)}
    dataset = CIRRDataset(root, "val", transform=TRANSFORM, tokens=tokens)
    (root / "img_raw/dev/dev-1.png").write_bytes(b"never opened")
    assert torch.equal(dataset[0].target_image, tokens["dev-1"])
    assert torch.equal(dataset.read_input("dev-3"), tokens["dev-3"])
    del tokens["dev-1"]
    with pytest.raises(ValueError, match=r"pair '3'.*token cache has no image 'dev-1'"):
        dataset[0]
