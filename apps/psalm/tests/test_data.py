"""From settings to samples, on the small world and with files left out."""

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from psalm.config import DataSettings
from psalm.data import describe_shared, open_dataset, open_sources, shared_files
from psalm.modes import MODES


def named(settings: DataSettings, split: str = "val", *, training: bool = False) -> list[tuple[str, str]]:
    return [(source.mode, source.name) for source in open_sources(settings, split, training=training)]


def test_every_path_that_is_given_joins(world):
    assert named(world(), "train", training=True) == [
        ("panoptic", "panoptic"),
        ("semantic", "semantic"),
        ("instance", "instance"),
        ("referring", "refcoco"),
        ("region", "region"),
        ("cross_image", "cross_image"),
    ]
    without = world(coco_root=None, region_json=None, cross_image_json=None)
    assert named(without) == [("referring", "refcoco")]


def test_the_synthetic_world_gives_the_paths_that_are_not_given(root, world, scenes):
    assert named(DataSettings(synthetic=scenes, synthetic_root=str(root))) == named(world())


def test_prompts_are_evaluated_one_type_at_a_time(world):
    regions = [name for mode, name in named(world(region_mask_type="box||point")) if mode == "region"]
    assert regions == ["point", "box"]


def test_modes_choose(world):
    assert named(world(modes=["referring", "semantic"])) == [("semantic", "semantic"), ("referring", "refcoco")]
    assert [mode for mode, _ in named(world(seg_task="instance"))][:1] == ["instance"]
    assert "cross_image" not in dict(named(world(cross_image_seg_task=False)))


def test_samples_of_all_modes_can_be_read(world):
    for split, training in (("train", True), ("val", False)):
        dataset = open_dataset(world(augment=True), split, training=training)
        modes = set()
        for index in range(len(dataset)):
            sample, source = dataset[index], dataset.source_of(index)
            modes.add(sample.mode)
            assert sample.mode == source.mode
            assert sample.record_id == dataset.where(index)
            assert sample.image.shape == (3, 64, 64)
            assert (sample.reference_image is not None) == (sample.mode == "cross_image")
        assert modes == set(MODES)
        assert dataset.scene(0).mode == "panoptic"
        assert pickle.loads(pickle.dumps(dataset)).where(0) == dataset.where(0)  # noqa: S301 - our own object
        with pytest.raises(IndexError, match=f"got index {len(dataset)}"):
            dataset[len(dataset)]


def test_a_sample_is_a_function_of_seed_epoch_and_index(world):
    first, again, other = (open_dataset(world(augment=True), "train", training=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[3].image, again[3].image)
    assert not torch.equal(first[3].image, other[3].image)
    before = first[3].image
    first.set_epoch(1)
    assert not torch.equal(first[3].image, before)
    first.set_epoch(0)
    assert torch.equal(first[3].image, before)


def test_evaluation_draws_nothing(world):
    first, other = (open_dataset(world(augment=True), "val", training=False, seed=seed) for seed in (1, 2))
    first.set_epoch(4)
    for index in range(len(first)):
        assert torch.equal(first[index].masks, other[index].masks)
        assert first[index].conditions == other[index].conditions


def test_texts_are_all_words_the_model_may_read(world):
    texts = open_dataset(world(), "train", training=True).texts()
    assert {"brick", "sky", "background"} <= set(texts)
    assert len(set(texts)) == len(texts)
    assert any(text.startswith("the ") for text in texts)
    assert "background" not in open_dataset(world(modes=["referring"]), "train", training=True).texts()


def write_eval_refs(tmp_path: Path, root: Path) -> str:
    """Training sentences as they are, and evaluation splits that name two images of the training images."""
    train = json.loads((root / "refcoco/refcoco_train.json").read_text())
    ids = sorted({record["image_info"]["id"] for record in train})[:2]
    for split, own in (("train", ids), ("val", ids[:1]), ("testA", ids[1:])):
        records = train if split == "train" else [record for record in train if record["image_info"]["id"] in own]
        (tmp_path / f"{split}.json").write_text(json.dumps(records))
    return str(tmp_path / "{split}.json")


def test_a_split_that_one_data_set_has_is_evaluated_there_alone(world, root, tmp_path, caplog):
    # As a full preset on RefCOCO's testA, which neither COCO nor RefCOCOg have.
    refs, own = write_eval_refs(tmp_path, root), str(tmp_path / "own_{split}.json")
    settings = world(ref_coco=refs, ref_coco_g=str(tmp_path / "g_{split}.json"), own_json=own, own_images=".")
    with caplog.at_level(logging.WARNING):
        assert named(settings, "testA") == [("referring", "refcoco")]
    for key in ("coco_root", "ref_coco_g", "region_json", "cross_image_json", "own_json"):
        assert f"data.{key}: " in caplog.text
    caplog.clear()
    alone = replace(settings, modes=["referring"], own_json=None, ref_coco_g=None)
    with caplog.at_level(logging.WARNING):
        assert named(alone, "testA") == [("referring", "refcoco")]
    assert not caplog.records
    with pytest.raises(ValueError, match=r"neither annotations/panoptic_testA2017\.json"):
        open_sources(settings, "testA", training=True)
    with pytest.raises(OSError, match=r"g_testA\.json"):
        open_sources(replace(settings, coco_root=None), "testA", training=True)
    with pytest.raises(OSError, match=r"one\.json"):  # the path of every split
        open_sources(replace(settings, ref_coco=str(tmp_path / "one.json")), "testA", training=False)


def test_files_of_training_and_evaluation_alike_are_named(world, root, tmp_path, scenes):
    assert shared_files(world()) == []
    assert describe_shared(world()) is None
    val = root / "coco_interactive_val_psalm.json"
    (tmp_path / "r_train.json").symlink_to(val)
    (tmp_path / "r_val.json").symlink_to(val)
    for path in (val, tmp_path / "r_{split}.json"):
        assert shared_files(world(region_json=str(path))) == [val.resolve()]
        assert shared_files(world(region_json=str(path), modes=["panoptic"])) == []
    assert "coco_interactive_val_psalm.json is read for" in str(describe_shared(world(region_json=str(val))))
    names = {path.name for path in shared_files(world(train_split="val"))}
    assert {"panoptic_val2017.json", "instances_val2017.json", "refcoco_val.json", "cross_image_val.json"} < names
    assert len(shared_files(DataSettings(synthetic=scenes, synthetic_root=str(root), train_split="val"))) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refcoco_images": None}, "data.ref_coco is given and data.refcoco_images"),
        ({"region_images": None}, "data.region_json is given and data.region_images"),
        ({"cross_image_images": None}, "data.cross_image_json is given and data.cross_image_images"),
        ({"own_json": "own.json"}, "data.own_json is given and data.own_images"),
        ({"coco_root": "nowhere"}, "'nowhere' has neither annotations/panoptic_val2017.json nor"),
        (
            dict.fromkeys(("coco_root", "ref_coco", "region_json", "cross_image_json")),
            "paths are given for no data set",
        ),
        ({"modes": []}, "no sample of the modes none; paths are given for data.coco_root, data.ref_coco"),
    ],
)
def test_settings_that_lead_nowhere(world, changes, message):
    with pytest.raises(ValueError, match=message):
        open_sources(world(**changes), "val", training=False)


def test_a_missing_reading_of_coco_is_said(world, tmp_path, root, caplog):
    (tmp_path / "annotations").mkdir()
    name = "annotations/instances_val2017.json"
    (tmp_path / name).write_text((root / "coco" / name).read_text())
    with caplog.at_level(logging.WARNING):
        assert named(world(coco_root=str(tmp_path)))[0] == ("instance", "instance")
    assert "no panoptic and no semantic segmentation" in caplog.text
    (tmp_path / name).rename(tmp_path / "other.json")
    (tmp_path / "annotations/panoptic_val2017.json").write_text(
        (root / "coco/annotations/panoptic_val2017.json").read_text()
    )
    with caplog.at_level(logging.WARNING):
        assert named(world(coco_root=str(tmp_path)))[:2] == [("panoptic", "panoptic"), ("semantic", "semantic")]
    assert "no instance segmentation" in caplog.text


def test_own_data_joins(world, tmp_path, root):
    record = {"image": "1.jpg", "sentence": "a", "targets": []}
    (tmp_path / "own_val.json").write_text(json.dumps([record]))
    settings = world(own_json=str(tmp_path / "own_{split}.json"), own_images=str(tmp_path))
    assert named(settings)[-1] == ("referring", "own")
    assert ("referring", "own") not in named(replace(settings, modes=["panoptic"]))


def test_a_source_without_samples_is_left_out_with_a_warning(world, tmp_path, caplog):
    (tmp_path / "none.json").write_text("[]")
    with caplog.at_level(logging.WARNING):
        assert "region" not in dict(named(world(region_json=str(tmp_path / "none.json"), region_mask_type="box")))
    assert "box of mode region has no samples in the split 'val'" in caplog.text


def test_a_seg_task_without_data_is_said(world, caplog):
    caplog.set_level(logging.WARNING)
    named(world(seg_task="region"))
    assert not caplog.records
    named(world(seg_task="region", region_json=None, modes=["panoptic", "region"]))
    (record,) = caplog.records
    assert "data.seg_task (--seg_task) is region, of which the split 'val' has no samples" in record.getMessage()
    assert record.getMessage().endswith("the headline is the mean of panoptic")


def test_image_pairs_that_are_asked_for_and_not_given_are_said(world, caplog):
    caplog.set_level(logging.WARNING)
    named(world(cross_image_seg_task=True))
    named(world(cross_image_json=None))
    assert not caplog.records
    named(world(cross_image_seg_task=True, cross_image_json=None))
    (record,) = caplog.records
    assert (
        "data.cross_image_seg_task (--cross_image_seg_task) is true, but the split 'val' has no" in record.getMessage()
    )
    assert "data.cross_image_json (--region_cross_json_path)" in record.getMessage()
