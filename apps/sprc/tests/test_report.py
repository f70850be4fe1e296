"""What a finished run holds: records, contact sheet with the triplets' boxes, report, model card."""

import json
from dataclasses import replace

import pytest
from sprc.cli import main
from sprc.config import Settings
from sprc.evaluate import Evaluation, RetrievedRecord, evaluate
from sprc.opening import open_dataset
from sprc.report import choose_cases, finish_run, make_case, read_evaluation, write_records


def _record(pair_id, rank):
    return RetrievedRecord(pair_id, rank, None, ("a",), (0.5,))


@pytest.fixture(scope="module")
def held_out(cirr):
    data = replace(cirr.settings.data, box_file=str(cirr.root / "boxes" / "pairs.{split}.json"))
    return open_dataset(data, cirr.model.config, "val")


@pytest.fixture(scope="module")
def evaluation(cirr, held_out) -> Evaluation:
    return evaluate(cirr.model, cirr.tokenizer, held_out, cirr.settings.evaluation)


@pytest.fixture
def run(cirr, tmp_path):
    return cirr.begin_run(tmp_path / "run")


@pytest.fixture
def finished(run, evaluation, held_out):
    finish_run(run, run.load_settings(Settings), evaluation, held_out)
    return run


def test_an_evaluation_is_read_back_as_it_was(run, evaluation):
    write_records(run, evaluation)
    run.finish({"scores": evaluation.scores, "protocol": evaluation.protocol})
    again = read_evaluation(run)
    assert again == evaluation


def test_half_of_the_cases_are_the_worst_and_none_comes_twice():
    records = [_record(str(rank), rank) for rank in range(1, 21)]
    chosen = choose_cases(records, 6)
    assert [record.rank for record in chosen[:3]] == [20, 19, 18]
    assert [record.rank for record in chosen[3:]] == [1, 6, 12]
    assert len({record.pair_id for record in choose_cases(records, 19)}) == 19
    assert sorted(record.rank for record in choose_cases(records, 50)) == list(range(1, 21))
    assert choose_cases(records, 0) == []
    assert choose_cases([], 4) == []


def test_a_case_has_the_boxes_of_its_triplet(held_out, evaluation):
    boxes = json.loads(held_out.regions.box_file.path.read_text())
    record = next(record for record in evaluation.records if boxes[record.pair_id])
    case = make_case(record, held_out)
    triplet = next(triplet for triplet in held_out.split.triplets if triplet.pair_id == record.pair_id)
    wanted = [tuple(pair["target"]) for pair in boxes[record.pair_id]]
    assert set(case.target_boxes) <= set(wanted)
    assert len(case.target_boxes) == len(case.reference_boxes) == min(len(wanted), 4)
    assert (case.target_name, case.target_rank) == (triplet.target, record.rank)
    assert case.target == held_out.split.image_path(triplet.target)
    assert [image.name for image in case.results] == list(record.found)
    assert case.caption == held_out.evaluation_caption(triplet)


def test_a_finished_run_has_everything(run, evaluation, held_out, capsys):
    finish_run(run, run.load_settings(Settings), evaluation, held_out)
    shown = capsys.readouterr().out
    assert "48 held-out queries" in shown
    # A path is one line, however narrow the terminal.
    assert f"report: {run.report_path}\n" in shown
    assert set(run.read_results()) == {"scores", "protocol", "note"}
    page = run.report_path.read_text()
    for who, scores in evaluation.scores.items():
        assert who in page
        for measure in scores:
            assert measure in page
    assert f"{evaluation.scores['model']['Avg']:.4g}" in page
    card = (run.model_path / "README.md").read_text()
    assert "SPRCModel.from_pretrained" in card
    assert "evaluated on `val`" in " ".join(card.split())


def test_the_contact_sheet_shows_the_worst_with_targets_and_boxes(finished, held_out, evaluation):
    sheet = (finished.path / "retrieved.html").read_text()
    chosen = choose_cases(evaluation.records, 4)
    assert sheet.count("<article>") == len(chosen) == 4
    for record in chosen:
        assert f"target at rank {record.rank}" in sheet
        x0, y0, *_ = make_case(record, held_out).target_boxes[0]
        assert f'x="{x0}" y="{y0}"' in sheet
    assert "text only" in sheet
    assert "http" not in sheet.replace("http-equiv", "")


def test_the_command_writes_the_page_again_without_the_model(finished, capsys):
    finished.report_path.unlink()
    (finished.model_path / "model.safetensors").unlink()
    capsys.readouterr()
    assert main(["report", str(finished.path)]) == 0
    assert capsys.readouterr().out.strip() == str(finished.report_path)
    assert "Held-out recall" in finished.report_path.read_text()


@pytest.mark.parametrize("half_way", [False, True])
def test_a_run_that_was_not_evaluated_says_what_to_do(run, evaluation, capsys, half_way):
    if half_way:
        write_records(run, evaluation)
    assert main(["report", str(run.path)]) == 1
    error = capsys.readouterr().err
    assert f"`sprc evaluate {run.path}` makes it" in error
    assert "Traceback" not in error
