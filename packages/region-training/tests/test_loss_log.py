"""Sums and counts over micro-batches and ranks, by hand; and the file that they end in."""

import json

import pytest
import torch
from region_core.losses import LossTerms
from region_training.loss_log import LossLog, MetricsFile
from region_training.ranks import Ranks
from region_training.testing import run_ranks


def _terms(**entries):
    terms = LossTerms()
    for name, (total, count) in entries.items():
        terms.add(name, torch.tensor(total), count)
    return terms


def test_means_over_ranks_are_weighted_by_counts(tmp_path):
    def run(rank):
        log = LossLog(Ranks(30.0))
        if rank == 0:
            log.add(torch.tensor(1.0), _terms(a=(2.0, 1), only_here=(3.0, 3), never=(float("nan"), 0)), {"a": 2.0})
            log.add(torch.tensor(3.0), _terms(a=(4.0, torch.tensor(2))), {"a": 2.0})
        else:
            log.add(torch.tensor(5.0), _terms(a=(6.0, 3), never=(1.0, 0)), {"a": 2.0})
            log.add(torch.tensor(7.0), _terms(a=(0.0, 2)), {"a": 2.0})
        return log.drain(), log.drain()

    for (values, surprises), again in run_ranks(run, 2, tmp_path):
        assert values == {"loss/total": 4.0, "loss/a": 12 / 8, "loss/only_here": 1.0}
        assert surprises == []
        assert again == ({}, [])


def test_a_count_that_was_not_announced_is_reported(tmp_path):
    def run(rank):
        log = LossLog(Ranks(30.0))
        log.add(torch.tensor(1.0), _terms(a=(2.0, 3)), {"a": 2.0, "b": 1.0})
        return log.drain()[1]

    assert run_ranks(run, 1, tmp_path) == [["loss term 'a': loss_counts announced 2 items, got 3"]]


def test_nothing_keeps_the_graph(tmp_path):
    def run(rank):
        log = LossLog(Ranks(30.0))
        weight = torch.ones((), requires_grad=True)
        terms = LossTerms()
        terms.add("a", weight * 2, 1)
        log.add(terms.weighted_total(), terms, None)
        return [value for value in vars(log).values() if isinstance(value, torch.Tensor) and value.requires_grad]

    assert run_ranks(run, 1, tmp_path) == [[]]


def test_lines_are_strict_json_and_rank_0_writes_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, writes=False).append(1, 0.5, {"a": 1.0})
    assert not path.exists()
    file = MetricsFile(path, writes=True)
    file.append(1, 1 / 3, {"a": 1.0, "b": float("nan"), "c": float("inf")})
    file.append(2, 0.5, {"a": 2.0})
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert lines[0] == {"step": 1, "epoch": 0.333333, "a": 1.0, "b": None, "c": None}


def test_resuming_drops_later_and_unfinished_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, writes=True)
    file.keep_until(3)
    for step in range(1, 6):
        file.append(step, step / 10, {"a": float(step)})
    with path.open("a") as stream:
        stream.write('{"step": 2, "a": 0.')
    MetricsFile(path, writes=False).keep_until(0)
    file.keep_until(3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert list(tmp_path.iterdir()) == [path]
