"""`check-data`: everything that is wrong with a split, in one pass."""

import json
import shutil
from pathlib import Path

import pytest
from sprc.check_data import check_data
from sprc.config import CheckDataSettings, SyntheticSettings
from sprc.synthetic import write_world

SETTINGS = SyntheticSettings(train_scenes=3, eval_scenes=3, edits=2, image_size=32, seed=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, SETTINGS)
    return root


def test_a_sound_split_is_summed_up(world, capsys):
    assert check_data(CheckDataSettings(str(world), box_file=str(world / "boxes/pairs.train.json"))) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "triplets │ 6" in shown
    assert "images │ 9" in shown
    assert "different targets │ 6" in shown
    assert "bad images │ 0" in shown
    assert "region pairs per triplet │" in shown
    assert "bad:" not in shown


def test_a_split_without_targets_and_boxes_is_fine(world, capsys):
    assert check_data(CheckDataSettings(str(world), split="test1")) == 0
    assert "different targets │ 0" in " ".join(capsys.readouterr().out.split())


def test_every_fault_is_listed(world, tmp_path, capsys):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    images = root / "img_raw/train/0"
    (images / "train-0-0-img0.png").unlink()
    (images / "train-0-1-img0.png").write_bytes(b"\x89PNG nothing")
    report = tmp_path / "faults.jsonl"
    settings = CheckDataSettings(str(root), box_file=str(root / "boxes/images.train.json"), report=str(report))
    assert check_data(settings) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "bad images │ 2" in shown
    assert shown.count("bad: ") >= 2
    faults = [json.loads(line) for line in report.read_text().splitlines()]
    assert [fault["image"] for fault in faults if "image" in fault] == ["train-0-0-img0", "train-0-1-img0"]
    # Boxes of the triplets of the two files can't be placed.
    assert {fault["pair"] for fault in faults if "pair" in fault} == {"0", "1"}


def test_fashioniq_lists_its_categories(tmp_path, capsys):
    write_world(tmp_path, SyntheticSettings(train_scenes=9, eval_scenes=9, edits=2, image_size=32), dataset="FashionIQ")
    assert check_data(CheckDataSettings(str(tmp_path), dataset="FashionIQ", split="val")) == 0
    assert "toptee │ 6 triplets, gallery of 9" in " ".join(capsys.readouterr().out.split())


def test_a_faulty_record_stops_with_its_name(world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    file = root / "cirr/captions/cap.rc2.train.json"
    records = json.loads(file.read_text())
    records[1]["reference"] = "nowhere"
    file.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"record 1 .*'nowhere'"):
        check_data(CheckDataSettings(str(root)))
