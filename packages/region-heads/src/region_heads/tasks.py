"""The four kinds of question, their names and their numbers.

The numbers are the guide's and are stored in data sets and checkpoints: they never change. The module imports nothing
heavy, so command lines and data workers can use it freely.
"""

from difflib import get_close_matches
from enum import IntEnum


class TaskType(IntEnum):
    """What a question asks for; the value is the number that data sets store."""

    DISTANCE = 0
    LEFT_RIGHT = 1
    MULTIPLE_CHOICE = 2
    COUNTING = 3

    @property
    def label(self) -> str:
        """The task's name in configurations, loss terms and metrics, e.g. `"left_right"`."""
        return self.name.lower()


UNKNOWN_TASK = -1
"""The task number of a question that belongs to no head."""

TASK_NAMES: tuple[str, ...] = tuple(task.label for task in TaskType)
"""The four names in the order of their numbers."""

TASK_ALIASES: dict[str, TaskType] = {
    **{task.label: task for task in TaskType},
    "left-right": TaskType.LEFT_RIGHT,
    "leftright": TaskType.LEFT_RIGHT,
    "mcq": TaskType.MULTIPLE_CHOICE,
    "choice": TaskType.MULTIPLE_CHOICE,
    "multi_choice": TaskType.MULTIPLE_CHOICE,
    "multiple-choice": TaskType.MULTIPLE_CHOICE,
    "count": TaskType.COUNTING,
}
"""Other spellings found in data sets (the warehouse set says `mcq` and `count`)."""


def parse_task(name: str) -> TaskType:
    """Read a task's name or one of its aliases, in any case.

    Args:
        name: For example `"mcq"` or `"left_right"`.

    Returns:
        The task.

    Raises:
        ValueError: The name is neither a task nor an alias; the message suggests the nearest one.
    """
    key = name.strip().lower().replace(" ", "_")
    if key in TASK_ALIASES:
        return TASK_ALIASES[key]
    nearest = get_close_matches(key, TASK_ALIASES, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown task {name!r}: expected one of {', '.join(sorted(TASK_ALIASES))}{hint}")
