"""Instances from COCO's file and from the list of PSALM's builder: the same scenes."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psalm.instance import InstanceSource, instance_file

IMAGES = [{"id": 5, "file_name": "5.jpg", "height": 6, "width": 8}, {"id": 6, "file_name": "6.jpg"}]
DOG = {"category_id": 9, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]], "iscrowd": 0}
CAT = {"category_id": 3, "segmentation": [[4, 0, 8, 0, 8, 6, 4, 6]], "iscrowd": 0}
CROWD = {"category_id": 3, "segmentation": {"size": [6, 8], "counts": [2, 4, 42]}, "iscrowd": 1}
LINE = {"category_id": 3, "segmentation": [[0, 0, 1, 1]], "iscrowd": 0}

Change = Callable[[dict], object]


def write_images(root: Path) -> Path:
    folder = root / "val2017"
    folder.mkdir(exist_ok=True)
    for image in IMAGES:
        Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(folder / image["file_name"])
    return folder


def write_coco(root: Path, change: Change = lambda content: None) -> InstanceSource:
    content = {
        "images": copy.deepcopy(IMAGES),
        "annotations": [{**copy.deepcopy(own), "image_id": 5} for own in (DOG, CROWD, CAT, LINE)],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}],
    }
    change(content)
    file = root / "annotations/instances_val2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))
    assert instance_file(root, "val") == file
    return InstanceSource(file, write_images(root))


def write_list(root: Path, change: Change = lambda record: None) -> InstanceSource:
    records = [
        {
            "image": "5.jpg",
            "image_info": IMAGES[0],
            "anns": copy.deepcopy([DOG, CROWD, CAT, LINE]),
            "mask_classes": ["dog", "cat", "cat", "cat"],
            "mask_classes_id": [[9], [3], [3], [3]],
        },
        {"image": "6.jpg", "image_info": IMAGES[1], "anns": [], "mask_classes": [], "mask_classes_id": []},
    ]
    change(records[0])
    file = root / "instance_val_psalm.json"
    file.write_text(json.dumps(records))
    assert instance_file(root, "val") == file
    return InstanceSource(file, write_images(root))


@pytest.mark.parametrize(("write", "names"), [(write_coco, ("dog", "cat")), (write_list, ("cat", "dog"))])
def test_both_forms_give_the_same_objects(tmp_path, write, names):
    source = write(tmp_path)
    scene = source.load(0)
    assert scene.conditions == names  # the list has no order of its own: that of the numbers
    assert [names[position] for position in scene.target_conditions.argmax(1)] == ["dog", "cat"]
    assert scene.masks[0].sum() == 4
    assert scene.masks[0][:2, :2].all()
    assert scene.masks[1].sum() == 24
    assert scene.void.sum() == 4  # the crowd
    assert scene.void[2:6, 0].all()
    assert scene.dropped == (("crowd", 1), ("empty target", 1))
    assert scene.is_thing == (True, True)
    assert scene.image_id == 5


@pytest.mark.parametrize("write", [write_coco, write_list])
def test_an_image_without_objects_is_a_scene(tmp_path, write):
    scene = write(tmp_path).load(1)
    assert scene.masks.shape == (0, 6, 8)
    assert scene.target_conditions.shape == (0, 2)
    assert scene.void is None


def test_excluded_images_are_left_out(tmp_path):
    file = write_coco(tmp_path) and instance_file(tmp_path, "val")
    assert len(InstanceSource(file, tmp_path / "val2017", excluded={5})) == 1


def test_there_may_be_no_file(tmp_path):
    assert instance_file(tmp_path, "val") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "image 2: the id 5 stands twice"),
        (lambda c: c["annotations"][1].update(image_id=7), "annotation 1, key 'image_id': .* has no image 7"),
        (lambda c: c["annotations"][1].pop("image_id"), "annotation 1: 'image_id' is missing"),
        (lambda c: c.pop("categories"), "'categories' is missing"),
    ],
)
def test_a_faulty_coco_file(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_coco(tmp_path, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["mask_classes"].pop(), "key 'mask_classes': expected one class name for each of the 4"),
        (lambda r: r.update(mask_classes=["dog", "cat", "cow", "cat"]), "category 3 is called 'cow', before it was"),
        (lambda r: r.pop("anns"), "'anns' is missing"),
    ],
)
def test_a_faulty_list(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_list(tmp_path, change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(category_id=1), "annotation 0, key 'category_id': got 1"),
        (lambda c: c["annotations"][1]["segmentation"].update(size=[8, 6]), "annotation 1, .*the RLE's size"),
        (lambda c: c["images"][0].update(width=7), "has a width of 8"),
        (lambda c: c["annotations"][0].pop("segmentation"), "annotation 0, key 'segmentation': got None"),
    ],
)
def test_a_faulty_record_is_named(tmp_path, change, message):
    source = write_coco(tmp_path, change)
    with pytest.raises(ValueError, match=rf"instances_val2017\.json record 0 \(image 5\).*{message}"):
        source.load(0)
