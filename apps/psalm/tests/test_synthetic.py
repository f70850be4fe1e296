"""The small world lies on disk as COCO, RefCOCO and PSALM's own files do, and all files say the same of an image."""

import json
import shutil
from collections import Counter
from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from psalm.config import DataSettings, SyntheticSettings
from psalm.scenes import SHADES, STUFF, THINGS, Name, sample_pair, sample_scene
from psalm.synthetic import CATEGORY_IDS, paths_of, write_world
from region_core import decode_rle
from region_training.images import read_image

SETTINGS = SyntheticSettings(train_scenes=24, eval_scenes=6, image_size=64, seed=0)
PROMPTS = ("point", "scribble", "box", "mask")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, SETTINGS)
    return root


def read(world, setting, split="train"):
    return json.loads(Path(paths_of(world)[setting].replace("{split}", split)).read_text())


def coco(world, kind, split="train"):
    return json.loads((world / f"coco/annotations/{kind}_{split}2017.json").read_text())


def decode(rle, info):
    return decode_rle(rle, height=info["height"], width=info["width"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def segment_masks(world, record, split="train"):
    """Masks of a panoptic map by class, decoded as COCO says."""
    pixels = read_image(world / f"coco/panoptic_{split}2017" / record["file_name"]).astype(int)
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    assert set(np.unique(ids)) == {segment["id"] for segment in record["segments_info"]}  # no void
    return [(segment, ids == segment["id"]) for segment in record["segments_info"]]


def test_panoptic_maps_are_the_scenes_masks(world):
    file = coco(world, "panoptic")
    names = {category["id"]: category["name"] for category in file["categories"]}
    assert len(file["annotations"]) == len(file["images"]) == 24
    for index, record in enumerate(file["annotations"]):
        scene = sample_scene(np.random.default_rng([0, 0, 0, index]), 64)
        found = segment_masks(world, record)
        assert [names[segment["category_id"]] for segment, _ in found] == [
            *(name.kind for name in scene.names),
            *scene.stuff,
        ]
        np.testing.assert_array_equal([mask for _, mask in found], [*scene.masks, *scene.stuff_masks])
        for segment, mask in found:
            assert segment["area"] == mask.sum()
            assert segment["iscrowd"] == 0


def test_segment_ids_need_all_three_bytes(world):
    ids = [segment["id"] for record in coco(world, "panoptic")["annotations"] for segment in record["segments_info"]]
    assert 0 < min(ids) <= max(ids) < 2**24
    assert max(ids) > 2**16


def test_categories_have_gaps_and_say_what_is_countable(world):
    categories = coco(world, "panoptic")["categories"]
    assert [category["name"] for category in categories] == [*THINGS, *STUFF]
    assert [category["isthing"] for category in categories] == [1] * 5 + [0] * 4
    ids = [category["id"] for category in categories]
    assert ids == sorted(set(ids))
    assert not set(ids) & set(range(2))  # an id is never the position
    assert all(np.diff(ids) > 1)
    assert [category["name"] for category in coco(world, "instances")["categories"]] == list(THINGS)


def test_instances_are_the_things_of_the_panoptic_maps(world):
    file = coco(world, "instances")
    by_image = {image["id"]: [] for image in file["images"]}
    for annotation in file["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    infos = {image["id"]: image for image in file["images"]}
    stuff = {CATEGORY_IDS[name] for name in STUFF}
    for record in coco(world, "panoptic")["annotations"]:
        things = [(s, mask) for s, mask in segment_masks(world, record) if s["category_id"] not in stuff]
        anns = by_image[record["image_id"]]
        assert len(anns) == len(things)
        for ann, (segment, mask) in zip(anns, things, strict=True):
            np.testing.assert_array_equal(decode(ann["segmentation"], infos[record["image_id"]]), mask)
            assert [ann[key] for key in ("category_id", "bbox", "area")] == [
                segment[key] for key in ("category_id", "bbox", "area")
            ]


def test_a_box_is_left_top_width_height(world):
    file = coco(world, "instances")
    infos = {image["id"]: image for image in file["images"]}
    for ann in file["annotations"]:
        mask = decode(ann["segmentation"], infos[ann["image_id"]])
        left, top, width, height = ann["bbox"]
        assert mask[top : top + height, left : left + width].sum() == mask.sum()
        assert mask[top, :].any()
        assert mask[:, left].any()
        assert mask[top + height - 1, :].any()
        assert mask[:, left + width - 1].any()


def test_images_are_jpegs_of_mixed_ratios_and_the_stated_size(world):
    infos = coco(world, "panoptic")["images"]
    for info in infos:
        path = world / "coco/train2017" / info["file_name"]
        assert read_image(path).shape == (info["height"], info["width"], 3)
        assert path.read_bytes().startswith(b"\xff\xd8\xff")
    assert {(info["height"], info["width"]) for info in infos} == {(64, 64), (48, 64), (64, 48)}


def test_jpegs_show_the_things_where_the_masks_are(world):
    every_name = [Name(shade, kind) for shade, kind in product(SHADES, THINGS)]
    for index in range(24):
        scene = sample_scene(np.random.default_rng([0, 0, 0, index]), 64)
        image = read_image(world / "coco/train2017" / f"{index + 1:012d}.jpg").astype(int)
        for name, mask in zip(scene.names, scene.masks, strict=True):
            found = np.median(image[mask], axis=0)
            # JPEG's colours bleed a little over the edge of small things, but never into another colour.
            assert min(every_name, key=lambda other: np.abs(found - other.colour).sum()) == name


def test_referring_records_name_a_thing_or_nothing(world):
    instances = {ann["id"]: ann for ann in coco(world, "instances")["annotations"]}
    images = {image["id"]: image for image in coco(world, "instances")["images"]}
    records = read(world, "ref_coco")
    sentence_ids = [sentence["sent_id"] for record in records for sentence in record["instruction"]]
    assert len(set(sentence_ids)) == len(sentence_ids)
    assert [record["new_img_id"] for record in records] == list(range(len(records)))
    for record in records:
        assert record["image"] == record["image_info"]["file_name"]
        assert record["image_info"] == images[record["image_info"]["id"]]
        assert 1 <= len(record["instruction"]) <= 2
        assert len(record["anns"]) <= 1
        for sentence in record["instruction"]:
            assert sentence["raw"] == sentence["sent"] == " ".join(sentence["tokens"])
        for ann in record["anns"]:
            assert ann == instances[ann["id"]]
            assert ann["image_id"] == record["image_info"]["id"]


def test_about_a_tenth_of_the_sentences_is_about_nothing(tmp_path):
    write_world(tmp_path, SyntheticSettings(train_scenes=120, eval_scenes=2, image_size=32))
    records = read(tmp_path, "ref_coco")
    numbers = Counter()
    for record in records:
        numbers[bool(record["anns"])] += len(record["instruction"])
    assert 0.07 < numbers[False] / numbers.total() < 0.13


def test_prompts_belong_to_their_things(world):
    records = read(world, "region_json")
    instances = {ann["id"]: ann for ann in coco(world, "instances")["annotations"]}
    assert len(records) == 24
    assert sum(len(record["anns"]) for record in records) == len(instances)
    for record in records:
        assert (world / "coco/train2017" / record["image"]).is_file()
        for ann in record["anns"]:
            assert instances[ann["id"]].items() <= ann.items()
            mask = decode(ann["segmentation"], record["image_info"])
            prompts = {kind: decode(ann[f"{kind}_visual_prompt_mask"], record["image_info"]) for kind in PROMPTS}
            assert prompts["point"].sum() == 1
            assert ((prompts["point"] | prompts["scribble"]) <= mask).all()
            assert (prompts["box"] & mask).sum() > 0.7 * mask.sum()
            assert (prompts["mask"] & mask).sum() > 0.3 * (prompts["mask"] | mask).sum()


def test_pairs_by_object_keep_the_order(world):
    records = read(world, "cross_image_json")
    assert len(records) == 12
    for index, record in enumerate(records):
        pair = sample_pair(np.random.default_rng([0, 0, 1, index]), 64)
        assert record["video_name"] == f"pair{index:06d}"
        folder = Path(paths_of(world)["cross_image_images"].replace("{split}", "train"))
        reference, target = (read_image(folder / record[key]) for key in ("first_frame_image", "image"))
        assert reference.shape == pair.reference.image.shape
        assert target.shape == pair.target.image.shape == (*(record["image_info"][k] for k in ("height", "width")), 3)
        assert len(record["anns"]) == len(record["first_frame_anns"]) == len(pair.matches)
        size = {"height": reference.shape[0], "width": reference.shape[1]}
        for ann, source, (row, column) in zip(record["anns"], record["first_frame_anns"], pair.matches, strict=True):
            assert ann["object_id"] == source["object_id"]
            assert ann["category_id"] == source["category_id"] == float(ann["object_id"])
            np.testing.assert_array_equal(decode(ann["segmentation"], record["image_info"]), pair.target.masks[column])
            np.testing.assert_array_equal(decode(source["segmentation"], size), pair.reference.masks[row])
            assert all(decode(source[f"{kind}_visual_prompt_mask"], size).any() for kind in PROMPTS)


def test_pairs_by_category_have_all_things_of_a_prompted_class(world):
    records = json.loads((world / "cross_image_category_train.json").read_text())
    several = 0
    for index, record in enumerate(records):
        pair = sample_pair(np.random.default_rng([0, 0, 1, index]), 64)
        assert set(record) == {"image_info", "image1_info", "annotations", "annotations1"}
        assert set(record["image_info"]) == {"image", "height", "width", "img_id"}
        prompted = [ann["category_id"] for ann in record["annotations"]]
        in_target = [CATEGORY_IDS[name.kind] for name in pair.target.names]
        assert len(set(prompted)) == len(prompted) > 0
        assert set(prompted) == {CATEGORY_IDS[name.kind] for name in pair.reference.names} & set(in_target)
        assert [ann["category_id"] for ann in record["annotations1"]] == [i for i in in_target if i in prompted]
        for ann in record["annotations"]:
            assert all(decode(ann[f"{kind}_visual_prompt_mask"], record["image_info"]).any() for kind in PROMPTS)
        for ann in record["annotations1"]:
            assert any(
                np.array_equal(decode(ann["segmentation"], record["image1_info"]), mask) for mask in pair.target.masks
            )
        several += len(record["annotations1"]) > len(prompted)
    assert several >= 3  # one to many


def test_ids_differ_between_splits(world):
    ids = {split: {image["id"] for image in coco(world, "panoptic", split)["images"]} for split in ("train", "val")}
    assert not ids["train"] & ids["val"]
    names = {split: {path.name for path in (world / f"coco/{split}2017").iterdir()} for split in ("train", "val")}
    assert not names["train"] & names["val"]


def test_held_out_scenes_are_not_training_scenes(world):
    pictures = {
        split: {path.read_bytes() for path in (world / f"coco/{split}2017").iterdir()} for split in ("train", "val")
    }
    assert not pictures["train"] & pictures["val"]


def test_paths_are_those_of_the_data_settings(world):
    paths = paths_of(world)
    assert paths.keys() <= {field.name for field in fields(DataSettings)}
    for split in ("train", "val"):
        assert all(Path(path.replace("{split}", split)).exists() for path in paths.values())


def test_a_half_written_split_is_written_again_to_the_same_bytes(world, tmp_path):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    (copy / "cross_image_val.json").unlink()
    damaged = sorted((copy / "coco/val2017").iterdir())[1]
    damaged.write_bytes(b"cut o")
    kept = "coco/train2017/000000000001.jpg"
    (copy / kept).write_bytes(b"a finished split is left alone")
    write_world(copy, SETTINGS)
    found, expected = contents(copy), contents(world)
    assert found.pop(kept) == b"a finished split is left alone"
    expected.pop(kept)
    assert found == expected


def test_a_folder_holds_one_world(world, tmp_path):
    copy = tmp_path / "world"
    shutil.copytree(world, copy)
    before = contents(copy)
    for change in ({"train_scenes": 25}, {"image_size": 96}, {"seed": 1}):
        with pytest.raises(
            ValueError, match=r"train_scenes 24, .*and another was asked for.*delete the folder, or name"
        ):
            write_world(copy, replace(SETTINGS, **change))
    (copy / "world.json").unlink()
    with pytest.raises(ValueError, match=r"no world\.json, so nobody knows of which settings"):
        write_world(copy, SETTINGS)
    before.pop("world.json")
    assert contents(copy) == before


def test_another_seed_gives_another_world(world, tmp_path):
    write_world(tmp_path, SyntheticSettings(train_scenes=2, eval_scenes=2, image_size=64, seed=1))
    name = "coco/train2017/000000000001.jpg"
    assert (tmp_path / name).read_bytes() != (world / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SyntheticSettings(train_scenes=1), "train_scenes of at least 2, got 1"),
        (SyntheticSettings(eval_scenes=0), "eval_scenes of at least 2, got 0"),
        (SyntheticSettings(image_size=16), "image_size of at least 32, got 16"),
    ],
)
def test_a_world_too_small_is_refused_before_anything_is_written(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_world(tmp_path, settings)
    assert not list(tmp_path.iterdir())
