"""`check-data`: everything that is wrong with a split, in one pass."""

import json
import shutil
from pathlib import Path

import pytest
from psalm.check_data import check_data
from psalm.config import DataSettings, SyntheticSettings
from psalm.synthetic import paths_of, write_world
from psalm.verbs import CheckDataSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_world(root, SyntheticSettings(train_scenes=4, eval_scenes=4, image_size=64))
    return root


def settings_of(root: Path, **changes: object) -> DataSettings:
    return DataSettings(**{"image_size": 64, "augment": True, **paths_of(root), **changes})


def rows(text: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {line[0]: line[1:] for line in cells if line[0]}


def test_a_sound_split_is_summed_up(world, capsys):
    assert check_data(CheckDataSettings(settings_of(world))) == 0
    shown = capsys.readouterr().out
    found = rows(shown)
    assert list(found) == ["panoptic", "semantic", "instance", "referring/refcoco", "region", "cross_image"]
    panoptic = json.loads((world / "coco/annotations/panoptic_train2017.json").read_text())
    segments = sum(len(record["segments_info"]) for record in panoptic["annotations"])
    # Records, targets, regions, records without target, bad ones, what is dropped: nothing is cropped away here.
    assert found["panoptic"] == ["4", str(segments), "0", "0", "0", "none"]
    assert found["region"][1] == found["region"][2] != "0"
    assert "bad:" not in shown


def test_every_fault_is_listed_and_reported(world, tmp_path, capsys):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    image = sorted((root / "coco/train2017").iterdir())[0]
    image.write_bytes(image.read_bytes()[:200])
    report = tmp_path / "faults.jsonl"
    data = settings_of(root, modes=["panoptic", "referring", "region"])
    assert check_data(CheckDataSettings(data, report=str(report))) == 1
    shown = capsys.readouterr().out
    faults = [json.loads(line) for line in report.read_text().splitlines()]
    assert {fault["mode"] for fault in faults} == {"panoptic", "referring", "region"}
    assert [rows(shown)[name][4] for name in ("panoptic", "region")] == ["1", "1"]
    assert all("record 0" in fault["record"] and image.name in fault["reason"] for fault in faults[:1])
    assert shown.count("bad: ") == len(faults)


def test_a_long_list_is_cut(world, tmp_path, capsys):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    shutil.rmtree(root / "coco/train2017")
    assert check_data(CheckDataSettings(settings_of(root))) == 1
    shown = capsys.readouterr().out
    assert shown.count("bad: ") == 20
    assert "more" in shown.splitlines()[-1]


def test_a_faulty_file_stops_with_its_name(world, tmp_path):
    (tmp_path / "regions.json").write_text('[{"anns": []')
    with pytest.raises(ValueError, match=r"regions\.json record 0"):
        check_data(CheckDataSettings(settings_of(world, region_json=str(tmp_path / "regions.json"))))
