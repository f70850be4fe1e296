"""Panoptic files: an image of 4 x 6 pixels whose segments are known pixel by pixel."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psalm.panoptic import PanopticFile, PanopticSource
from psalm.semantic import SemanticSource

CAT, GRASS, BIG = 300, 5, 70_000  # numbers of segments that need one, two and three bytes
SECOND_CAT, CROWD = 9, 11
NUMBERS = np.array(
    [
        [CAT, CAT, CROWD, CROWD, 0, 0],
        [CAT, CAT, CROWD, CROWD, 0, 0],
        [GRASS, GRASS, GRASS, BIG, BIG, SECOND_CAT],
        [GRASS, GRASS, GRASS, BIG, BIG, SECOND_CAT],
    ]
)
# Numbers of classes with gaps and not in order: a number taken for a position would be another class.
CATEGORIES = [
    {"id": 17, "name": "cat", "isthing": 1},
    {"id": 2, "name": "grass", "isthing": 0},
    {"id": 1, "name": "dog", "isthing": 1},
]
SEGMENTS = [
    {"id": CAT, "category_id": 17, "iscrowd": 0},
    {"id": CROWD, "category_id": 17, "iscrowd": 1},
    {"id": GRASS, "category_id": 2, "iscrowd": 0},
    {"id": BIG, "category_id": 1, "iscrowd": 0},
    {"id": SECOND_CAT, "category_id": 17, "iscrowd": 0},
]

Content = dict[str, list[dict]]


def write_numbers(path: Path, numbers: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a root with two images, the second without any segment, changed as a test likes."""

    def write_it(change: Callable[[Content], object] = lambda content: None) -> Path:
        (tmp_path / "val2017").mkdir(exist_ok=True)
        for name in ("1.jpg", "2.jpg"):
            Image.fromarray(np.full((4, 6, 3), 90, dtype=np.uint8)).save(tmp_path / "val2017" / name)
        write_numbers(tmp_path / "panoptic_val2017/1.png", NUMBERS)
        write_numbers(tmp_path / "panoptic_val2017/2.png", np.zeros_like(NUMBERS))
        content: Content = {
            "images": [
                {"id": 1, "file_name": "1.jpg", "height": 4, "width": 6},
                {"id": 2, "file_name": "2.jpg", "height": 4, "width": 6},
            ],
            "annotations": [
                {"image_id": 1, "file_name": "1.png", "segments_info": copy.deepcopy(SEGMENTS)},
                {"image_id": 2, "file_name": "2.png", "segments_info": []},
            ],
            "categories": copy.deepcopy(CATEGORIES),
        }
        change(content)
        file = tmp_path / "annotations/panoptic_val2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))
        return tmp_path

    return write_it


def test_one_target_per_segment_and_the_rest_is_void(write):
    source = PanopticSource(PanopticFile(write(), "val"))
    scene = source.load(0)
    assert len(source) == 2
    assert scene.conditions == ("cat", "grass", "dog")
    assert scene.is_thing == (True, False, True)
    for mask, number in zip(scene.masks, (CAT, GRASS, BIG, SECOND_CAT), strict=True):
        np.testing.assert_array_equal(mask, number == NUMBERS)
    assert scene.target_conditions.argmax(1).tolist() == [0, 1, 2, 0]
    assert scene.target_conditions.sum() == 4
    np.testing.assert_array_equal(scene.void, (NUMBERS == CROWD) | (NUMBERS == 0))
    assert scene.dropped == (("crowd", 1),)
    assert scene.image_id == 1


def test_reading_twice_gives_the_same(write):
    # Upstream maps the class numbers inside the records, so that a second epoch maps them again.
    source = PanopticSource(PanopticFile(write(), "val"))
    first, second = source.load(0), source.load(0)
    np.testing.assert_array_equal(first.target_conditions, second.target_conditions)


def test_an_image_without_segments_is_a_scene(write):
    opened = PanopticFile(write(), "val")
    for source in (PanopticSource(opened), SemanticSource(opened)):
        scene = source.load(1)
        assert scene.masks.shape == (0, 4, 6)
        assert scene.target_conditions.shape == (0, 3)
        assert scene.void.all()


def test_semantic_has_one_target_per_class_and_keeps_crowds(write):
    scene = SemanticSource(PanopticFile(write(), "val")).load(0)
    assert scene.mode == "semantic"
    assert scene.target_conditions.argmax(1).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(scene.masks[0], np.isin(NUMBERS, [CAT, CROWD, SECOND_CAT]))
    np.testing.assert_array_equal(scene.masks[1], NUMBERS == GRASS)
    np.testing.assert_array_equal(scene.void, NUMBERS == 0)


def test_excluded_images_are_left_out(write):
    opened = PanopticFile(write(), "val")
    for source in (PanopticSource(opened, excluded={1}), SemanticSource(opened, excluded={1})):
        assert len(source) == 1
        assert source.load(0).image_id == 2
        assert "(image 2)" in source.where(0)
        assert source.texts() == ["cat", "grass", "dog"]


def without(key: str) -> Callable[[Content], object]:
    return lambda content: content["annotations"][0].pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segments_info"].pop(), r"the PNG has the segment 9, 'segments_info' does not"),
        (
            lambda c: c["annotations"][0]["segments_info"].append({"id": 4, "category_id": 2}),
            r"'segments_info' has the segment 4, the PNG has no such pixel",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"].append({"id": CAT, "category_id": 2}),
            r"'segments_info' has the segment 300 twice",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=3),
            r"segment 0, key 'category_id': got 3, which is none of the 3",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=0), "got 0, which stands for pixels without"),
        (lambda c: c["images"][0].update(height=5), "has a height of 4 pixels"),
        (lambda c: c["images"].pop(0), "'images' of the file has no such image"),
        (without("segments_info"), "'segments_info' is missing"),
        (without("file_name"), "'file_name' is missing"),
        (without("image_id"), "'image_id' is missing"),
        (lambda c: c["annotations"][0].update(file_name="3.png"), r"3\.png"),
    ],
)
def test_a_faulty_record_is_named(write, change, message):
    opened = PanopticFile(write(change), "val")
    for source in (PanopticSource(opened), SemanticSource(opened)):
        with pytest.raises(ValueError, match=rf"panoptic_val2017\.json record 0 .*{message}"):
            source.load(0)
        assert len(source.load(1).masks) == 0  # the others can still be read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"].append(c["images"][0]), "image 2: the id 1 stands twice"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "record 2 .image 1.: the image has a record already"),
        (lambda c: c.pop("categories"), "'categories' is missing"),
        (lambda c: c.pop("annotations"), "'annotations' is missing"),
    ],
)
def test_a_faulty_file_is_an_error_when_it_is_opened(write, change, message):
    with pytest.raises(ValueError, match=message):
        PanopticFile(write(change), "val")


def test_a_png_of_another_size_is_an_error(write):
    root = write()
    write_numbers(root / "panoptic_val2017/1.png", NUMBERS[:3])
    with pytest.raises(ValueError, match=r"the PNG is 3 x 6 pixels .*, the image 4 x 6"):
        PanopticSource(PanopticFile(root, "val")).load(0)
