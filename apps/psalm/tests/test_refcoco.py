"""Sentences: one per sample or joined, about no object, one or several."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psalm.refcoco import ReferringSource, image_ids

LEFT = {"segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]]}
RIGHT = {"segmentation": [[4, 0, 8, 0, 8, 6, 4, 6]]}
INFO = {"id": 11, "file_name": "11.jpg", "height": 6, "width": 8}
RECORDS = [
    {
        "image": "11.jpg",
        "image_info": INFO,
        "anns": [LEFT],
        "instruction": [{"sent": "left  cat", "raw": "Left cat"}, {"raw": "the cat on the left."}],
    },
    {"image_info": {**INFO, "id": 12}, "anns": [LEFT, RIGHT], "instruction": [{"sent": "both"}]},
    {"image_info": {**INFO, "id": 13}, "anns": [], "instruction": [{"sent": "the dog"}]},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., ReferringSource]:
    def write_it(change: Callable[[list[dict]], object] = lambda records: None, **options: object) -> ReferringSource:
        records = copy.deepcopy(RECORDS)
        change(records)
        (tmp_path / "refcoco_val.json").write_text(json.dumps(records))
        Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(tmp_path / "11.jpg")
        options = {"name": "refcoco", "ref_mode": "per_sentence", **options}
        return ReferringSource(tmp_path / "refcoco_val.json", tmp_path, **options)

    return write_it


def test_every_sentence_is_a_sample(write):
    source = write()
    assert [source.load(index).conditions for index in range(len(source))] == [
        ("left cat",),
        ("the cat on the left.",),
        ("both",),
        ("the dog",),
    ]
    assert source.where(1) == "refcoco_val.json record 0 (image 11), sentence 1"
    assert source.texts() == ["left cat", "the cat on the left.", "both", "the dog"]


def test_joined_sentences_are_one_sample(write):
    source = write(ref_mode="joined")
    assert len(source) == 3
    assert source.load(0).conditions == ("left cat. the cat on the left.",)
    assert source.where(0) == "refcoco_val.json record 0 (image 11)"


def test_a_sentence_may_mean_no_object_or_several(write):
    source = write()
    several, none = source.load(2), source.load(3)
    assert several.masks.sum((1, 2)).tolist() == [24, 24]
    assert several.target_conditions.tolist() == [[True], [True]]
    assert several.image_id == 12
    assert none.masks.shape == (0, 6, 8)
    assert none.target_conditions.shape == (0, 1)


def test_images_of_other_splits_can_be_left_out(write, tmp_path):
    assert len(write(excluded={11})) == 2
    assert image_ids(tmp_path / "refcoco_val.json") == {11, 12, 13}
    write(lambda records: records[1]["image_info"].pop("id"))
    with pytest.raises(ValueError, match=r"refcoco_val\.json record 1: 'image_info' has no 'id'"):
        image_ids(tmp_path / "refcoco_val.json")


@pytest.mark.parametrize("ref_mode", ["per_sentence", "joined"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0]["instruction"][0].update(sent=" ", raw=""), "sentence 0: expected words under 'sent' or 'raw'"),
        (lambda r: r[0].update(instruction=[]), "key 'instruction': got no sentence"),
        (lambda r: r[0].pop("instruction"), "'instruction' is missing"),
        (lambda r: r[0].pop("anns"), "'anns' is missing"),
        (lambda r: r[0].update(anns=[{"segmentation": []}]), "annotation 0, key 'segmentation': the mask is empty"),
        (lambda r: r[0]["image_info"].update(height=8, width=6), "has a height of 6 pixels .*EXIF"),
    ],
)
def test_a_faulty_record_is_named_when_it_is_read(write, ref_mode, change, message):
    source = write(change, ref_mode=ref_mode)
    with pytest.raises(ValueError, match=rf"refcoco_val\.json record 0 \(image 11\).*{message}"):
        source.load(0)
    assert source.load(len(source) - 1).conditions == ("the dog",) or ref_mode == "joined"


def test_texts_pass_over_bad_records(write):
    source = write(lambda records: records[0].update(instruction=[{"sent": ""}]))
    assert source.texts() == ["both", "the dog"]
