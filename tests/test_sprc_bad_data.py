"""Triplets, images and boxes that are not what they should be, through the real `sprc train`."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow


def _image_of(root, record):
    """The file of a record's reference image."""
    paths = json.loads((root / "cirr" / "image_splits" / "split.rc2.train.json").read_text())
    return root / "img_raw" / paths[record["reference"]]


def _copy(small, root):
    """A copy of the small world, and its training records."""
    shutil.copytree(small.root, root)
    return json.loads((root / "cirr" / "captions" / "cap.rc2.train.json").read_text())


def _words(small, folder, *more):
    return small.train(folder / "run", "--training.max_steps", "2", "--data.root", str(folder / "world"), *more)


def _assert_refused(run, code, output, *said):
    assert code == 1, output
    message = output[output.rindex("sprc: ") :]
    for words in said:
        assert words in message, message
    assert "Traceback" not in output
    # Nothing was trained before.
    assert not (run / "metrics.jsonl").exists()


def test_what_is_not_there_is_named_before_training(sprc_small, sprc_commands, tmp_path):
    uncovered, lost = tmp_path / "uncovered", tmp_path / "lost"
    _copy(sprc_small, uncovered / "world")
    boxes = uncovered / "boxes.json"
    boxes.write_text(json.dumps({"no-such-image": [[0.1, 0.1, 0.6, 0.6]]}))
    records = _copy(sprc_small, lost / "world")
    image = _image_of(lost / "world", records[0])
    image.unlink()
    found = sprc_commands(
        [
            _words(sprc_small, uncovered, "--box-file", str(boxes)),
            _words(sprc_small, lost),
        ],
        tmp_path / "ranks",
    )
    # The keys are images of no triplet (table 1: unknown box keys).
    said = (
        str(boxes),
        "0 of 24 image keys found",
        "expected a share of 0.5 or more",
        "no-such-image",
        "data.min_coverage",
    )
    _assert_refused(uncovered / "run", *found[0], *said)
    _assert_refused(lost / "run", *found[1], str(image), "1 of", "'train' are missing", "cap.rc2.train.json")


def test_a_corrupt_image_stops_the_run_or_is_skipped_and_counted(sprc_small, sprc_commands, tmp_path):
    records = _copy(sprc_small, tmp_path / "world")
    # The image of one scene before its edits: the reference of three triplets.
    image = _image_of(tmp_path / "world", records[0])
    image.write_bytes(image.read_bytes()[:100])
    bad = {str(record["pairid"]) for record in records if record["reference"] == records[0]["reference"]}
    assert len(bad) == 3
    # An epoch, so that each of them is read.
    epoch = ("--training.max_steps", "5", "--data.on_error")
    few = tmp_path / "few"
    (stopped, why), (code, output), (few_code, few_output) = sprc_commands(
        [
            _words(sprc_small, tmp_path, *epoch, "raise", "--run_dir", str(tmp_path / "stopped")),
            _words(sprc_small, tmp_path, *epoch, "skip", "--data.max_bad_fraction", "0.5"),
            _words(sprc_small, tmp_path, *epoch, "skip", "--run_dir", str(few)),
        ],
        tmp_path / "ranks",
    )
    assert stopped == 1
    message = why[why.rindex("sprc: ") :]
    assert "cap.rc2.train.json, pair " in message
    assert image.name in message
    assert "Traceback" not in why
    assert code == 0, output
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_records.jsonl").read_text().splitlines()]
    assert {line["record"] for line in lines} == {f"cap.rc2.train.json, pair {pair_id!r}" for pair_id in bad}
    assert all(image.name in line["reason"] for line in lines)
    assert (tmp_path / "run" / "results.json").is_file()
    # The default allows one in a hundred.
    assert few_code == 1
    assert "cannot be read, expected at most 0.18" in few_output
    assert "Traceback" not in few_output
