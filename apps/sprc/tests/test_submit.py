"""`sprc submit`: the two files of CIRR's test server, from a split without targets."""

import json

import pytest
from sprc.cli import main
from sprc.submission import check_cirr_submission


@pytest.fixture(scope="module")
def run(cirr, tmp_path_factory):
    return cirr.begin_run(tmp_path_factory.mktemp("submit") / "run")


def _submit(run, *words):
    return main(["submit", str(run.path), "--device", "cpu", *words])


def test_the_files_are_what_the_server_takes(run, cirr, tmp_path, capsys):
    assert _submit(run, "--output", str(tmp_path / "files")) == 0
    files = [tmp_path / "files" / name for name in ("recall.json", "recall_subset.json")]
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()] == [str(file) for file in files]
    split = cirr.open("test1").split
    assert len(split.triplets) == 48
    for file, length in zip(files, (50, 3), strict=True):
        check_cirr_submission(file, split.triplets, gallery=split.gallery)
        content = json.loads(file.read_text())
        assert content.pop("version") == "rc2"
        assert content.pop("metric") == file.stem
        for triplet in split.triplets:
            names = content.pop(triplet.pair_id)
            assert len(set(names)) == length
            assert triplet.reference not in names
            assert length == 50 or set(names) <= set(triplet.members)
        assert content == {}


def test_the_lists_do_not_depend_on_the_batch_size(run, tmp_path):
    for size in ("5", "64"):
        assert _submit(run, "--output", str(tmp_path / size), "--batch_size", size) == 0
    first, second = (json.loads((tmp_path / size / "recall.json").read_text()) for size in ("5", "64"))
    same = sum(first[key] == second[key] for key in first)
    # Scores of the last bit may change places.
    assert same >= 0.8 * len(first)


def test_a_split_that_is_too_small_is_refused(run, tmp_path, capsys):
    assert _submit(run, "--split", "train", "--output", str(tmp_path / "files")) == 1
    assert "the gallery has 30 images, expected at least 51" in capsys.readouterr().err
    assert not (tmp_path / "files").exists()


def test_other_data_sets_have_no_server(world_of, tmp_path, capsys):
    run = world_of("FashionIQ").begin_run(tmp_path / "run")
    assert _submit(run) == 1
    assert "trained on FashionIQ; the test server takes CIRR alone" in capsys.readouterr().err
