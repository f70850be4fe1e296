"""Images of RefCOCO's evaluation splits are kept out of training, or it is said that they are not."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from psalm.config import DataSettings
from psalm.data import open_sources


def write_eval_refs(tmp_path: Path, root: Path) -> str:
    """Training sentences as they are, and evaluation splits that name two images of the training images."""
    train = json.loads((root / "refcoco/refcoco_train.json").read_text())
    ids = sorted({record["image_info"]["id"] for record in train})[:2]
    for split, own in (("train", ids), ("val", ids[:1]), ("testA", ids[1:])):
        records = train if split == "train" else [record for record in train if record["image_info"]["id"] in own]
        (tmp_path / f"{split}.json").write_text(json.dumps(records))
    return str(tmp_path / "{split}.json")


def modes(settings: DataSettings) -> list[tuple[str, int]]:
    return [(source.mode, len(source)) for source in open_sources(settings, "val", training=False)]


def test_images_of_refcocos_evaluation_are_left_out_of_training(world, root, tmp_path):
    settings = world(ref_coco=write_eval_refs(tmp_path, root), exclude_ref_eval_images=True)
    kept = replace(settings, exclude_ref_eval_images=False)
    sizes, all_sizes = (
        {source.mode: len(source) for source in open_sources(one, "train", training=True)} for one in (settings, kept)
    )
    for mode in ("panoptic", "semantic", "instance", "region"):
        assert sizes[mode] == all_sizes[mode] - 2
    assert sizes["referring"] < all_sizes["referring"]
    assert sizes["cross_image"] == all_sizes["cross_image"]
    # Held-out data are what they are.
    assert modes(settings) == modes(kept)


def test_a_missing_evaluation_file_is_said(world, root, tmp_path, caplog):
    settings = world(ref_coco=write_eval_refs(tmp_path, root), exclude_ref_eval_images=True)
    with caplog.at_level(logging.WARNING):
        open_sources(settings, "train", training=True)
    missing = [record.message for record in caplog.records if "not left out of training" in record.message]
    assert missing == [f"{tmp_path / 'testB.json'} is not there: its images are not left out of training"]


def test_images_of_refcocos_evaluation_are_left_out_of_own_data(world, root, tmp_path):
    refs = write_eval_refs(tmp_path, root)
    number = json.loads(Path(refs.replace("{split}", "val")).read_text())[0]["image_info"]["id"]
    names = (f"{number:012d}.jpg", "a.jpg")
    (tmp_path / "own.json").write_text(json.dumps([{"image": name, "sentence": "a", "targets": []} for name in names]))
    settings = world(
        ref_coco=refs, own_json=str(tmp_path / "own.json"), own_images=str(tmp_path), exclude_ref_eval_images=True
    )
    own = {source.name: source for source in open_sources(settings, "train", training=True)}["own"]
    assert own.texts() == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ref_coco": "refs/train.json"}, r"with \{split\} in their path, .*refs/train\.json"),
        ({"ref_coco": "nowhere/{split}.json"}, r"found none of nowhere/val\.json, nowhere/testA\.json"),
        # One data set's evaluation files do not stand for another's.
        ({"ref_coco_g": "nowhere/{split}.json"}, r"data\.ref_coco_g: found none of nowhere/val\.json"),
    ],
)
def test_leaving_out_needs_the_files_of_the_other_splits(world, changes, message):
    settings = world(**changes, exclude_ref_eval_images=True)
    with pytest.raises(ValueError, match=message):
        open_sources(settings, "train", training=True)


def test_without_refcoco_training_goes_on_and_says_that_nothing_is_left_out(world, caplog):
    caplog.set_level(logging.WARNING)
    settings = world(ref_coco=None, exclude_ref_eval_images=True)
    kept = replace(settings, exclude_ref_eval_images=False)
    sizes, all_sizes = (
        [len(source) for source in open_sources(one, "train", training=True)] for one in (settings, kept)
    )
    assert sizes == all_sizes
    (record,) = caplog.records
    assert "no image is left out of training" in record.getMessage()
    assert "data.ref_coco (--ref_coco_path)" in record.getMessage()
    caplog.clear()
    open_sources(settings, "val", training=False)
    assert not caplog.records


def test_a_training_file_leads_to_its_evaluation_files(world, root, tmp_path):
    pattern = write_eval_refs(tmp_path, root)
    settings = world(ref_coco=pattern, exclude_ref_eval_images=True)
    named = world(ref_coco=pattern.replace("{split}", "train"), exclude_ref_eval_images=True)
    assert named == settings
