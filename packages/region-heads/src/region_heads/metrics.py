"""Scores of the four tasks, the challenge's final score, and the baselines that give them a meaning.

Definitions follow the AI City 2025 Track 3 scorer: a distance succeeds within ten per cent of the truth, the other
tasks count exact answers, and the final score is the plain mean over the four tasks (over those present, if some are
missing). The edges of the ten-per-cent band get a tolerance of 1e-9 m, because 0.9 times the truth is not exact in
binary. A true distance of 0 m is met by 0 m only, and is left out of the relative error. A question that got no answer
is wrong; it is counted as `unanswered` and cannot enter an error in metres.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from region_heads.labels import SIDES, Label, RegionPrediction
from region_heads.tasks import TaskType

BAND_TOLERANCE_M = 1e-9
"""Slack at the edges of a success band."""


@dataclass(frozen=True)
class ScoredAnswer:
    """One question with its truth and its answer.

    Attributes:
        task: The kind of question.
        truth: Metres, or a class number (0 left, 1 right; a region's index; a count).
        answer: The same of the prediction; `None` if there was none.
        num_regions: Regions of the question.
        record_id: Names the question, so that one that was scored on two ranks counts once.
    """

    task: TaskType
    truth: float
    answer: float | None
    num_regions: int
    record_id: str | None = None


def within(answer: float, truth: float, fraction: float) -> bool:
    """Say whether a distance lies within a fraction of the truth, edges included."""
    if truth == 0:
        return answer == 0
    return (1 - fraction) * truth - BAND_TOLERANCE_M <= answer <= (1 + fraction) * truth + BAND_TOLERANCE_M


class RegionMetrics:
    """Collects answers, merges across ranks, and computes the scores. Its state is plain data and pickles."""

    def __init__(self) -> None:
        self.answers: list[ScoredAnswer] = []
        self._seen: set[str] = set()

    def update(
        self,
        predictions: Sequence[RegionPrediction | None],
        labels: Sequence[Label | None],
        num_regions: Sequence[int],
        *,
        record_ids: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: What `decode` returns; `None`, and a prediction for another task than the label's (the question
                was routed to the wrong head), count as unanswered.
            labels: The truth; rows without one are skipped.
            num_regions: Regions per question.
            record_ids: Names of the questions; a name that was seen before is skipped, as samplers fill up the last
                batch with repeats.

        Raises:
            ValueError: The sequences differ in length, or an answer is not a finite number or a side.
        """
        ids: Sequence[str | None] = [None] * len(labels) if record_ids is None else record_ids
        if not len(predictions) == len(labels) == len(num_regions) == len(ids):
            raise ValueError(
                f"expected equally many, got {len(predictions)} predictions, {len(labels)} labels, "
                f"{len(num_regions)} region counts and {len(ids)} record ids"
            )
        for prediction, label, regions, record_id in zip(predictions, labels, num_regions, ids, strict=True):
            if label is not None:
                value = None
                if prediction is not None and prediction.task is label.task:
                    value = _as_number(prediction)
                self._add(ScoredAnswer(label.task, float(label.value), value, regions, record_id))

    def merge(self, other: "RegionMetrics") -> None:
        """Add the answers of another rank; questions that both scored count once."""
        for answer in other.answers:
            self._add(answer)

    def compute(self) -> dict[str, float]:
        """All scores by name: `score`, and per task that occurred `count`, `unanswered` and its own measures.

        Distance: `mse`, `mae_m`, `rmse_m`, `abs_rel`, `success_10`, `success_25`. The other tasks: `accuracy`.
        """
        scores: dict[str, float] = {}
        finals: list[float] = []
        for task in TaskType:
            answers = [answer for answer in self.answers if answer.task is task]
            if not answers:
                continue
            measures = _score_distance(answers) if task is TaskType.DISTANCE else {"accuracy": _accuracy(answers)}
            finals.append(measures["success_10"] if task is TaskType.DISTANCE else measures["accuracy"])
            unanswered = sum(answer.answer is None for answer in answers)
            scores[f"{task.label}/count"], scores[f"{task.label}/unanswered"] = float(len(answers)), float(unanswered)
            scores.update({f"{task.label}/{name}": value for name, value in measures.items()})
        if finals:
            scores["score"] = sum(finals) / len(finals)
        return scores

    def confusion(self, task: TaskType) -> np.ndarray:
        """Counts of (truth, answer) pairs of a task with classes; unanswered questions are left out.

        Args:
            task: Left/right (2 x 2), counting or multiple choice (as large as the largest class that occurred).

        Returns:
            Integers, truth in rows.

        Raises:
            ValueError: The task is distance, which has no classes.
        """
        if task is TaskType.DISTANCE:
            raise ValueError("a distance has no classes: there is no confusion matrix")
        pairs = [
            (int(item.truth), int(item.answer))
            for item in self.answers
            if item.task is task and item.answer is not None
        ]
        size = max([2 if task is TaskType.LEFT_RIGHT else 1, *(max(pair) + 1 for pair in pairs)])
        matrix = np.zeros((size, size), dtype=np.int64)
        for truth, answer in pairs:
            matrix[truth, answer] += 1
        return matrix

    def by_num_regions(self, task: TaskType) -> dict[int, tuple[float, int]]:
        """Share of right answers and number of questions, per number of regions.

        "Right" is what the final score counts: within ten per cent for a distance, exact otherwise.
        """
        groups: dict[int, list[bool]] = defaultdict(list)
        for answer in self.answers:
            if answer.task is task:
                groups[answer.num_regions].append(_is_right(answer))
        return {size: (sum(marks) / len(marks), len(marks)) for size, marks in sorted(groups.items())}

    def _add(self, answer: ScoredAnswer) -> None:
        if answer.record_id is not None:
            if answer.record_id in self._seen:
                return
            self._seen.add(answer.record_id)
        self.answers.append(answer)


@dataclass(frozen=True)
class Baselines:
    """Answers that ignore image and question; a model must beat them to have learned anything.

    Attributes:
        mean_m: Mean training distance: the best constant for the squared error.
        median_m: Median training distance: the best constant for the absolute error.
        majority: Most frequent class per task (the smaller number on a tie).
    """

    mean_m: float | None
    median_m: float | None
    majority: dict[TaskType, int]

    @classmethod
    def fit(cls, labels: Iterable[Label | None]) -> "Baselines":
        """Take the constants from *training* labels."""
        metres: list[float] = []
        classes: dict[TaskType, Counter[int]] = defaultdict(Counter)
        for label in labels:
            if label is None:
                continue
            if label.task is TaskType.DISTANCE:
                metres.append(float(label.value))
            else:
                classes[label.task][int(label.value)] += 1
        majority = {task: min(counts, key=lambda value: (-counts[value], value)) for task, counts in classes.items()}
        if not metres:
            return cls(None, None, majority)
        return cls(float(np.mean(metres)), float(np.median(metres)), majority)

    def predict(self, task: TaskType, *, median: bool = False) -> RegionPrediction | None:
        """The constant answer to a task; `None` if training never saw it."""
        if task is TaskType.DISTANCE:
            metres = self.median_m if median else self.mean_m
            return None if metres is None else RegionPrediction(task, metres, 1.0)
        if task not in self.majority:
            return None
        value = self.majority[task]
        return RegionPrediction(task, SIDES[value] if task is TaskType.LEFT_RIGHT else value, 1.0)

    def evaluate(
        self, labels: Sequence[Label | None], num_regions: Sequence[int], *, median: bool = False
    ) -> RegionMetrics:
        """Score the constants on held-out labels.

        Args:
            labels: The truth.
            num_regions: Regions per question.
            median: Answer distances with the median instead of the mean.
        """
        metrics = RegionMetrics()
        predictions = [None if label is None else self.predict(label.task, median=median) for label in labels]
        metrics.update(predictions, labels, num_regions)
        return metrics


def _as_number(prediction: RegionPrediction) -> float:
    value = prediction.value
    if isinstance(value, str):
        if prediction.task is not TaskType.LEFT_RIGHT or value not in SIDES:
            raise ValueError(f"{value!r} is no answer to a {prediction.task.label} question")
        return float(SIDES.index(value))
    if not math.isfinite(value):
        raise ValueError(f"a {prediction.task.label} answer must be finite, got {value!r}")
    return float(value)


def _is_right(item: ScoredAnswer) -> bool:
    if item.answer is None:
        return False
    return within(item.answer, item.truth, 0.10) if item.task is TaskType.DISTANCE else item.answer == item.truth


def _accuracy(items: Sequence[ScoredAnswer]) -> float:
    return sum(_is_right(item) for item in items) / len(items)


def _score_distance(items: Sequence[ScoredAnswer]) -> dict[str, float]:
    pairs = [(item.answer, item.truth) for item in items if item.answer is not None]
    scores = {
        "success_10": sum(within(answer, truth, 0.10) for answer, truth in pairs) / len(items),
        "success_25": sum(within(answer, truth, 0.25) for answer, truth in pairs) / len(items),
    }
    if pairs:
        errors = np.asarray([answer - truth for answer, truth in pairs])
        mse = float(np.square(errors).mean())
        scores |= {"mse": mse, "mae_m": float(np.abs(errors).mean()), "rmse_m": math.sqrt(mse)}
    relative = [abs(answer - truth) / truth for answer, truth in pairs if truth > 0]
    if relative:
        scores["abs_rel"] = sum(relative) / len(relative)
    return scores
