"""From settings to a split: which format, which transform, which boxes, which images need to be there."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from roi_region_loss.config import RegionLossConfig
from sprc.cirr import CIRRDataset
from sprc.fashioniq import FashionIQDataset
from sprc.opening import needed_images, open_dataset, transform_of


def _boxes(cirr, name="pairs.{split}.json"):
    return replace(cirr.settings.data, box_file=str(cirr.root / "boxes" / name))


@pytest.mark.parametrize(("name", "kind"), [("CIRR", CIRRDataset), ("FashionIQ", FashionIQDataset)])
def test_the_name_of_the_data_set_decides_its_format(world_of, name, kind):
    dataset = world_of(name).open()
    assert type(dataset) is kind
    assert dataset[0].reference_image.shape == (3, 16, 16)


def test_the_gallery_of_fashioniq_is_chosen_by_the_settings(world_of):
    world = world_of("FashionIQ")
    union = open_dataset(replace(world.settings.data, gallery="union"), world.model.config, "val")
    assert union.split.gallery_protocol == "union"
    assert world.open().split.gallery_protocol == "split"


def test_images_become_square_as_the_settings_say_at_the_size_of_the_model(cirr):
    data = cirr.settings.data
    keys = {
        kind: transform_of(replace(data, transform=kind), cirr.model.config).key for kind in ("targetpad", "resize")
    }
    assert keys["targetpad"] != keys["resize"]
    resized = open_dataset(replace(data, transform="resize"), cirr.model.config, "val")
    assert resized.transform.size == cirr.model.config.image_size == 16
    assert any(not torch.equal(resized[row].target_image, cirr.open()[row].target_image) for row in range(8))


def test_the_box_file_may_differ_by_split(cirr):
    config = cirr.model.config
    for split in ("train", "val"):
        dataset = open_dataset(_boxes(cirr), config, split, training=split == "train")
        assert dataset.regions.box_file.path == cirr.root / "boxes" / f"pairs.{split}.json"
        assert any(len(dataset[row].reference_boxes) for row in range(len(dataset)))


def test_without_regions_no_box_file_is_opened(cirr):
    missing = _boxes(cirr, "nowhere.json")
    assert open_dataset(missing, cirr.model.config, "val", with_regions=False).regions is None
    with pytest.raises(ValueError, match=r"nowhere\.json: there is no such box file"):
        open_dataset(missing, cirr.model.config, "val")


def test_regions_are_paired_and_filtered_as_the_model_is_configured(cirr):
    config = type(cirr.model.config)(**{**_own(cirr), "region_loss": {"max_pairs_per_triplet": 1}})
    dataset = open_dataset(_boxes(cirr), config, "val")
    assert dataset.regions.options.loss == RegionLossConfig(max_pairs_per_triplet=1)
    assert dataset.regions.options.grid == (4, 4)
    counts = {len(dataset[row].reference_boxes) for row in range(len(dataset))}
    assert max(counts) == 1
    assert max(len(open_dataset(_boxes(cirr), cirr.model.config, "val")[row].reference_boxes) for row in range(8)) > 1


def _own(cirr):
    config = cirr.model.config
    return {
        "vision_config": config.vision_config,
        "qformer_config": config.qformer_config,
        "num_query_tokens": 3,
        "region_queries": 3,
        "image_text_hidden_size": 8,
        "max_caption_tokens": 12,
    }


def test_coverage_is_asked_of_the_training_split_alone(cirr, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"elsewhere": [[0.1, 0.1, 0.5, 0.5]]}))
    data = replace(cirr.settings.data, box_file=str(file), min_coverage=0.5)
    with pytest.raises(ValueError, match=r"boxes\.json"):
        open_dataset(data, cirr.model.config, "train", training=True)
    assert len(open_dataset(data, cirr.model.config, "val")) == 48


def test_a_file_for_a_few_images_stops_a_training_unless_that_is_meant(cirr, tmp_path):
    """A box file that covers 3 % of the images."""
    names = cirr.open("train").split.gallery
    file = tmp_path / "few.json"
    file.write_text(json.dumps({names[0]: [[0.1, 0.1, 0.9, 0.9]]}))
    data = replace(cirr.settings.data, box_file=str(file))
    with pytest.raises(ValueError, match=r"few\.json: 1 of 30 image keys found.*got 0\.033.*data\.min_coverage"):
        open_dataset(data, cirr.model.config, "train", training=True)
    open_dataset(replace(data, min_coverage=0.0), cirr.model.config, "train", training=True)


def test_missing_images_are_dropped_and_images_left_as_stored_where_that_is_asked_for(cirr, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(cirr.root, root)
    data = replace(cirr.settings.data, root=str(root), upstream_order=True)
    whole = open_dataset(data, cirr.model.config, "val")
    assert whole.transform.upstream_order
    assert not cirr.open("val").transform.upstream_order
    lost = whole.split.triplets[0].reference
    whole.split.image_path(lost).unlink()
    with pytest.raises(ValueError, match="are missing"):
        open_dataset(data, cirr.model.config, "val")
    left = open_dataset(replace(data, on_missing="drop"), cirr.model.config, "val")
    assert len(left) < len(whole)
    assert lost not in left.split.gallery


def test_training_needs_the_images_of_its_triplets_alone(cirr, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(cirr.root, root)
    data = replace(cirr.settings.data, root=str(root))
    splits = root / "cirr/image_splits/split.rc2.train.json"
    splits.write_text(json.dumps({**json.loads(splits.read_text()), "spare": "./train/0/spare.png"}))
    train = open_dataset(data, cirr.model.config, "train", training=True)
    assert "spare" in train.split.gallery
    assert "spare" not in needed_images(train)
    with pytest.raises(ValueError, match=r"1 of 31 image files .* missing.*spare\.png"):
        open_dataset(data, cirr.model.config, "train")


def test_evaluation_needs_the_whole_gallery_once_each(cirr):
    wanted = needed_images(cirr.open("val"))
    assert len(wanted) == len(set(wanted))
    assert set(wanted) == set(cirr.open("val").split.gallery)


def test_a_split_without_targets_opens(cirr):
    dataset = cirr.open("test1")
    assert dataset[0].target_image is None
    assert None not in needed_images(dataset)
