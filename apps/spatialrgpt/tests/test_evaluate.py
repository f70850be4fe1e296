"""Evaluation: who answered what, the baselines beside it, ranks that share the work; and `spatialrgpt evaluate`."""

import json

import pytest
from region_heads.labels import Label, RegionPrediction
from region_heads.tasks import TaskType
from region_training.ranks import Ranks
from region_training.run_folder import RunFolder
from spatialrgpt.cli import main
from spatialrgpt.config import DataSettings, EvaluationSettings, Settings
from spatialrgpt.data import RegionDataset
from spatialrgpt.evaluate import AnsweredRecord, Evaluation, evaluate

QUICK = EvaluationSettings(batch_size=4, max_records=8, generate_records=4, max_new_tokens=4, num_pictures=1)


@pytest.fixture(scope="module")
def held_out(world, toy):
    return RegionDataset(world, "val", toy.processor(), with_answers=False)


@pytest.fixture(scope="module")
def evaluation(world, toy, model, held_out):
    return evaluate(model, held_out, QUICK, train_dataset=RegionDataset(world, "train", toy.processor()))


def _record(index, task, truth, head=None, parsed=None, text="words"):
    answer = None if head is None else RegionPrediction(task, head, 0.5)
    spoken = None if parsed is None else RegionPrediction(task, parsed, 1.0)
    return AnsweredRecord(index, Label(task, truth), 3, answer, text, spoken)


def test_every_chosen_question_is_answered_by_head_and_text(evaluation, held_out):
    assert len(evaluation.records) == 8
    # Spread over the split, not its beginning.
    assert max(record.index for record in evaluation.records) >= 7 * len(held_out) // 8 - 1
    assert all(record.head is not None for record in evaluation.records)
    # Whole batches are generated, so the first four of eight.
    assert [record.text is not None for record in evaluation.records] == [True] * 4 + [False] * 4
    assert set(evaluation.scores) == {"heads", "text", "question only", "majority / mean"}
    assert len(evaluation.heads.answers) == 8
    assert len(evaluation.text.answers) == 4


def test_the_table_has_every_answerer_beside_the_others(evaluation):
    table = evaluation.table()
    assert table.columns == ("measure", "heads", "text", "question only", "majority / mean")
    assert "mean of the four tasks" in [row[0] for row in table.rows]


def test_scores_by_hand():
    distance, count = TaskType.DISTANCE, TaskType.COUNTING
    records = [
        _record(0, distance, 2.0, head=2.1, parsed=2.3),  # 5 % and 15 % off
        _record(1, distance, 4.0, head=8.0, parsed=8.4),
        _record(2, count, 2, head=2, parsed=3),
        _record(3, count, 3, head=1),
    ]
    evaluation = Evaluation(records, {})
    assert evaluation.scores["heads"]["distance/success_10"] == 0.5
    assert evaluation.scores["heads"]["counting/accuracy"] == 0.5
    assert evaluation.scores["text"]["distance/success_25"] == 0.5
    assert evaluation.scores["text"]["distance/success_10"] == 0.0
    assert evaluation.scores["text"]["counting/accuracy"] == 0.0
    # Head and text both answered three; 2.3 is within a tenth of 2.1, 8.4 of 8.0, and 3 is not 2.
    assert evaluation.agreement() == pytest.approx(2 / 3)


def test_text_that_says_nothing_is_scored_as_wrong_not_left_out():
    evaluation = Evaluation([_record(0, TaskType.COUNTING, 2, head=2, text="???")], {})
    assert evaluation.scores["text"]["counting/accuracy"] == 0.0
    assert evaluation.agreement() is None


def test_without_heads_and_without_text_there_is_no_score():
    evaluation = Evaluation([_record(0, TaskType.COUNTING, 2, text=None)], {"majority / mean": {"score": 0.3}})
    assert evaluation.heads is None
    assert evaluation.text is None
    assert evaluation.scores == {"majority / mean": {"score": 0.3}}


class _TwoRanks(Ranks):
    """Stands for two ranks: what this one gathers is joined with what the other one had."""

    def __init__(self, rank, shares):  # without a process group
        self.rank, self.world_size, self._shares = rank, 2, shares

    def gather(self, own):
        self._shares[self.rank] = own
        return list(self._shares.values())


def test_ranks_share_the_work_and_repeat_the_end_to_run_equally_often(model, held_out, evaluation):
    shares = {}
    settings = EvaluationSettings(batch_size=4, max_records=7, generate_records=0)
    for rank in range(2):
        joined = evaluate(model, held_out, settings, ranks=_TwoRanks(rank, shares))
    assert [len(share) for share in shares.values()] == [4, 4]
    whole = evaluate(model, held_out, settings)
    answers = {record.index: record.head for record in joined.records}
    assert set(answers) == {record.index for record in whole.records}
    assert len(joined.records) == 7
    for record in whole.records:
        assert answers[record.index].confidence == pytest.approx(record.head.confidence, rel=1e-4)


@pytest.fixture
def run(world, toy, model, tmp_path) -> RunFolder:
    """A run folder as training leaves it, with a model that has learned nothing."""
    run = RunFolder(tmp_path / "run")
    run.begin(Settings(run_dir=str(run.path), data=DataSettings(root=str(world)), evaluation=QUICK))
    model.save_pretrained(run.model_path)
    toy.processor().save_pretrained(run.model_path)
    return run


@pytest.mark.slow
def test_the_command_writes_scores_answers_pictures_and_report(run, evaluation, capsys):
    words = ["--max_records", "8", "--generate_records", "4", "--batch_size", "4", "--device", "cpu"]
    assert main(["evaluate", str(run.path), *words]) == 0
    shown = capsys.readouterr().out
    assert "8 held-out questions" in shown
    assert "question only" in shown
    scores = run.read_results()["scores"]
    assert set(scores) == set(evaluation.scores)
    # The same model on the same questions; only the length of the sentences differs.
    assert scores["heads"]["score"] == pytest.approx(evaluation.scores["heads"]["score"])
    assert run.report_path.is_file()
    assert "evaluated on `val`" in " ".join((run.model_path / "README.md").read_text().split())
    assert run.samples()
    assert len((run.path / "answers.jsonl").read_text().splitlines()) == 8


def test_another_split_is_written_beside_the_runs_own(run, world):
    words = ["--split", "train", "--max_records", "6", "--generate_records", "0", "--device", "cpu"]
    assert main(["evaluate", str(run.path), *words]) == 0
    assert not run.is_finished
    beside = RunFolder.open(run.path / "evaluations" / "train-6-records")
    train = json.loads((world / "train.json").read_text())
    answers = [json.loads(line) for line in (beside.path / "answers.jsonl").read_text().splitlines()]
    assert max(answer["index"] for answer in answers) == 5 * len(train) // 6
    assert beside.report_path.is_file()
    assert "text" not in beside.read_results()["scores"]
    assert not (run.model_path / "README.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nowhere"], "no run at 'nowhere'"), (["RUN", "--split", "test"], "test.json")],
)
def test_what_is_not_there_is_one_message(run, capsys, words, message):
    assert main(["evaluate", *(str(run.path) if word == "RUN" else word for word in words), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_run_without_a_model_says_so(run, capsys):
    for path in run.model_path.iterdir():
        path.unlink()
    assert main(["evaluate", str(run.path), "--device", "cpu"]) == 1
    assert "the run has no model yet" in capsys.readouterr().err
