"""All modes in one pass: the same scores for any batch size and any number of ranks, with the baselines beside them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from psalm.config import DataSettings, EvaluationSettings, SyntheticSettings
from psalm.data import open_dataset
from psalm.evaluate import (
    MODEL,
    SCORE,
    TRIVIAL,
    UNTRAINED,
    Evaluation,
    Group,
    choose_places,
    evaluate,
    fit_trivial,
    name_groups,
)
from psalm.modes import MODES
from psalm.scoring import MAIN_MEASURE
from psalm.synthetic import write_world
from region_training.ranks import Ranks

WORLD = SyntheticSettings(train_scenes=2, eval_scenes=3, image_size=64)
QUICK = EvaluationSettings(batch_size=3, max_samples=3, score_threshold=0.1, target_threshold=0.3, match_threshold=0.3)


@pytest.fixture(scope="module")
def held_out(toy, tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root, WORLD)
    data = DataSettings(synthetic=WORLD, synthetic_root=str(root), image_size=toy.side)
    return open_dataset(data, "val", training=False)


@pytest.fixture(scope="module")
def evaluation(toy, model, held_out, tmp_path_factory) -> Evaluation:
    cache = tmp_path_factory.mktemp("run") / "untrained.json"
    return evaluate(model, toy.processor(), held_out, QUICK, untrained_cache=cache)


def test_every_mode_is_scored_with_both_baselines(evaluation, held_out):
    assert list(evaluation.scores) == [MODEL, UNTRAINED, TRIVIAL]
    assert {group.mode for group in evaluation.groups.values()} == set(MODES)
    # One row per type of prompt.
    assert {"region/point/gIoU", "region/scribble/gIoU", "region/box/gIoU", "region/mask/gIoU"} <= set(
        evaluation.scores[MODEL]
    )
    for measure in ("panoptic/PQ", "panoptic/mIoU", "panoptic/AP", "semantic/mIoU", "instance/AP", "referring/cIoU"):
        assert all(0 <= scores[measure] <= 100 for scores in evaluation.scores.values())
    # A prompt is a part of its target: who does not look scores more than nothing.
    assert evaluation.scores[TRIVIAL]["region/mask/gIoU"] > 50
    assert evaluation.groups["instance"].trivial == "nothing"
    assert len(evaluation.records) == sum(group.num_records for group in evaluation.groups.values())
    assert [record.position for record in evaluation.records] == list(range(len(evaluation.records)))


def test_the_table_has_the_answerers_beside_each_other(evaluation):
    table = evaluation.table()
    assert table.columns == ("measure", MODEL, UNTRAINED, TRIVIAL)
    assert table.rows[-1][0] == "mean of the modes"
    assert table.rows[-1][1] == evaluation.headline


def test_the_batch_size_does_not_matter(toy, model, held_out, evaluation):
    alone = evaluate(model, toy.processor(), held_out, replace(QUICK, batch_size=1, baselines=False))
    assert list(alone.scores) == [MODEL]
    for name, value in alone.scores[MODEL].items():
        assert value == pytest.approx(evaluation.scores[MODEL][name], abs=0.5), name


def test_data_workers_change_nothing(toy, model, held_out):
    settings = replace(QUICK, max_samples=2)
    before = torch.random.get_rng_state()
    alone, helped = (evaluate(model, toy.processor(), held_out, settings, num_workers=number) for number in (0, 2))
    assert helped == alone  # to the bit: scores, groups, records with their masks
    # Training that goes on after an evaluation is that without one.
    assert torch.equal(torch.random.get_rng_state(), before)


def test_trivial_answers_are_fitted_once(toy, model, held_out, monkeypatch):
    read = []
    source = held_out.sources[0]
    load = type(source).load
    monkeypatch.setattr(
        type(source), "load", lambda self, index, rng=None: read.append(index) or load(self, index, rng)
    )
    fit_trivial.cache_clear()
    numbers = []
    for _ in range(2):
        evaluate(model, toy.processor(), held_out, replace(QUICK, max_samples=1))
        numbers.append(len(read))
        read.clear()
    # The second time only the record that is asked.
    assert numbers == [len(source) + 1, 1]


def test_the_main_measure_is_that_of_data_with_one_target_each(evaluation):
    assert {name: group.measure for name, group in evaluation.groups.items()} == {
        name: MAIN_MEASURE[group.mode] for name, group in evaluation.groups.items()
    }


def test_the_headline_of_data_without_a_target_somewhere_is_of_united_masks(toy, model, held_out, monkeypatch):
    """gRefCOCO: who says "no target" everywhere has the share of sentences without one."""
    source = next(source for source in held_out.sources if source.mode == "referring")
    load = type(source).load

    def without_targets(self, index, rng=None):
        scene = load(self, index, rng)
        return scene if index else replace(scene, masks=scene.masks[:0], target_conditions=scene.target_conditions[:0])

    monkeypatch.setattr(type(source), "load", without_targets)
    fit_trivial.cache_clear()
    nobody = replace(QUICK, max_samples=2, target_threshold=1.0)
    found = evaluate(model, toy.processor(), held_out, nobody, main_mode="referring")
    assert found.groups["referring"].measure == "union_gIoU"
    assert found.groups["cross_image"].measure == "gIoU"
    assert found.headline == found.scores[MODEL]["referring/union_gIoU"] == 50.0
    assert found.groups["referring"].trivial == "no target"
    assert found.scores[TRIVIAL][SCORE] == 50.0


class _RankThread(Ranks):
    """One of two ranks that are threads of this process; `gather` waits for the other."""

    def __init__(self, rank, shares, barrier):  # without a process group
        self.rank, self.world_size, self._shares, self._barrier = rank, 2, shares, barrier

    def gather(self, value):
        self._shares[self.rank] = value
        self._barrier.wait(timeout=60)
        return [self._shares[0], self._shares[1]]


def test_two_ranks_run_the_model_equally_often_and_find_what_one_finds(toy, model, held_out):
    settings = replace(QUICK, batch_size=1, max_samples=1)
    whole = evaluate(model, toy.processor(), held_out, settings)
    shares, barrier = {}, threading.Barrier(2)

    def run(rank: int) -> Evaluation:
        return evaluate(model, toy.processor(), held_out, settings, ranks=_RankThread(rank, shares, barrier))

    with ThreadPoolExecutor(2) as pool:
        joined = list(pool.map(run, range(2)))
    # An odd number of records: one is answered twice, and counted once.
    assert len(choose_places(held_out, settings.max_samples)) % 2 == 1
    for found in joined:
        assert found.scores == whole.scores
        assert found.groups == whole.groups
        assert [record.record_id for record in found.records] == [record.record_id for record in whole.records]


def test_records_are_taken_at_equal_steps_of_every_source(held_out):
    places = choose_places(held_out, 2)
    for number, source in enumerate(held_out.sources):
        own = [index for place, index in places if place == number]
        assert own == [step * len(source) // min(2, len(source)) for step in range(min(2, len(source)))]
    assert len(choose_places(held_out, 0)) == sum(len(source) for source in held_out.sources)


def test_the_main_mode_decides_the_headline(toy, model, held_out, evaluation):
    found = evaluate(model, toy.processor(), held_out, replace(QUICK, baselines=False), main_mode="referring")
    assert found.headline == pytest.approx(found.scores[MODEL]["referring/gIoU"])
    own = found.scores[MODEL]
    main = [own[name] for name in ("panoptic/PQ", "semantic/mIoU", "instance/AP", "referring/gIoU", "cross_image/gIoU")]
    # A mode counts once, however many types of prompt it has.
    main.append(sum(own[f"region/{kind}/gIoU"] for kind in ("point", "scribble", "box", "mask")) / 4)
    assert evaluation.headline == pytest.approx(sum(main) / len(main), abs=0.5)


def test_the_untrained_model_is_scored_once_and_again_for_other_thresholds(toy, model, held_out, tmp_path):
    cache = tmp_path / "untrained.json"
    settings = replace(QUICK, max_samples=1)
    first = evaluate(model, toy.processor(), held_out, settings, untrained_cache=cache)
    kept = json.loads(cache.read_text())
    assert kept["scores"] == first.scores[UNTRAINED]
    cache.write_text(json.dumps(kept | {"scores": {SCORE: 12.5}}))
    again = evaluate(model, toy.processor(), held_out, settings, untrained_cache=cache)
    assert again.scores[UNTRAINED] == {SCORE: 12.5}
    other = evaluate(model, toy.processor(), held_out, replace(settings, match_threshold=0.4), untrained_cache=cache)
    assert other.scores[UNTRAINED] != {SCORE: 12.5}


def test_sources_of_one_mode_are_told_apart_by_their_names(held_out):
    groups = name_groups(held_out)
    assert groups["panoptic"] == 0
    assert "region/point" in groups
    assert "region" not in groups
    assert list(groups.values()) == list(range(len(held_out.sources)))


def test_scores_are_shown_as_a_dash_where_somebody_has_none():
    scores = {MODEL: {"instance/AP": 3.0, SCORE: 3.0}, TRIVIAL: {}}
    evaluation = Evaluation(scores, {"instance": Group("instance", 2, "AP", "nothing")}, "testA")
    assert evaluation.table().rows == (("instance/AP", 3.0, None), ("mean of the modes", 3.0, None))
    assert evaluation.table().title == "2 records of the split 'testA', in percent"
