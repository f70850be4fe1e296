"""FashionIQ on disk: three categories, two galleries, four file endings."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sprc.fashioniq import CATEGORIES, FashionIQDataset, read_fashioniq
from sprc.transforms import build_transform

TRANSFORM = build_transform("targetpad", 16)
GALLERIES = {"dress": ["B1", "B2", "B3"], "shirt": ["B4", "B5", "B3"], "toptee": ["B6", "B7"]}
ENDINGS = {"B1": ".png", "B2": ".jpeg", "B3": ".webp"}


def record(candidate: str, target: str | None, *captions: str) -> dict[str, object]:
    made: dict[str, object] = {"candidate": candidate, "captions": list(captions or ("is red.", " has sleeves, "))}
    return made if target is None else made | {"target": target}


RECORDS = {
    "dress": [record("B1", "B3"), record("B3", "B1")],
    "shirt": [record("B4", "B3")],
    "toptee": [record("B6", "B7", "is blue", "is long")],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(split: str = "val", **changes: list[dict[str, object]]) -> Path:
        for category in CATEGORIES:
            for folder, kind, value in (
                ("captions", "cap", (RECORDS | changes)[category]),
                ("image_splits", "split", GALLERIES[category]),
            ):
                file = tmp_path / folder / f"{kind}.{category}.{split}.json"
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(value))
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in {name for names in GALLERIES.values() for name in names}:
            pixels = np.full((20, 16, 3), 20, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{name}{ENDINGS.get(name, '.jpg')}")
        return tmp_path

    return make


def test_categories_come_one_after_the_other(write):
    split = read_fashioniq(write(), "val")
    assert [triplet.pair_id for triplet in split.triplets] == ["dress-0", "dress-1", "shirt-0", "toptee-0"]
    assert [triplet.category for triplet in split.triplets] == ["dress", "dress", "shirt", "toptee"]
    assert split.triplets[0].captions == ("is red.", " has sleeves, ")
    assert split.triplets[0].reference == "B1"
    assert split.triplets[0].target == "B3"


def test_the_gallery_of_a_category_is_its_split_file(write):
    split = read_fashioniq(write(), "val")
    assert split.gallery_protocol == "split"
    assert split.category_galleries == GALLERIES
    assert split.gallery == ["B1", "B2", "B3", "B4", "B5", "B6", "B7"]


def test_or_the_images_that_its_triplets_name(write):
    split = read_fashioniq(write(), "val", gallery="union")
    assert split.gallery_protocol == "union"
    assert split.category_galleries == {"dress": ["B1", "B3"], "shirt": ["B4", "B3"], "toptee": ["B6", "B7"]}
    assert split.gallery == ["B1", "B3", "B4", "B6", "B7"]


def test_one_category_alone(write):
    split = read_fashioniq(write(), "val", categories=("toptee",))
    assert split.gallery == ["B6", "B7"]
    assert len(split.triplets) == 1


def test_images_are_found_by_any_ending(write):
    root = write()
    (root / "images" / "B1.jpg").write_bytes((root / "images" / "B4.jpg").read_bytes())
    split = read_fashioniq(root, "val")
    assert [split.image_path(name).name for name in ("B1", "B2", "B3", "B4")] == [
        "B1.jpg",
        "B2.jpeg",
        "B3.webp",
        "B4.jpg",
    ]
    dataset = FashionIQDataset(root, "val", transform=TRANSFORM)
    assert all(dataset[index].reference_image.shape == (3, 16, 16) for index in range(4))


def test_captions_are_joined(write):
    assert FashionIQDataset(write(), "val", transform=TRANSFORM)[0].caption == "is red and has sleeves"
    dataset = FashionIQDataset(write("train"), "train", transform=TRANSFORM, training=True)
    drawn = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        drawn.add(dataset.caption(0))
    assert drawn == {"is red and has sleeves", "has sleeves and is red", "is red", "has sleeves"}


def test_missing_files_are_listed_and_can_be_dropped(write):
    # fashion-iq issues #8, #10, #13, #18: dead links.
    root = write()
    (root / "images" / "B3.webp").unlink()
    with pytest.raises(ValueError, match=r"1 of 7 image files .*B3\.jpg"):
        FashionIQDataset(root, "val", transform=TRANSFORM)
    dataset = FashionIQDataset(root, "val", transform=TRANSFORM, on_missing="drop")
    assert [triplet.pair_id for triplet in dataset.split.triplets] == ["toptee-0"]
    assert dataset.split.category_galleries == {"dress": ["B1", "B2"], "shirt": ["B4", "B5"], "toptee": ["B6", "B7"]}
    assert "B3" not in dataset.split.gallery


def test_the_test_split_has_no_targets(write):
    root = write("test", **{category: [record(GALLERIES[category][0], None)] for category in CATEGORIES})
    dataset = FashionIQDataset(root, "test", transform=TRANSFORM)
    assert dataset[0].target_image is None


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        (record("B9", "B1"), r"cap\.dress\.val\.json record 1, key 'candidate': 'B9' is no image of the split"),
        (record("B1", "B4"), "record 1, key 'target': 'B4' is no image"),
        (record("B1", None), "record 1: 'target' is missing"),
        (record("B1", "B2", "one"), "record 1, key 'captions': got 1, expected 2"),
        ({"candidate": "B1", "target": "B2", "captions": [1, 2]}, "record 1, key 'captions': expected a list of texts"),
    ],
)
def test_a_faulty_record_is_named_with_its_key(write, faulty, says):
    with pytest.raises(ValueError, match=says):
        read_fashioniq(write(dress=[RECORDS["dress"][0], faulty]), "val")


@pytest.mark.parametrize(
    ("names", "says"),
    [(["B1", "B1"], "'B1' is listed twice"), ({"B1": "a"}, "expected a list of image names")],
)
def test_a_faulty_split_file_is_named(write, names, says):
    root = write()
    (root / "image_splits" / "split.dress.val.json").write_text(json.dumps(names))
    with pytest.raises(ValueError, match=rf"split\.dress\.val\.json: .*{says}"):
        read_fashioniq(root, "val")
