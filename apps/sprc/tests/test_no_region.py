"""A run without the region loss beside one with it: which runs may be compared, and what the comparison shows."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from region_training.run_folder import RunFolder
from region_training.settings import ConfigError, TrainingSettings
from sprc.cli import main
from sprc.evaluate import MODEL, evaluate
from sprc.model import SPRCModel
from sprc.no_region import NO_REGION, check_no_region_run
from sprc.report import read_evaluation
from sprc.train import finish


def _run(cirr, path, *, regions, training=None, **data):
    """A run folder as training leaves it; the weights with and without the region loss differ."""
    run = RunFolder(path)
    settings = replace(
        cirr.settings,
        run_dir=str(path),
        model=replace(cirr.settings.model, use_region_loss=regions),
        data=replace(cirr.settings.data, box_file=str(cirr.root / "boxes/pairs.{split}.json"), **data),
        training=training or cirr.settings.training,
    )
    run.begin(settings)
    cirr.model.save_pretrained(run.model_path)
    if regions:
        model = SPRCModel.from_pretrained(run.model_path)
        torch.nn.init.normal_(model.composer.vision_projection.weight)
        model.save_pretrained(run.model_path)
    cirr.tokenizer.save_pretrained(run.model_path)
    return run, settings


@pytest.fixture
def runs(cirr, tmp_path):
    """One run with the region loss, and one without."""
    return _run(cirr, tmp_path / "regions", regions=True)[0], _run(cirr, tmp_path / "plain", regions=False)[0]


def _evaluate(run, *words):
    return main(["evaluate", str(run.path), "--batch_size", "16", "--device", "cpu", *words])


def test_the_row_is_the_other_runs_own_evaluation(runs, cirr, capsys):
    regions, plain = runs
    assert _evaluate(plain) == 0
    expected = plain.read_results()["scores"][MODEL]
    capsys.readouterr()
    assert _evaluate(regions, "--no_region_run", str(plain.path)) == 0
    shown = capsys.readouterr().out
    assert NO_REGION in shown
    assert f"{NO_REGION}: the model of {plain.path}, by the same protocol." in shown
    scores = regions.read_results()["scores"]
    assert list(scores)[:2] == [MODEL, NO_REGION]
    assert scores[NO_REGION] == pytest.approx(expected)
    assert scores[NO_REGION] != pytest.approx(scores[MODEL])
    assert read_evaluation(regions).table().columns[:3] == ("measure", MODEL, NO_REGION)
    for page in (regions.report_path, regions.path / "retrieved.html", regions.model_path / "README.md"):
        assert NO_REGION in page.read_text()


def test_without_the_row_the_table_says_how_to_get_it(runs, capsys):
    regions, plain = runs
    assert _evaluate(regions) == 0
    # Without a path: the same run in another folder has the same results.
    how = "call `sprc evaluate RUN --no_region_run OTHER`"
    assert how in capsys.readouterr().out
    assert how in regions.read_results()["note"]
    assert "--no_region_run OTHER" in regions.report_path.read_text()
    assert NO_REGION not in regions.read_results()["scores"]
    # A run without the region loss has nothing to be told.
    assert _evaluate(plain) == 0
    assert plain.read_results()["note"] == ""
    assert NO_REGION not in capsys.readouterr().out


def test_training_writes_the_row_of_the_run_that_its_configuration_names(cirr, tmp_path, capsys):
    plain, _ = _run(cirr, tmp_path / "plain", regions=False)
    run, settings = _run(cirr, tmp_path / "regions", regions=True)
    settings = replace(settings, evaluation=replace(settings.evaluation, no_region_run=str(plain.path)))
    held_out = cirr.open()
    found = evaluate(SPRCModel.from_pretrained(run.model_path).eval(), cirr.tokenizer, held_out, settings.evaluation)
    finish(settings, run, found, held_out)
    scores = run.read_results()["scores"]
    alone = evaluate(cirr.model, cirr.tokenizer, held_out, settings.evaluation)
    assert scores[NO_REGION] == pytest.approx(alone.scores[MODEL])
    assert NO_REGION in capsys.readouterr().out


def test_another_split_is_the_same_for_both(runs, cirr, capsys):
    regions, plain = runs
    assert _evaluate(plain, "--split", "train") == 0
    assert _evaluate(regions, "--split", "train", "--no_region_run", str(plain.path)) == 0
    folders = [RunFolder.open(run.path / "evaluations" / "train") for run in (plain, regions)]
    other, own = (folder.read_results()["scores"] for folder in folders)
    assert own[NO_REGION] == pytest.approx(other[MODEL])


@pytest.mark.parametrize(
    ("mine", "other", "message"),
    [
        (True, {"regions": True}, "was trained with the region loss, expected model.use_region_loss off"),
        (False, {"regions": False}, "has model.use_region_loss off, expected it on"),
        (True, {"regions": False, "transform": "squarepad"}, "data.transform 'squarepad', expected 'targetpad'"),
        (True, {"regions": False, "train_split": "val"}, "other data: data.train_split 'val', expected 'train'"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(cirr, tmp_path, capsys, mine, other, message):
    run, _ = _run(cirr, tmp_path / "mine", regions=mine)
    compared, _ = _run(cirr, tmp_path / "other", **other)
    assert _evaluate(run, "--no_region_run", str(compared.path)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not run.results_path.exists()


def test_other_triplets_in_another_folder_are_other_data_and_a_copy_is_not(cirr, tmp_path):
    _, settings = _run(cirr, tmp_path / "mine", regions=True)
    root = tmp_path / "copy"
    shutil.copytree(cirr.root, root)
    other, _ = _run(cirr, tmp_path / "other", regions=False, root=str(root))
    check_no_region_run(str(other.path), settings)
    captions = root / "cirr/captions/cap.rc2.train.json"
    records = json.loads(captions.read_text())
    records[0]["caption"] = "make everything blue"
    captions.write_text(json.dumps(records))
    with pytest.raises(ConfigError, match=r"trained on other data: other triplets in '.*copy', expected those of"):
        check_no_region_run(str(other.path), settings)


def test_runs_that_differ_in_more_than_the_loss_are_warned_of(cirr, tmp_path, caplog):
    _, settings = _run(cirr, tmp_path / "mine", regions=True)
    same, _ = _run(cirr, tmp_path / "same", regions=False)
    check_no_region_run(str(same.path), settings)
    assert caplog.text == ""
    longer, _ = _run(cirr, tmp_path / "longer", regions=False, training=TrainingSettings(device="cpu", num_epochs=2.0))
    check_no_region_run(str(longer.path), settings)
    assert "differs in more than the region loss: training.num_epochs (2.0 there, 1.0 here)" in caplog.text


def test_a_run_without_a_model_is_named(runs, capsys):
    regions, plain = runs
    (plain.model_path / "model.safetensors").unlink()
    assert _evaluate(regions, "--no_region_run", str(plain.path)) == 1
    assert "is the run finished?" in capsys.readouterr().err
    assert _evaluate(regions, "--no_region_run", str(plain.path / "nowhere")) == 1
    assert "no run at" in capsys.readouterr().err
