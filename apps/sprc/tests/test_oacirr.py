"""OACIRR on disk: one instance, boxed in pixels in both images."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sprc.oacirr import OACIRRDataset, read_oacirr
from sprc.regions import BoxOptions
from sprc.transforms import build_transform

TRANSFORM = build_transform("resize", 32)
OPTIONS = BoxOptions(grid=(4, 4))
BOXES = {"b": [10, 10, 30, 30]}


def record(**changes: object) -> dict[str, object]:
    return {
        "reference": "a",
        "target": "b",
        "modification_text_mllm": "On a TABLE.",
        "object_category": "bag",
        "reference_bounding_box": [10, 5, 40, 35],
    } | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def make(*records: dict[str, object], boxes: object = BOXES, folder: str = "oacirr-union") -> Path:
        for name in ("a", "b", "c"):
            path = tmp_path / "images" / f"{name}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.zeros((40, 80 if name == "a" else 40, 3), dtype=np.uint8)).save(path)
        for place, value in {
            "quadruple_captions/caption_full.train.json": list(records or [record()]),
            "image_splits/split.train.json": {name: f"images/{name}.jpg" for name in ("a", "b", "c")},
            "image_bounding_box/bounding_box.train.json": boxes,
        }.items():
            (tmp_path / folder / place).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / place).write_text(json.dumps(value))
        return tmp_path

    return make


@pytest.mark.parametrize("folder", ["oacirr-union", "."])
def test_records_with_normalised_boxes(write, folder):
    root = write(record(), record(target_subset_vitG=["b", "c"]), folder=folder)
    split = read_oacirr(root, "train", TRANSFORM)
    first, second = split.triplets
    assert first.pair_id == "0"
    assert first.captions == ("On a TABLE.",)
    assert first.category == "bag"
    assert first.reference_box == (0.125, 0.125, 0.5, 0.875)
    assert first.target_box == (0.25, 0.25, 0.75, 0.75)
    assert first.members == ()
    assert second.members == ()  # OACIRR's own set is not one to be ranked in
    assert split.gallery == ["a", "b", "c"]
    assert split.image_path("a") == root / "images" / "a.jpg"


def test_the_instance_is_the_pair_of_regions(write):
    sample = OACIRRDataset(write(), "train", transform=TRANSFORM, box_options=OPTIONS)[0]
    torch.testing.assert_close(sample.reference_boxes, torch.tensor([[0.125, 0.125, 0.5, 0.875]]))
    torch.testing.assert_close(sample.target_boxes, torch.tensor([[0.25, 0.25, 0.75, 0.75]]))
    assert sample.pair_weights.tolist() == [1.0]
    assert sample.caption == "on a table"


def test_regions_can_be_left_out_or_come_from_elsewhere(write, tmp_path):
    root = write()
    assert len(OACIRRDataset(root, "train", transform=TRANSFORM, with_regions=False)[0].pair_weights) == 0
    (tmp_path / "own.json").write_text(json.dumps({"a": [[0, 0, 1, 1]], "b": [[0, 0, 0.5, 0.5]]}))
    dataset = OACIRRDataset(root, "train", transform=TRANSFORM, box_file=tmp_path / "own.json", box_options=OPTIONS)
    torch.testing.assert_close(dataset[0].target_boxes, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))


@pytest.mark.parametrize("box", [[40, 5, 10, 35], [10, 5, 90, 35], [-5, 5, 30, 35], [10, 5, 10, 35]])
def test_a_box_that_is_none_is_left_out_and_counted(write, caplog, box):
    with caplog.at_level(logging.WARNING):
        split = read_oacirr(write(record(reference_bounding_box=box)), "train", TRANSFORM)
    assert split.triplets[0].reference_box is None
    assert "1 boxes are left out" in caplog.text
    assert "record 0" in caplog.text


def test_an_overhang_of_a_pixel_is_cut_off(write):
    split = read_oacirr(write(record(reference_bounding_box=[-0.5, 0, 81, 40])), "train", TRANSFORM)
    assert split.triplets[0].reference_box == (0.0, 0.0, 1.0, 1.0)


def test_too_few_boxes_are_an_error_where_they_are_demanded(write):
    root = write(record(), record(reference_bounding_box=None), boxes=BOXES)
    options = BoxOptions(grid=(4, 4), min_coverage=0.6)
    with pytest.raises(ValueError, match=r"1 of 2 triplets have a region pair; expected a share of 0\.6"):
        OACIRRDataset(root, "train", transform=TRANSFORM, box_options=options)


def test_missing_images_are_listed_with_all_others(write):
    root = write()
    (root / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 image files .*a\.jpg"):
        OACIRRDataset(root, "train", transform=TRANSFORM, training=True)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reference": "z"}, r"caption_full\.train\.json record 0, key 'reference': 'z' is no image"),
        ({"target": 3}, "record 0: 'target' is 3"),
        ({"modification_text_mllm": None}, "'modification_text_mllm' is None"),
        ({"reference_bounding_box": [1, 2, 3]}, "record 0, reference: expected a box of 4 numbers"),
    ],
)
def test_a_faulty_record_is_named_with_its_key(write, changes, says):
    with pytest.raises(ValueError, match=says):
        read_oacirr(write(record(**changes)), "train", TRANSFORM)


def test_a_faulty_file_of_boxes_is_named(write):
    with pytest.raises(ValueError, match=r"bounding_box\.train\.json: expected an object"):
        read_oacirr(write(boxes=[1]), "train", TRANSFORM)


def test_without_annotations_the_places_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"caption_full\.val\.json.*got none"):
        read_oacirr(tmp_path, "val", TRANSFORM)
