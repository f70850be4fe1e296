"""What a finished run holds: answers, pictures, errors by frame, report page, model card."""

import json

import pytest
from lmms.answers import AnsweredRecord
from lmms.cli import main
from lmms.config import DataSettings, EvaluationSettings, Settings, SyntheticSettings
from lmms.data import VideoDataset
from lmms.evaluate import BLIND, MODEL, OTHERS, SHUFFLED, Evaluation
from lmms.frame_errors import FrameErrors
from lmms.report import finish_run, read_evaluation, write_answers
from lmms.synthetic import write_world
from region_training.run_folder import RunFolder

SCORES = {MODEL: {"direction/accuracy": 50.0, "score": 50.0, "ar_skill": 0.25}, SHUFFLED: {"score": 25.0}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root, SyntheticSettings(train_clips=4, eval_clips=8, image_size=32))
    return root


@pytest.fixture(scope="module")
def held_out(world, toy):
    data = DataSettings(root=str(world), max_frames=4, max_length=512, backend="pyav")
    return VideoDataset.open(data, ["val.json"], toy.family())


@pytest.fixture(scope="module")
def evaluation(held_out) -> Evaluation:
    """Invented answers; every second one is right, and one looks like markup."""
    records = []
    for index in range(len(held_out)):
        record = held_out.record(index)
        said = record.answer if index % 2 else "<b>sideways</b> $x"
        records.append(
            AnsweredRecord(
                index, record.id, record.kind, record.question, record.answer, {MODEL: said, OTHERS: "up", BLIND: "up"}
            )
        )
    return Evaluation(SCORES, records)


@pytest.fixture
def run(world, toy, tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    data = DataSettings(root=str(world), max_frames=4, max_length=512)
    pictures = EvaluationSettings(num_pictures=1)
    run.begin(Settings(run_dir=str(run.path), model=toy.settings(), data=data, evaluation=pictures))
    run.model_path.mkdir()
    lines = [{"step": step, "main_loss": 1.0 / step, "ar_skill": 0.1 * step} for step in (1, 2, 3)]
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture
def finished(run, evaluation, held_out, toy):
    finish_run(run, run.load_settings(Settings), evaluation, held_out, toy.model())
    return run


def test_an_evaluation_is_read_back_as_it_was(run, evaluation):
    write_answers(run, evaluation)
    run.finish({"scores": evaluation.scores})
    assert read_evaluation(run) == evaluation


def test_a_finished_run_has_everything(run, evaluation, held_out, toy, capsys):
    finish_run(run, run.load_settings(Settings), evaluation, held_out, toy.model())
    shown = capsys.readouterr().out
    assert f"{len(held_out)} held-out records" in shown
    assert f"report: {run.report_path}\n" in shown
    assert run.read_results() == {"scores": SCORES}
    errors = FrameErrors.read(run.path)
    assert errors.positions == (1, 2, 3)
    names = {path.stem for path in run.samples()}
    assert "mask" in names
    seen = {(record.is_right(MODEL), record.kind) for record in evaluation.records if _has_pixels(held_out, record)}
    assert names - {"mask"} == {f"{'right' if right else 'wrong'}-{kind}-0" for right, kind in seen}
    card = (run.model_path / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained" in card
    assert "evaluated on `val.json`" in card


def _has_pixels(held_out, answered):
    record = held_out.record(answered.index)
    return bool(record.videos or record.images)


def test_the_command_writes_the_page_again_without_the_model(finished, capsys):
    finished.report_path.unlink()
    capsys.readouterr()
    assert main(["report", str(finished.path)]) == 0
    assert capsys.readouterr().out.strip() == str(finished.report_path)
    page = finished.report_path.read_text()
    for words in ("Held-out scores", "Words and frames", "Errors by frame", "Mask of the predictor", "Wrong answers"):
        assert words in page
    for who in SCORES:
        assert who in page
    assert "Right answers" in page
    assert "<b>sideways" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_an_evaluation_of_other_records_needs_no_weights_beside_it(run, evaluation, held_out, toy):
    """As `evaluate` with other files writes it: a folder without model and metrics."""
    other = RunFolder(run.path / "evaluations" / "other")
    settings = run.load_settings(Settings)
    other.begin(settings)
    finish_run(other, settings, evaluation, held_out, toy.model(enable_autoregressive=False))
    assert other.report_path.is_file()
    assert not other.model_path.exists()
    assert FrameErrors.read(other.path) is None


def test_pictures_of_an_earlier_evaluation_go(finished, held_out, toy):
    before = {path.name for path in finished.samples()}
    settings = finished.load_settings(Settings)
    finish_run(finished, settings, Evaluation(SCORES, []), held_out, toy.model())
    assert {path.name for path in finished.samples()} == {"mask.png"} < before


def test_a_run_that_was_not_evaluated_says_what_to_do(run, capsys):
    assert main(["report", str(run.path)]) == 1
    assert f"`lmms evaluate {run.path}` makes it" in capsys.readouterr().err
