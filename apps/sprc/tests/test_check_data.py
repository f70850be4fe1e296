"""`check-data`: everything that is wrong with a split, in one pass."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from region_training.run_folder import RunFolder
from sprc.cli import APPLICATION
from sprc.config import SyntheticSettings
from sprc.opening import open_dataset
from sprc.synthetic import write_world
from sprc.verbs import CheckDataSettings

check_data = APPLICATION.verbs["check-data"].run
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


# Whose eyes the data are seen with ------------------------------------------------------------------------------------


def _shown(capsys) -> str:
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_without_settings_the_tiny_preset_is_taken_and_said(world, capsys):
    assert check_data(CheckDataSettings(str(world))) == 0
    shown = _shown(capsys)
    assert "seen as by the preset tiny (no run, preset or config was given)" in shown
    assert "targetpad to 96 pixels, 8 x 8 patches" in shown
    # The preset's own box file is that of another world.
    assert "region pairs per triplet" not in shown


def test_a_run_is_seen_as_its_training_saw_it(cirr, tmp_path, capsys):
    boxes = str(cirr.root / "boxes/images.{split}.json")
    run = cirr.begin_run(tmp_path / "run", box_file=boxes, transform="squarepad")
    assert check_data(CheckDataSettings(run=str(run.path))) == 0
    shown = _shown(capsys)
    assert "seen as by the run" in shown
    assert "squarepad to 16 pixels, 4 x 4 patches" in shown
    dataset = open_dataset(cirr.settings.data, cirr.model.config, "train")
    assert f"triplets {len(dataset)}" in shown
    # Pairs and losses are those of the data set that training opens.
    trained = replace(cirr.settings.data, box_file=boxes, transform="squarepad")
    samples = open_dataset(trained, cirr.model.config, "train", training=True)
    weighted = sum(int((samples[row].pair_weights > 0).sum()) for row in range(len(samples)))
    assert f"region pairs with a weight {weighted}" in shown
    small = sum(samples[row].dropped.get("too_small", 0) for row in range(len(samples)))
    assert small > 0
    assert f"too_small: {small}" in shown


def test_an_unfinished_run_is_read_from_its_settings(cirr, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    run.begin(replace(cirr.settings, run_dir=str(run.path)))
    assert check_data(CheckDataSettings(run=str(run.path), split="val")) == 0
    assert "targetpad to 16 pixels, 4 x 4 patches" in _shown(capsys)


def test_a_configuration_decides_and_the_command_line_overrides_it(world, tmp_path, capsys):
    config = tmp_path / "my.yaml"
    boxes = world / "boxes/pairs.{split}.json"
    config.write_text(
        "preset: tiny\n"
        f"data: {{root: {world}, box_file: '{boxes}', transform: resize}}\n"
        "model: {region_loss: {min_side_cells: 1.0, max_pairs_per_triplet: 1}}\n"
    )
    assert check_data(CheckDataSettings(config=str(config))) == 0
    strict = _shown(capsys)
    assert "resize to 96 pixels, 8 x 8 patches" in strict
    assert "too_small:" in strict
    assert "over_cap:" in strict
    assert check_data(CheckDataSettings(str(world), config=str(config), split="val", box_format="xyxy_norm")) == 0
    assert "CIRR val" in _shown(capsys)


def test_too_few_boxes_are_a_fault_of_the_training_split(world, tmp_path, capsys):
    boxes = tmp_path / "few.json"
    boxes.write_text(json.dumps({"elsewhere": [[0.1, 0.1, 0.9, 0.9]]}))
    assert check_data(CheckDataSettings(str(world), box_file=str(boxes))) == 1
    assert "0 of 9 image keys found" in _shown(capsys)
    assert check_data(CheckDataSettings(str(world), split="val", box_file=str(boxes))) == 0


def test_settings_come_from_one_place():
    with pytest.raises(ValueError, match=r"give one of run, preset and config, got \{'run': 'a', 'preset': 'tiny'\}"):
        CheckDataSettings(run="a", preset="tiny")
    with pytest.raises(ValueError, match=r"expected the folder of a data set, or --run, --preset or --config"):
        CheckDataSettings()


def test_a_faulty_record_stops_with_its_name(world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    file = root / "cirr/captions/cap.rc2.train.json"
    records = json.loads(file.read_text())
    records[1]["reference"] = "nowhere"
    file.write_text(json.dumps(records))
    with pytest.raises(ValueError, match=r"record 1 .*'nowhere'"):
        check_data(CheckDataSettings(str(root)))
