"""Answers kept and read back, pictures of cases, and a page that is written again without the model."""

import json

import numpy as np
import pytest
from region_heads.labels import Label, RegionPrediction
from region_heads.tasks import TaskType
from region_training.images import read_image
from region_training.run_folder import RunFolder
from spatialrgpt.cli import main
from spatialrgpt.config import DataSettings, EvaluationSettings, Settings
from spatialrgpt.data import RegionDataset
from spatialrgpt.evaluate import AnsweredRecord, Evaluation
from spatialrgpt.report import draw_cases, finish_run, read_evaluation, write_answers

BASELINES = {"majority / mean": {"score": 0.25, "counting/accuracy": 0.25}}


@pytest.fixture(scope="module")
def held_out(world, toy):
    return RegionDataset(world, "val", toy.processor(), with_answers=False)


@pytest.fixture(scope="module")
def evaluation(held_out) -> Evaluation:
    """Invented answers to all questions: every third is wrong, every fifth sentence says nothing."""
    records = []
    for index, label in enumerate(held_out.labels):
        truth = "left" if label.task is TaskType.LEFT_RIGHT and label.value == 0 else label.value
        truth = "right" if label.task is TaskType.LEFT_RIGHT and label.value == 1 else truth
        wrong = {"left": "right", "right": "left"}.get(truth) if isinstance(truth, str) else truth + 1
        said = wrong if index % 3 == 0 else truth
        parsed = None if index % 5 == 0 else RegionPrediction(label.task, said, 1.0)
        head = RegionPrediction(label.task, said, 0.5 + index / 1000)
        num_regions = len(held_out.records[index]["rle"])
        records.append(AnsweredRecord(index, label, num_regions, head, f"It is {said} <b>.", parsed))
    return Evaluation(records, BASELINES)


@pytest.fixture
def run(world, tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    evaluation = EvaluationSettings(num_pictures=1)
    run.begin(Settings(run_dir=str(run.path), data=DataSettings(root=str(world)), evaluation=evaluation))
    run.model_path.mkdir()
    return run


def test_answers_are_read_back_as_they_were(run, evaluation):
    write_answers(run, evaluation)
    run.finish({"scores": evaluation.scores})
    again = read_evaluation(run)
    assert again.records == [
        AnsweredRecord(
            item.index,
            Label(item.label.task, item.label.value),
            item.num_regions,
            item.head,
            item.text,
            item.parsed,
        )
        for item in evaluation.records
    ]
    assert again.scores == evaluation.scores


@pytest.mark.slow
def test_the_worst_cases_are_the_wrong_ones(run, evaluation, held_out):
    draw_cases(run, 2, evaluation, held_out)
    names = {path.name for path in run.samples()}
    for task in TaskType:
        assert {f"worst-{task.label}-0.png", f"sample-{task.label}-0.png"} <= names
    assert np.ptp(read_image(run.samples()[0])) > 0
    draw_cases(run, 0, evaluation, held_out)
    assert run.samples() == []


@pytest.mark.slow
def test_a_finished_run_has_everything(run, evaluation, held_out, capsys):
    finish_run(run, run.load_settings(Settings), evaluation, held_out)
    assert "held-out questions" in capsys.readouterr().out
    results = run.read_results()
    assert set(results) == {"scores", "text_agrees_with_heads"}
    assert results["text_agrees_with_heads"] == 1.0
    assert json.loads(run.results_path.read_text())["scores"]["majority / mean"] == BASELINES["majority / mean"]
    card = (run.model_path / "README.md").read_text()
    assert "SpatialRGPTForConditionalGeneration.from_pretrained" in card
    assert "majority / mean" in card


@pytest.mark.slow
def test_the_command_writes_the_page_again_without_the_model(run, evaluation, held_out, capsys):
    finish_run(run, run.load_settings(Settings), evaluation, held_out)
    page = run.report_path.read_text()
    run.report_path.unlink()
    capsys.readouterr()
    assert main(["report", str(run.path)]) == 0
    assert capsys.readouterr().out.strip() == str(run.report_path)
    again = run.report_path.read_text()
    for heading in ("Held-out scores", "Answers of the typed heads", "Answers of the generated text", "Worst answers"):
        assert heading in page
        assert heading in again
    # What a model says is data, not markup.
    assert "It is 1 <b>." not in again


def test_a_run_that_was_not_evaluated_says_what_to_do(run, capsys):
    assert main(["report", str(run.path)]) == 1
    assert f"`spatialrgpt evaluate {run.path}` makes it" in capsys.readouterr().err
