"""The small world is a data set in the warehouse format, the same from the same settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from region_core.rle import decode_rle
from region_training.images import read_depth, read_image
from spatialrgpt.scenes import IMAGE_HEIGHT, IMAGE_WIDTH, MAX_DEPTH_M, sample_scene
from spatialrgpt.synthetic import write_world


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_records_have_the_fields_of_the_warehouse_format(world, world_settings):
    records = json.loads((world / "train.json").read_text())
    assert len({record["image"] for record in records}) == world_settings.train_scenes
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        human, assistant = record["conversations"]
        assert (human["from"], assistant["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image>\n")
        assert human["value"].count("<mask>") == len(record["rle"])
        assert record["freeform_answer"] == assistant["value"]
        assert record["category"] in ("distance", "left_right", "mcq", "count")
        assert (world / "train/images" / record["image"]).is_file()


def test_pictures_depths_and_masks_are_those_of_the_scene(world, world_settings):
    record = json.loads((world / "train.json").read_text())[0]
    scene = sample_scene(np.random.default_rng([world_settings.seed, 0, 0]))
    np.testing.assert_array_equal(read_image(world / "train/images" / record["image"]), scene.image)
    depth = read_depth(world / "train/depths/000000_depth.png")
    assert np.abs(depth * MAX_DEPTH_M - scene.depth_m).max() <= MAX_DEPTH_M / 255 / 2 + 1e-5
    for rle in record["rle"]:
        mask = decode_rle(rle, height=IMAGE_HEIGHT, width=IMAGE_WIDTH)
        assert any((mask == own).all() for own in scene.masks)


def test_held_out_scenes_are_not_training_scenes(world):
    train, held_out = (
        {path.read_bytes() for path in (world / split / "images").iterdir()} for split in ("train", "val")
    )
    assert not train & held_out


def test_a_half_written_split_is_written_again_to_the_same_bytes(world, world_settings, tmp_path):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    (copy / "val.json").rename(copy / "val.json.partial")
    (copy / "val/images/000001.png").write_bytes(b"cut o")
    (copy / "train/images/000000.png").write_bytes(b"a finished split is left alone")
    write_world(copy, world_settings)
    found, expected = contents(copy), contents(world)
    assert found.pop("train/images/000000.png") == b"a finished split is left alone"
    expected.pop("train/images/000000.png")
    assert found == expected


def test_another_world_is_refused_and_nothing_written(world, world_settings, tmp_path):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    with pytest.raises(ValueError, match=r"a world is there .*and another was asked for .*delete the folder"):
        write_world(copy, replace(world_settings, seed=world_settings.seed + 1))
    assert contents(copy) == contents(world)


def test_data_that_are_no_world_are_left_alone(world_settings, tmp_path):
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(ValueError, match="nobody knows"):
        write_world(tmp_path, world_settings)
    assert list(contents(tmp_path)) == ["train.json"]
