"""Result files as other tools read them: COCO panoptic PNG and JSON, COCO instances, lines of JSON."""

import json

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from psalm.label_space import LabelSpace
from psalm.records import EvaluatedRecord, FoundMask
from psalm.result_files import RECORDS, panoptic_png, write_results
from region_core.rle import decode_rle, encode_rle
from region_training.images import read_image

SPACE = LabelSpace(("sky", "car"), (False, True), (119, 3))


def strip(first: int, last: int) -> np.ndarray:
    mask = np.zeros((4, 40), dtype=bool)
    mask[:, first:last] = True
    return mask


def record(mode: str, *masks: FoundMask, group: str | None = None, position: int = 0) -> EvaluatedRecord:
    return EvaluatedRecord(position, group or mode, 7, mode, "file.json record 7", 42, (4, 40), 12.5, masks)


SEGMENTS = (
    FoundMask("segment", "sky", 0.9, encode_rle(strip(0, 20))),
    FoundMask("segment", "car", 0.8, encode_rle(strip(25, 40))),
)
INSTANCES = (
    FoundMask("instance", "car", 0.75, encode_rle(strip(25, 40))),
    FoundMask("instance", "car", 0.25, encode_rle(strip(0, 10))),
)


def test_panoptic_files_have_the_data_sets_own_category_ids_and_the_ids_of_the_png(tmp_path):
    write_results(tmp_path, [record("panoptic", *SEGMENTS)], {"panoptic": SPACE})
    (annotation,) = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert annotation["image_id"] == 42
    assert [(entry["id"], entry["category_id"], entry["area"]) for entry in annotation["segments_info"]] == [
        (1, 119, 80),
        (2, 3, 60),
    ]
    colours = read_image(tmp_path / "panoptic" / annotation["file_name"]).astype(int)
    ids = colours @ np.array([1, 256, 65536])
    assert (ids[0] == [*[1] * 20, *[0] * 5, *[2] * 15]).all()


def test_the_number_of_a_segment_fills_three_channels():
    many = tuple(
        FoundMask("segment", "car", 0.9, encode_rle(strip(number % 40, number % 40 + 1))) for number in range(300)
    )
    png = panoptic_png(record("panoptic", *many))
    # Column 19 was last painted by number 299 + 1 = 300 = 44 + 256.
    assert png[0, 19].tolist() == [44, 1, 0]


def test_instance_files_can_be_scored_by_cocos_tools(tmp_path):
    write_results(tmp_path, [record("instance", *INSTANCES)], {"instance": SPACE})
    truth = COCO(
        {
            "images": [{"id": 42, "height": 4, "width": 40}],
            "categories": [{"id": 3, "name": "car"}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 42,
                    "category_id": 3,
                    "iscrowd": 0,
                    "area": 60,
                    "segmentation": encode_rle(strip(25, 40)),
                }
            ],
        }
    )
    evaluation = COCOeval_faster(truth, truth.loadRes(str(tmp_path / "instance.json")), iouType="segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_every_record_is_a_line_with_its_masks(tmp_path):
    found = FoundMask("best", "the car", 0.5, encode_rle(strip(3, 9)))
    files = write_results(tmp_path, [record("referring", found), record("region", group="region/point")], {})
    assert files == [tmp_path / RECORDS]
    first, second = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert first["masks"][0]["label"] == "the car"
    assert (decode_rle(first["masks"][0]["rle"], height=4, width=40) == strip(3, 9)).all()
    assert second["group"] == "region/point"
    assert second["masks"] == []


def test_without_a_label_space_classes_are_numbered_by_name_and_groups_make_file_names(tmp_path):
    write_results(tmp_path, [record("instance", *INSTANCES, group="instance/own")], {"instance/own": None})
    (first, _) = json.loads((tmp_path / "instance_own.json").read_text())
    assert first["category_id"] == 1
    assert write_results(tmp_path / "empty", [], {}) == [tmp_path / "empty" / RECORDS]
