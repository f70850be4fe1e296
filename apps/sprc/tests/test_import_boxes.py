"""`sprc import-boxes`: what a detector found, as a box file that training reads."""

import json
from dataclasses import replace

import pytest
from sprc.cli import main
from sprc.opening import open_dataset


def _import(tmp_path, source, *words):
    output = tmp_path / "boxes.json"
    return main(["import-boxes", str(source), str(output), *words]), output


@pytest.fixture
def coco(tmp_path, cirr):
    triplet = cirr.open().split.triplets[0]
    names = (triplet.reference, triplet.target)
    content = {
        "images": [
            {"id": number, "width": 40, "height": 20, "file_name": f"dev/{name}.png"}
            for number, name in enumerate(names)
        ],
        "categories": [{"id": 3, "name": "circle"}],
        "annotations": [
            {"image_id": 0, "category_id": 3, "bbox": [4, 2, 20, 10], "score": 0.9},
            {"image_id": 0, "category_id": 3, "bbox": [4, 2, 20, 10], "score": 0.1},
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, 20]},
        ],
    }
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    return file, names


def test_coco_becomes_a_box_file_that_pairs_the_images(coco, cirr, tmp_path, capsys):
    source, (reference, target) = coco
    code, output = _import(tmp_path, source)
    assert code == 0
    assert f"2 boxes on 2 images: {output} (left out: 1 low_score)" in capsys.readouterr().out
    boxes = json.loads(output.read_text())
    assert boxes[reference]["boxes"] == [pytest.approx([0.1, 0.1, 0.6, 0.6])]
    assert boxes[target]["boxes"] == [pytest.approx([0, 0, 0.5, 1])]
    data = replace(cirr.settings.data, box_file=str(output))
    dataset = open_dataset(data, cirr.model.config, "val")
    ((pair,), (other,)) = dataset.original_boxes(dataset.split.triplets[0])
    assert pair == pytest.approx((0.1, 0.1, 0.6, 0.6))
    assert other == pytest.approx((0, 0, 0.5, 1))


def test_limits_are_settings(coco, tmp_path, capsys):
    source, (reference, _) = coco
    assert _import(tmp_path, source, "--min_score", "0.05", "--max_boxes", "1", "--min_area", "0.3")[0] == 0
    boxes = json.loads((tmp_path / "boxes.json").read_text())
    assert boxes[reference]["boxes"] == []
    assert "2 small" in capsys.readouterr().out


def test_a_folder_is_read_as_yolos(tmp_path, capsys):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "dev-0-0-img0.txt").write_text("0 0.5 0.5 0.2 0.4\n2 0.25 0.25 0.5 0.5 0.2\n")
    code, output = _import(tmp_path, folder)
    assert code == 0
    assert json.loads(output.read_text())["dev-0-0-img0"]["boxes"] == [pytest.approx([0.4, 0.3, 0.6, 0.7])]
    assert "1 boxes on 1 images" in capsys.readouterr().out


def test_results_need_the_file_that_names_the_images(coco, tmp_path, capsys):
    source, _ = coco
    content = json.loads(source.read_text())
    results = tmp_path / "results.json"
    results.write_text(json.dumps(content.pop("annotations")))
    assert _import(tmp_path, results)[0] == 1
    assert "a list of results needs `images`" in capsys.readouterr().err
    source.write_text(json.dumps(content | {"annotations": []}))
    assert _import(tmp_path, results, "--images", str(source))[0] == 0
    assert "2 boxes on 2 images" in capsys.readouterr().out
