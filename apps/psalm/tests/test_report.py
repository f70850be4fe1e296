"""`psalm evaluate` and `psalm report`: scores, predictions, pictures, model card, and the page written again."""

import json
from dataclasses import replace

import pytest
from psalm.cli import main
from psalm.config import DataSettings, EvaluationSettings, Settings, SyntheticSettings
from psalm.evaluate_run import asked_data, asked_evaluation
from psalm.report import read_evaluation
from psalm.synthetic import write_world
from psalm.verbs import EvaluateSettings
from region_training.run_folder import RunFolder

pytestmark = pytest.mark.slow  # the one evaluation that all tests here read

WORLD = SyntheticSettings(train_scenes=2, eval_scenes=2, image_size=64)


@pytest.fixture(scope="module")
def evaluated(toy, tmp_path_factory) -> tuple[RunFolder, dict[str, str]]:
    """A run folder as training leaves it, with a model that has learned nothing, evaluated by the command."""
    root = tmp_path_factory.mktemp("runs")
    write_world(root / "world", WORLD)
    run = RunFolder(root / "run")
    data = DataSettings(synthetic=WORLD, synthetic_root=str(root / "world"), image_size=toy.side)
    evaluation = EvaluationSettings(max_samples=2, num_pictures=1)
    settings = Settings(run_dir=str(run.path), model=toy.settings(), data=data, evaluation=evaluation)
    run.begin(settings)
    toy.model(seed=3).save_pretrained(run.model_path)
    toy.processor().save_pretrained(run.model_path)
    assert main(["evaluate", str(run.path), "--max_samples", "2", "--batch_size", "4", "--device", "cpu"]) == 0
    return run, {"page": run.report_path.read_text(), "results": run.results_path.read_text()}


def test_everything_that_a_finished_run_has_is_there(evaluated):
    run, files = evaluated
    results = json.loads(files["results"])
    assert list(results["scores"]) == ["model", "untrained", "trivial"]
    assert results["scores"]["model"] != results["scores"]["untrained"]
    assert results["groups"]["referring"]["num_records"] == 2
    assert results["note"] is None
    assert results["split"] == "val"
    assert results["groups"]["referring"]["measure"] == "gIoU"
    assert "Every record is held out" in files["page"]
    names = {path.name for path in (run.path / "predictions").iterdir()}
    assert {"predictions.jsonl", "panoptic.json", "panoptic", "instance.json"} <= names
    lines = (run.path / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == sum(group["num_records"] for group in results["groups"].values())
    assert {"panoptic-00", "semantic-00", "region-point-00", "cross_image-00"} <= {path.stem for path in run.samples()}


def test_the_card_and_the_page_have_the_baselines_beside_the_scores(evaluated):
    run, files = evaluated
    card = (run.model_path / "README.md").read_text()
    assert "PSALMModel.from_pretrained" in card
    assert "| measure | model | untrained | trivial |" in card
    for words in ("Held-out scores", "Pictures: panoptic", "Pictures: region/point", "one sentence per record"):
        assert words in files["page"]
    # Six modes, of which regions are four data sets.
    assert files["page"].count("data:image/png") == 9


def test_the_page_is_written_again_without_the_model(evaluated, capsys):
    run, files = evaluated
    run.report_path.unlink()
    assert main(["report", str(run.path)]) == 0
    assert capsys.readouterr().out.strip() == str(run.report_path)
    assert run.report_path.read_text() == files["page"]
    kept = read_evaluation(run)
    assert kept.scores == json.loads(files["results"])["scores"]
    assert kept.groups["instance"].trivial == "nothing"


def contents(run: RunFolder) -> dict[str, bytes]:
    """All files of a run but its further evaluations."""
    files = (path for path in run.path.rglob("*") if path.is_file() and run.path / "evaluations" not in path.parents)
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def test_another_split_and_modes_are_written_beside_the_runs_own(evaluated, capsys):
    run, _ = evaluated
    before = contents(run)
    words = ["--modes", '["referring"]', "--split", "train", "--baselines", "false", "--max_samples", "2"]
    for size in ("1", "2"):  # again with another setting: the earlier one is replaced
        assert main(["evaluate", str(run.path), "--device", "cpu", *words, "--batch_size", size]) == 0
        assert "2 records of the split 'train'" in capsys.readouterr().out
    other = RunFolder.open(run.path / "evaluations" / "train-referring-2-samples")
    scores = other.read_results()["scores"]
    # The training split itself: the report says that its records were trained on.
    assert str(other.read_results()["note"]).startswith("Not held out: ")
    page = other.report_path.read_text()
    assert "refcoco_train.json is read for the splits" in page
    assert "held out" not in page.replace("Not held out", "")
    assert list(scores) == ["model"]
    assert {name.split("/")[0] for name in scores["model"]} == {"referring", "score"}
    assert other.read_config()["data"]["eval_split"] == "train"
    assert other.read_config()["evaluation"]["batch_size"] == 2
    assert {path.name for path in other.path.iterdir()} == {
        *("config.yaml", "results.json", "report.html", "predictions", "samples"),
    }
    assert contents(run) == before


def test_modes_that_are_named_lift_seg_task_and_are_the_headline():
    trained = DataSettings(seg_task="panoptic", cross_image_seg_task=False)
    asked = asked_data(trained, EvaluateSettings(run="r", modes=["semantic", "cross_image"]))
    assert asked.wanted_modes == ("semantic", "cross_image")
    assert asked.seg_task is None
    # The run's own question in other words is still its own.
    assert asked_data(trained, EvaluateSettings(run="r", modes=["region", "referring", "panoptic"])) == trained
    assert asked_data(trained, EvaluateSettings(run="r", split="val")) == trained
    assert asked_data(trained, EvaluateSettings(run="r", split="test")).seg_task == "panoptic"


def test_after_seg_task_other_modes_can_be_evaluated(evaluated, tmp_path):
    run, _ = evaluated
    again = RunFolder(tmp_path / "run")
    trained = run.load_settings(Settings)
    again.begin(replace(trained, run_dir=str(again.path), data=replace(trained.data, seg_task="panoptic")))
    again.model_path.symlink_to(run.model_path.resolve(), target_is_directory=True)
    words = ["--modes", "[instance]", "--baselines", "false", "--max_samples", "1", "--device", "cpu"]
    assert main(["evaluate", str(again.path), *words]) == 0
    found = RunFolder(again.path / "evaluations" / "val-instance-1-samples").read_results()
    assert list(found["groups"]) == ["instance"]
    assert not again.is_finished


def test_the_papers_choice_of_a_regions_mask_is_another_question(evaluated):
    run, _ = evaluated
    before = contents(run)
    words = ["--modes", "[region]", "--baselines", "false", "--prompt_agreement", "false", "--device", "cpu"]
    assert main(["evaluate", str(run.path), *words]) == 0
    other = RunFolder(run.path / "evaluations" / "val-region-score-alone")
    assert other.read_config()["evaluation"]["prompt_agreement"] is False
    assert other.read_results()["scores"]["model"]["region/point/cIoU"] >= 0
    assert contents(run) == before
    # Without a word the run's own choice stands.
    own = run.load_settings(Settings)
    for choice in (True, False):
        trained = replace(own.evaluation, prompt_agreement=choice)
        assert asked_evaluation(trained, EvaluateSettings(run="r")).prompt_agreement is choice


def test_a_run_that_was_not_evaluated_says_what_to_do(tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    run.begin(Settings(run_dir=str(run.path)))
    assert main(["report", str(run.path)]) == 1
    assert f"`psalm evaluate {run.path}` makes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"), [(["nowhere"], "no run at 'nowhere'"), (["RUN", "--split", "test"], "test")]
)
def test_what_is_not_there_is_one_message(evaluated, capsys, words, message):
    run, _ = evaluated
    assert main(["evaluate", *(str(run.path) if word == "RUN" else word for word in words), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
