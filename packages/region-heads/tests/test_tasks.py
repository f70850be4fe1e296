import pytest
from region_heads import TASK_NAMES, UNKNOWN_TASK, TaskType, parse_task


def test_numbers_and_names_are_the_guides() -> None:
    assert [(task.label, int(task)) for task in TaskType] == [
        ("distance", 0),
        ("left_right", 1),
        ("multiple_choice", 2),
        ("counting", 3),
    ]
    assert TASK_NAMES == ("distance", "left_right", "multiple_choice", "counting")
    assert UNKNOWN_TASK not in list(TaskType)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("mcq", TaskType.MULTIPLE_CHOICE),
        ("count", TaskType.COUNTING),
        (" Left Right ", TaskType.LEFT_RIGHT),
        ("DISTANCE", TaskType.DISTANCE),
    ],
)
def test_aliases(name: str, task: TaskType) -> None:
    assert parse_task(name) is task


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'distence'.*did you mean 'distance'"):
        parse_task("distence")
