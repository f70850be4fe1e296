"""`spatialrgpt check-data`: everything that is wrong with a split, in one pass."""

import json
import shutil

import numpy as np
from region_core.rle import encode_rle
from spatialrgpt.cli import main


def _damage(world, root):
    """A copy of the world with five bad records, and what is said of each by its index."""
    shutil.copytree(world, root)
    records = json.loads((root / "val.json").read_text())
    assert len(records) > 5
    height, width = records[0]["rle"][0]["size"]
    records[0]["image"] = "nowhere.png"
    records[1]["rle"][0] = encode_rle(np.ones((3, 4), dtype=bool))
    records[2]["rle"][0] = encode_rle(np.zeros((height, width), dtype=bool))
    records[3]["conversations"][0]["value"] += " And <mask>?"
    (root / "val" / "images" / "corrupt.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    records[4]["image"] = "corrupt.png"
    shutil.copy(root / "val" / "depths" / "000000_depth.png", root / "val" / "depths" / "corrupt_depth.png")
    (root / "val.json").write_text(json.dumps(records))
    return {0: "nowhere.png", 1: "[3, 4]", 2: "the mask is empty", 3: "'<mask>' in the text", 4: "got no picture"}


def test_a_sound_split_is_summed_up(world, capsys):
    assert main(["check-data", str(world), "--split", "val"]) == 0
    shown = capsys.readouterr().out
    num_records = len(json.loads((world / "val.json").read_text()))
    assert "records" in shown
    assert str(num_records) in shown
    assert all(task in shown for task in ("distance:", "left_right:", "multiple_choice:", "counting:"))
    assert "bad:" not in shown


def test_every_fault_is_listed_with_its_record(world, tmp_path, capsys):
    expected = _damage(world, tmp_path / "world")
    report = tmp_path / "faults.jsonl"
    words = ["check-data", str(tmp_path / "world"), "--split", "val", "--report", str(report)]
    assert main(words) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("bad: val.json, record") == len(expected)
    faults = {line["index"]: line for line in map(json.loads, report.read_text().splitlines())}
    assert set(faults) == set(expected)
    for index, says in expected.items():
        assert says in faults[index]["reason"]
        assert f"record {index} (id '{faults[index]['id']}')" in faults[index]["reason"]


def test_a_split_that_is_not_there_is_one_message(world, capsys):
    assert main(["check-data", str(world), "--split", "test"]) == 1
    error = capsys.readouterr().err
    assert "test.json" in error
    assert "Traceback" not in error
