import math
import pickle

import pytest
from region_heads import Baselines, Label, RegionMetrics, RegionPrediction, TaskType
from region_heads.metrics import within


def _prediction(task: TaskType, value: float | int | str | None) -> RegionPrediction | None:
    return None if value is None else RegionPrediction(task, value, 1.0)


def _metrics(task: TaskType, pairs: list[tuple[float | int | str | None, float | int]]) -> RegionMetrics:
    metrics = RegionMetrics()
    metrics.update(
        [_prediction(task, answer) for answer, _ in pairs],
        [Label(task, truth) for _, truth in pairs],
        [2] * len(pairs),
    )
    return metrics


def test_distance_by_hand() -> None:
    # Errors 0, 0.5, -1, 2: squares sum to 5.25, sizes to 3.5; relative 0, 0.125, 0.2, 2.
    scores = _metrics(TaskType.DISTANCE, [(2.0, 2.0), (4.5, 4.0), (4.0, 5.0), (3.0, 1.0)]).compute()
    assert scores == pytest.approx(
        {
            "distance/count": 4,
            "distance/unanswered": 0,
            "distance/mse": 5.25 / 4,
            "distance/mae_m": 0.875,
            "distance/rmse_m": math.sqrt(5.25 / 4),
            "distance/abs_rel": 2.325 / 4,
            "distance/success_10": 0.25,
            "distance/success_25": 0.75,
            "score": 0.25,
        }
    )


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (0.9 * 2.1, 2.1, True),
        (2.1 - 0.21, 2.1, True),  # 1.89 in decimal, a hair below 0.9 * 2.1 or above it in binary
        (1.1 * 2.1, 2.1, True),
        (2.32, 2.1, False),
        (1.88, 2.1, False),
        (0.0, 0.0, True),
        (1e-6, 0.0, False),
    ],
)
def test_the_edges_of_the_band(answer: float, truth: float, expected: bool) -> None:
    assert within(answer, truth, 0.10) is expected


def test_every_decimal_edge_succeeds() -> None:
    # Answers rounded to two decimals that lie exactly on the edge, for all truths from 0.10 m to 20.00 m.
    for centimetres in range(10, 2001, 10):
        truth = centimetres / 100
        assert within(round(centimetres * 9 / 1000, 3), truth, 0.10)
        assert within(round(centimetres * 11 / 1000, 3), truth, 0.10)


def test_a_distance_of_zero_is_left_out_of_the_relative_error() -> None:
    scores = _metrics(TaskType.DISTANCE, [(0.0, 0.0), (3.0, 2.0)]).compute()
    assert scores["distance/abs_rel"] == 0.5
    assert scores["distance/success_10"] == 0.5


def test_accuracy_and_the_final_score_by_hand() -> None:
    metrics = _metrics(TaskType.LEFT_RIGHT, [("left", 0), ("right", 0), ("right", 1), ("left", 1)])
    metrics.merge(_metrics(TaskType.MULTIPLE_CHOICE, [(2, 2), (1, 2)]))
    metrics.merge(_metrics(TaskType.COUNTING, [(3, 3)]))
    scores = metrics.compute()
    assert scores["left_right/accuracy"] == 0.5
    assert scores["multiple_choice/accuracy"] == 0.5
    assert scores["counting/accuracy"] == 1.0
    assert scores["score"] == pytest.approx(2 / 3)  # the mean over the three tasks present
    metrics.merge(_metrics(TaskType.DISTANCE, [(1.0, 1.0), (1.0, 9.0), (1.0, 9.0), (1.0, 9.0)]))
    assert metrics.compute()["score"] == pytest.approx((0.25 + 0.5 + 0.5 + 1.0) / 4)


def test_missing_and_misrouted_answers_are_wrong() -> None:
    metrics = RegionMetrics()
    labels = [Label(TaskType.DISTANCE, 2.0), Label(TaskType.DISTANCE, 4.0), Label(TaskType.COUNTING, 2), None]
    predictions = [None, _prediction(TaskType.DISTANCE, 4.0), _prediction(TaskType.LEFT_RIGHT, "left"), None]
    metrics.update(predictions, labels, [2, 2, 3, 3])
    scores = metrics.compute()
    assert scores["distance/unanswered"] == scores["counting/unanswered"] == 1
    assert scores["distance/success_10"] == 0.5
    assert scores["distance/mae_m"] == 0.0  # over what was answered
    assert scores["counting/accuracy"] == 0.0


def test_only_unanswered_distances_have_no_error_in_metres() -> None:
    scores = _metrics(TaskType.DISTANCE, [(None, 2.0)]).compute()
    assert set(scores) == {f"distance/{name}" for name in ("count", "unanswered", "success_10", "success_25")} | {
        "score"
    }


def test_nothing_at_all() -> None:
    assert RegionMetrics().compute() == {}
    assert RegionMetrics().confusion(TaskType.COUNTING).tolist() == [[0]]


def test_confusion_by_hand() -> None:
    sides = _metrics(TaskType.LEFT_RIGHT, [("left", 0), ("right", 0), ("right", 1)])
    assert sides.confusion(TaskType.LEFT_RIGHT).tolist() == [[1, 1], [0, 1]]
    counts = _metrics(TaskType.COUNTING, [(2, 1), (2, 1), (0, 0), (None, 1)])
    assert counts.confusion(TaskType.COUNTING).tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]
    with pytest.raises(ValueError, match="no classes"):
        counts.confusion(TaskType.DISTANCE)


def test_breakdown_by_number_of_regions() -> None:
    metrics = RegionMetrics()
    task = TaskType.MULTIPLE_CHOICE
    predictions = [_prediction(task, value) for value in (0, 1, 2, 0)]
    metrics.update(predictions, [Label(task, value) for value in (0, 0, 2, 0)], [3, 3, 5, 3])
    assert metrics.by_num_regions(task) == {3: (pytest.approx(2 / 3), 3), 5: (1.0, 1)}


def test_a_question_scored_on_two_ranks_counts_once() -> None:  # T40
    task, label = TaskType.COUNTING, Label(TaskType.COUNTING, 1)
    ranks = []
    for ids in (["a", "b"], ["b", "c"], ["c", "c"]):
        metrics = RegionMetrics()
        metrics.update([_prediction(task, 1)] * 2, [label] * 2, [3] * 2, record_ids=ids)
        ranks.append(pickle.loads(pickle.dumps(metrics)))  # noqa: S301 -- our own bytes
    merged = RegionMetrics()
    for metrics in ranks:
        merged.merge(metrics)
    assert merged.compute()["counting/count"] == 3


def test_impossible_answers_and_lengths() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        _metrics(TaskType.DISTANCE, [(float("nan"), 1.0)])
    with pytest.raises(ValueError, match="'up' is no answer to a left_right question"):
        _metrics(TaskType.LEFT_RIGHT, [("up", 1)])
    with pytest.raises(ValueError, match="got 0 predictions, 1 labels"):
        RegionMetrics().update([], [Label(TaskType.COUNTING, 1)], [1])


def test_baselines_by_hand() -> None:
    training = [Label(TaskType.DISTANCE, metres) for metres in (1.0, 2.0, 6.0)]
    training += [Label(TaskType.COUNTING, count) for count in (3, 3, 1)]
    training += [Label(TaskType.LEFT_RIGHT, side) for side in (1, 0)]
    baselines = Baselines.fit([*training, None])
    assert (baselines.mean_m, baselines.median_m) == (3.0, 2.0)
    assert baselines.majority == {TaskType.COUNTING: 3, TaskType.LEFT_RIGHT: 0}
    held_out = [Label(TaskType.DISTANCE, 2.0), Label(TaskType.COUNTING, 3), Label(TaskType.MULTIPLE_CHOICE, 0)]
    by_mean = baselines.evaluate(held_out, [2, 3, 3]).compute()
    assert by_mean["distance/mae_m"] == 1.0
    assert by_mean["counting/accuracy"] == 1.0
    assert by_mean["multiple_choice/unanswered"] == 1.0
    assert baselines.evaluate(held_out, [2, 3, 3], median=True).compute()["distance/success_10"] == 1.0
    assert Baselines.fit([]).predict(TaskType.DISTANCE) is None


def test_perfect_and_hopeless() -> None:
    perfect = _metrics(TaskType.DISTANCE, [(d, d) for d in (0.0, 0.5, 18.0)])
    perfect.merge(_metrics(TaskType.COUNTING, [(n, n) for n in range(4)]))
    assert perfect.compute()["score"] == 1.0
    assert _metrics(TaskType.LEFT_RIGHT, [("left", 1), ("right", 0)]).compute()["score"] == 0.0
