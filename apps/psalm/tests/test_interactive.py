"""Regions with prompts: one region per object, and no object is lost in silence."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psalm.interactive import InteractiveSource
from psalm.prompts import PROMPT_KEYS
from psalm.transforms import SegmentationTransform
from region_core.rle import encode_rle

INFO = {"id": 21, "file_name": "21.jpg", "height": 32, "width": 40}
EMPTY = np.zeros((32, 40), dtype=bool)


def filled(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = EMPTY.copy()
    mask[top:bottom, left:right] = True
    return mask


def region(target: np.ndarray, iscrowd: int = 0, **prompts: np.ndarray) -> dict[str, object]:
    fields = {key: encode_rle(prompts.get(kind, EMPTY)) for kind, key in PROMPT_KEYS.items()}
    return {"segmentation": encode_rle(target), "iscrowd": iscrowd, **fields}


LEFT, RIGHT = filled(4, 4, 20, 16), filled(8, 24, 30, 38)
RECORDS = [
    {
        "image": "21.jpg",
        "image_info": INFO,
        "anns": [
            region(LEFT, box=LEFT, point=filled(10, 10, 11, 11)),
            region(EMPTY, box=LEFT),
            region(LEFT, iscrowd=1, box=LEFT),
            region(RIGHT, mask=RIGHT),
        ],
    },
    {"image": "21.jpg", "image_info": {**INFO, "id": 22}, "anns": []},
    {"image": "21.jpg", "image_info": {**INFO, "id": 23}, "anns": [region(LEFT, iscrowd=1, box=LEFT)]},
]

Change = Callable[[list[dict]], object]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., InteractiveSource]:
    def write_it(change: Change = lambda records: None, **options: object) -> InteractiveSource:
        records = copy.deepcopy(RECORDS)
        change(records)
        (tmp_path / "a.json").write_text(json.dumps(records))
        Image.fromarray(np.zeros((32, 40, 3), dtype=np.uint8)).save(tmp_path / "21.jpg")
        return InteractiveSource(tmp_path / "a.json", tmp_path, **{"types": ("box", "mask"), **options})

    return write_it


def test_one_region_per_object(write):
    scene = write().load(0)
    np.testing.assert_array_equal(scene.masks, np.stack([LEFT, RIGHT]))
    np.testing.assert_array_equal(scene.prompts, np.stack([LEFT, RIGHT]))
    assert scene.target_conditions.tolist() == [[True, False], [False, True]]
    assert scene.conditions == ("", "")
    assert scene.dropped == (("crowd", 1), ("empty target", 1))
    assert scene.image_id == 21


def test_boxes_and_masks_bound_their_regions(write):
    assert write(types=("box", "mask")).load(0).prompts_bound
    # Which type a region has is drawn: some prompts may be points.
    assert not write(types=("box", "point")).load(0).prompts_bound


def test_records_that_ask_for_nothing_are_left_out_and_counted(write, caplog):
    with caplog.at_level(logging.INFO):
        source = write()
    assert len(source) == 1
    assert "2 of 3 records have no object" in caplog.text
    assert len(write(excluded={21})) == 0


def test_a_region_without_prompt_stays_in_evaluation_and_leaves_in_training(write):
    # The second object has no box: skipped, it would not count against the score.
    scene = write(types=("box",)).load(0)
    assert scene.prompts.any((1, 2)).tolist() == [True, False]
    transform = SegmentationTransform(64)
    held_out, trained = transform(scene), transform(scene, np.random.default_rng(0))
    assert held_out.target_conditions.tolist() == [[True, False], [False, True]]
    assert held_out.prompts.any(2).any(1).tolist() == [True, False]
    assert trained.target_conditions.tolist() == [[True]]
    assert (len(trained.prompts), len(trained.masks), trained.conditions) == (1, 1, ("",))
    assert dict(trained.dropped)["empty prompt"] == dict(held_out.dropped)["empty prompt"] == 1


def test_a_record_none_of_whose_regions_can_be_shown_is_an_empty_sample(write):
    scene = write(types=("scribble",)).load(0, np.random.default_rng(0))
    sample = SegmentationTransform(64)(scene, np.random.default_rng(0))
    assert sample.prompts.shape == sample.masks.shape == (0, 64, 64)
    assert sample.target_conditions.shape == (0, 0)
    assert sample.conditions == ()


def test_prompts_are_drawn_with_the_pens_of_the_settings(write):
    prompts = write(types=("point",), pens={"point": 2, "scribble": 1}).load(0).prompts
    # 13 pixels have their centre within 2 of a pixel's.
    assert prompts[0].sum() == 13


def test_types_are_drawn_in_training(write):
    source = write(types=("point", "box"))
    sizes = {int(source.load(0, np.random.default_rng(seed)).prompts[0].sum()) for seed in range(12)}
    assert sizes == {int(source.load(0).prompts[0].sum()), int(LEFT.sum())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[0].pop("anns"), "'anns' is missing"),
        (lambda r: r[0]["anns"][3].update(segmentation=encode_rle(RIGHT.T)), "annotation 3, .*the RLE's size"),
        (lambda r: r[0]["anns"][0].update(box_visual_prompt_mask=encode_rle(LEFT.T)), "annotation 0, .*RLE's size"),
        (lambda r: r[0]["anns"].append({"segmentation": encode_rle(LEFT)}), "annotation 4: expected one or more of"),
        (lambda r: r[0]["image_info"].update(width=32), "has a width of 40"),
        (lambda r: r[0].update(image="no.jpg"), "no.jpg"),
    ],
)
def test_a_faulty_record_is_named(write, change, message):
    with pytest.raises(ValueError, match=rf"a\.json record 0 \(image 21\).*{message}"):
        write(change).load(0)
