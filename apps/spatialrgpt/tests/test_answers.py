"""Typed answers read out of sentences, and the answers that need no picture."""

import pytest
from region_heads.labels import Label, RegionPrediction
from region_heads.metrics import Baselines
from region_heads.tasks import TaskType
from spatialrgpt.answers import QuestionOnlyBaseline, parse_answer

DISTANCE, SIDE, CHOICE, COUNT = TaskType.DISTANCE, TaskType.LEFT_RIGHT, TaskType.MULTIPLE_CHOICE, TaskType.COUNTING


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        (DISTANCE, "The pallet [Region 2] is 3.50 meters from the shelf [Region 0].", 3.5),
        (DISTANCE, "It is 4 m away.", 4.0),
        (DISTANCE, "About 250 cm.", 2.5),
        (DISTANCE, "The distance is 10 feet.", 3.048),
        (SIDE, "The pallet [Region 0] is to the left of the shelf [Region 1].", "left"),
        (SIDE, "right", "right"),
        (CHOICE, "The pallet [Region 2] is the closest to the shelf [Region 0].", 2),
        (CHOICE, "Region [1] is the leftmost pallet.", 1),
        (COUNT, "There are 3 pallets in the buffer [Region 0]: pallet [Region 1], pallet [Region 2].", 3),
        (COUNT, "There is 1 pallet.", 1),
        (COUNT, "There are two pallets.", 2),
        (COUNT, "There are no pallets.", 0),
        (COUNT, "The buffer contains 4 pallets.", 4),
    ],
)
def test_each_form_of_answer_is_read(task, text, value):
    prediction = parse_answer(task, text, num_regions=4)
    assert (prediction.task, prediction.confidence) == (task, 1.0)
    assert prediction.value == (pytest.approx(value) if task is DISTANCE else value)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (DISTANCE, ""),
        (DISTANCE, "It is far away."),
        (DISTANCE, "It is 3.5 pallets away."),
        (SIDE, "It is above, in bright light."),
        (CHOICE, "The closest pallet is the nearest."),
        (CHOICE, "Region 9 is the closest."),  # there are four
        (COUNT, "There are many pallets."),
        (COUNT, "meters meters meters"),
    ],
)
def test_nonsense_is_no_answer(task, text):
    assert parse_answer(task, text, num_regions=4) is None


@pytest.fixture
def blind() -> QuestionOnlyBaseline:
    training = [
        ("how far?", Label(DISTANCE, 2.0)),
        ("how far?", Label(DISTANCE, 5.0)),
        ("how far?", Label(DISTANCE, 8.0)),
        ("which side?", Label(SIDE, 1)),
        ("which side?", Label(SIDE, 1)),
        ("which side?", Label(SIDE, 0)),
        ("how many?", Label(COUNT, 2)),
        ("how many?", Label(COUNT, 3)),
        ("how many?", Label(COUNT, 3)),
        ("how many?", None),
        ("which?", Label(CHOICE, 1)),
    ]
    return QuestionOnlyBaseline(training, Baselines.fit([label for _, label in training]))


def test_a_question_asked_before_gets_its_mean_or_majority(blind):
    assert blind.predict("how far?", DISTANCE) == RegionPrediction(DISTANCE, 5.0, 1.0)
    assert blind.predict("which side?", SIDE) == RegionPrediction(SIDE, "right", 1.0)
    assert blind.predict("how many?", COUNT) == RegionPrediction(COUNT, 3, 1.0)


def test_a_new_question_gets_the_tasks_constant(blind):
    fallback = Baselines.fit([Label(DISTANCE, 2.0), Label(DISTANCE, 5.0), Label(DISTANCE, 8.0), Label(SIDE, 1)])
    assert blind.predict("how distant?", DISTANCE) == fallback.predict(DISTANCE)
    assert blind.predict("how far?", SIDE) == fallback.predict(SIDE)  # known words, but of another task


def test_without_training_questions_there_is_no_answer():
    assert QuestionOnlyBaseline([], Baselines.fit([])).predict("how far?", DISTANCE) is None
