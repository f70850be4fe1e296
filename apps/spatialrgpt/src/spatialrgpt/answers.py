"""Reading a typed answer out of generated text, and answering without looking: the two rivals of the typed heads."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from region_heads.labels import SIDES, Label, RegionPrediction, parse_label
from region_heads.metrics import Baselines
from region_heads.tasks import TaskType

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*(meters?|metres?|m|centimeters?|cm|feet|ft|inches|in)\b")
_SIDE = re.compile(r"\b(left|right)\b")
_REGION = re.compile(r"\bRegion\s*\[?\s*(\d+)")
_NUMBER = re.compile(r"\b(?:is|are|contains?|has|have)\s+([A-Za-z]+|\d+)\b")


def parse_answer(task: TaskType, text: str, num_regions: int) -> RegionPrediction | None:
    """The typed answer that a generated sentence gives.

    Args:
        task: The kind of question.
        text: The sentence, such as "The pallet [Region 2] is 3.50 meters from the shelf [Region 0]."
        num_regions: Regions of the question.

    Returns:
        The answer, or None where the sentence holds none; a sentence that starts with the answer decides by its first
        match ("The pallet [Region 2] is the closest to the shelf [Region 0]" answers 2).
    """
    pattern = {
        TaskType.DISTANCE: _QUANTITY,
        TaskType.LEFT_RIGHT: _SIDE,
        TaskType.MULTIPLE_CHOICE: _REGION,
        TaskType.COUNTING: _NUMBER,
    }[task]
    found = pattern.search(text)
    if found is None:
        return None
    value = found.group(0) if task is TaskType.DISTANCE else found.group(1)
    try:
        label = parse_label(task, value, num_regions)
    except ValueError:
        return None
    answer = SIDES[int(label.value)] if task is TaskType.LEFT_RIGHT else label.value
    return RegionPrediction(task, answer, 1.0)


class QuestionOnlyBaseline:
    """Answers by the words of the question alone: the mean or majority of training questions worded the same.

    What it scores is what a data set gives away without a picture.

    Args:
        questions: Training questions with their labels.
        fallback: Answers to questions that training never asked.
    """

    def __init__(self, questions: Iterable[tuple[str, Label | None]], fallback: Baselines) -> None:
        grouped: dict[tuple[str, TaskType], list[float]] = defaultdict(list)
        for text, label in questions:
            if label is not None:
                grouped[text, label.task].append(float(label.value))
        self._fallback = fallback
        self._answers: Mapping[tuple[str, TaskType], RegionPrediction] = {
            key: _constant(key[1], values) for key, values in grouped.items()
        }

    def predict(self, text: str, task: TaskType) -> RegionPrediction | None:
        """The answer to a question."""
        return self._answers.get((text, task)) or self._fallback.predict(task)


def _constant(task: TaskType, values: list[float]) -> RegionPrediction:
    if task is TaskType.DISTANCE:
        return RegionPrediction(task, sum(values) / len(values), 1.0)
    most = int(Counter(values).most_common(1)[0][0])
    return RegionPrediction(task, SIDES[most] if task is TaskType.LEFT_RIGHT else most, 1.0)
