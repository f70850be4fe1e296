"""Evaluation: answers and losses of held-out records, their controls, and ranks that share the work."""

import pytest
import torch
from lmms.answers import AnsweredRecord
from lmms.config import DataSettings, EvaluationSettings, SyntheticSettings
from lmms.data import VideoDataset
from lmms.evaluate import BLIND, MODEL, OTHERS, SHUFFLED, Evaluation, batches_of, evaluate
from lmms.synthetic import write_world
from region_training.ranks import Ranks

QUICK = EvaluationSettings(batch_size=5, max_records=13, max_new_tokens=3)
LOSSES = ("main_loss", "autoregressive_loss", "total_loss", "autoregressive_loss_raw", "ar_copy_loss", "ar_skill")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root, SyntheticSettings(train_clips=10, eval_clips=10, image_size=32))
    return root


@pytest.fixture(scope="module")
def held_out(world, toy):
    return opened(world, toy)


@pytest.fixture(scope="module")
def train_records(world, toy):
    train = opened(world, toy, "train.json")
    return [train.record(index) for index in range(len(train))]


@pytest.fixture(scope="module")
def model(toy):
    return toy.model()


@pytest.fixture(scope="module")
def evaluation(model, held_out, train_records):
    return evaluate(model, held_out, QUICK, train_records=train_records)


def opened(world, toy, name="val.json"):
    settings = DataSettings(root=str(world), max_frames=4, max_length=512, backend="pyav")
    return VideoDataset.open(settings, [name], toy.family())


def test_every_chosen_record_is_answered_by_everyone_who_can(evaluation, held_out):
    assert len(evaluation.records) == 13
    assert max(record.index for record in evaluation.records) >= 12 * len(held_out) // 13
    for found in evaluation.records:
        record = held_out.record(found.index)
        assert (found.record_id, found.kind) == (record.id, record.kind)
        assert (found.question, found.truth) == (record.question, record.answer)
        # All rows are of the same records, so their means compare.
        assert {MODEL, SHUFFLED, BLIND} <= set(found.said)
        assert record.videos or found.said[OTHERS] == found.said[SHUFFLED] == found.said[MODEL]
        assert all(isinstance(text, str) for text in found.said.values())
    assert list(evaluation.scores) == [MODEL, SHUFFLED, OTHERS, BLIND]


def test_losses_are_those_of_all_records_at_once(evaluation, model, held_out, toy):
    samples = [held_out[found.index] for found in evaluation.records]
    with torch.no_grad():
        losses = model(**toy.batch(samples)).losses
    own = evaluation.scores[MODEL]
    assert set(LOSSES) <= set(own)
    assert own["main_loss"] == pytest.approx(float(losses.mean("main")), rel=1e-4)
    assert own["autoregressive_loss_raw"] == pytest.approx(float(losses.mean("autoregressive")), rel=1e-4)
    assert own["ar_copy_loss"] == pytest.approx(float(losses.mean("autoregressive_copy")), rel=1e-4)
    assert own["total_loss"] == pytest.approx(own["main_loss"] + own["autoregressive_loss"])
    assert own["autoregressive_loss"] == pytest.approx(0.1 * own["autoregressive_loss_raw"])


def test_shuffled_frames_have_the_reconstruction_losses_alone(evaluation):
    shuffled = evaluation.scores[SHUFFLED]
    assert {"autoregressive_loss_raw", "ar_copy_loss", "ar_skill"} <= set(shuffled)
    in_order = evaluation.scores[MODEL]["ar_copy_loss"]
    assert shuffled["ar_skill"] == pytest.approx(1 - shuffled["autoregressive_loss_raw"] / in_order)
    assert not {"main_loss", "total_loss"} & set(shuffled)
    assert shuffled["ar_copy_loss"] != pytest.approx(evaluation.scores[MODEL]["ar_copy_loss"], rel=1e-3)
    assert not set(LOSSES) & set(evaluation.scores[OTHERS])
    assert "text/accuracy" not in shuffled


def test_scores_and_table_by_hand():
    right, wrong = {MODEL: "left", BLIND: "up"}, {MODEL: "up", BLIND: "up", SHUFFLED: "left"}
    records = [
        AnsweredRecord(0, "a", "direction", "Where?", "left", right),
        AnsweredRecord(1, "b", "direction", "Where?", "left", wrong),
    ]
    scores = {MODEL: {"direction/accuracy": 50.0, "temporal": 50.0, "ar_skill": 0.5}, BLIND: {"temporal": 0.0}}
    evaluation = Evaluation(scores, records)
    assert evaluation.headline == 50.0
    table = evaluation.table()
    assert table.title == "2 held-out records, accuracies in percent"
    assert table.columns == ("measure", MODEL, BLIND)
    assert table.rows == (
        ("direction/accuracy", 50.0, None),
        ("temporal", 50.0, 0.0),
        ("ar_skill", 0.5, None),
    )


def test_controls_and_blind_answers_can_be_left_out(model, held_out):
    settings = EvaluationSettings(batch_size=5, max_records=4, max_new_tokens=2, controls=False)
    found = evaluate(model, held_out, settings)
    assert list(found.scores) == [MODEL]
    assert all(set(record.said) == {MODEL} for record in found.records)


def test_a_model_without_the_module_has_no_reconstruction_losses(toy, held_out):
    settings = EvaluationSettings(batch_size=4, max_records=4, max_new_tokens=2)
    found = evaluate(toy.model(enable_autoregressive=False), held_out, settings)
    assert found.scores[MODEL]["total_loss"] == found.scores[MODEL]["main_loss"]
    assert not {"ar_skill", "autoregressive_loss"} & set(found.scores[MODEL])
    assert set(found.scores[SHUFFLED]) == {name for name in found.scores[SHUFFLED] if not name.endswith("loss")}


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 13])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_have_equally_many_batches_and_every_record_counts_once(count, world_size):
    plans = [batches_of(count, 3, rank, world_size) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    assert all(len({len(batch) for batch, _ in turn}) == 1 for turn in zip(*plans, strict=True))
    counted = [position for plan in plans for batch, is_repeated in plan if not is_repeated for position in batch]
    assert sorted(counted) == list(range(count))
    assert all(0 < len(batch) <= 3 for plan in plans for batch, _ in plan)


class _TwoRanks(Ranks):
    """Stands for two ranks: what this one gathers is joined with what the other one had."""

    def __init__(self, rank, shares):  # without a process group
        self.rank, self.world_size, self._shares = rank, 2, shares

    def gather(self, own):
        self._shares[self.rank] = own
        return list(self._shares.values())


def test_two_ranks_find_what_one_finds(model, held_out, train_records, evaluation):
    shares = {}
    for rank in range(2):
        joined = evaluate(model, held_out, QUICK, train_records=train_records, ranks=_TwoRanks(rank, shares))
    # Thirteen records are seven for each, one of them twice; it counts once.
    assert [len(said) for said, _ in shares.values()] == [7, 6]
    assert joined.records == evaluation.records
    assert list(joined.scores) == list(evaluation.scores)
    for who, scores in evaluation.scores.items():
        assert joined.scores[who] == pytest.approx(scores, rel=1e-4)


def test_every_family_can_be_evaluated(each, world):
    settings = EvaluationSettings(batch_size=4, max_records=4, max_new_tokens=2)
    found = evaluate(each.model(), opened(world, each), settings)
    assert set(LOSSES) <= set(found.scores[MODEL])
    assert len(found.records) == 4
