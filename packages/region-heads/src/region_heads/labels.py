"""Reading answers: mixed strings and numbers become one checked label per question.

Answers come as `5.3`, `"5.3 m"`, `"Left side"`, `"three"` or `"Region 2"`. Words count as whole words only ("none"
holds no "one"), and whatever is not understood is an error that quotes it: a wrong label is worse than a missing one.
Free-form answers also name regions ("[Region 3]", "Region [3]"); these are mined as extra supervision.
"""

import math
import re
from dataclasses import dataclass

from region_heads.tasks import TaskType

SIDES = ("left", "right")
"""The answers of the left/right task in the order of their class numbers."""

METRES_PER_UNIT: dict[str, float] = {
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 0.01),
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 0.001),
    **dict.fromkeys(("km", "kilometer", "kilometers", "kilometre", "kilometres"), 1000.0),
    **dict.fromkeys(("in", "inch", "inches", '"'), 0.0254),
    **dict.fromkeys(("ft", "foot", "feet", "'"), 0.3048),
}
"""Metres in one of each unit; the inch and the foot are the international ones."""

NUMBER_WORDS: dict[str, int] = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20},
}
"""English number words that a count or a choice may be written in."""

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z]+|['\"])?\.?\s*(?:and\s+)?")
_TOKENS = re.compile(r"[+-]?\d+(?:[.,]\d+)*|[a-z]+")
_SIDE_WORDS = {"left": 0, "l": 0, "right": 1, "r": 1}
_SIDE_FILLERS = frozenset({"at", "hand", "in", "is", "it", "of", "on", "one", "side", "situated", "the", "to"})
_NO_REGION = frozenset(("none", "no", "zero"))
_REGION = re.compile(r"\bregions?\s*\[?\s*(\d+)\s*\]?", re.IGNORECASE)
_REGION_LIST = re.compile(
    r"\bregions\s*\[?\s*\d+\s*\]?(?:\s*(?:,\s*and\b|,|and\b|&)\s*\[?\s*\d+\s*\]?)+", re.IGNORECASE
)
_CONTAINER = re.compile(
    r"\b(?:area|buffer|bay|rack|section|shelf|shelves|zone)s?(?:\s+(?:area|region|section|zone)s?)*\s*[\[(]?\s*"
    r"region\s*\[?\s*(\d+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Label:
    """The checked answer of one question.

    Attributes:
        task: The kind of question.
        value: Metres (float), 0 for left and 1 for right, the chosen region's index, or the count.
        involved: Regions that the reference answer names, if known: the measured pair, or the counted members.
    """

    task: TaskType
    value: float | int
    involved: frozenset[int] | None = None


@dataclass(frozen=True)
class RegionPrediction:
    """The answer of a head.

    Attributes:
        task: The kind of question.
        value: Metres (float), `"left"` or `"right"` (where region 0 stands of region 1), a region's index, or a count.
        confidence: Probability of the answer in [0, 1]; for a distance, of the pair of regions it was measured at.
    """

    task: TaskType
    value: float | int | str
    confidence: float


def parse_label(
    task: TaskType, value: str | float | int, num_regions: int | None = None, *, answer: str | None = None
) -> Label:
    """Turn an answer as it stands in a data set into a label.

    Args:
        task: The kind of question.
        value: A number, or text such as `"17 ft"`, `"Left side"`, `"three"`, `"Region 2"`.
        num_regions: Regions of the question; a choice must be one of them.
        answer: The free-form reference answer; the regions it names become `involved` where they are unambiguous.

    Returns:
        The label.

    Raises:
        ValueError: The answer is not understood, is out of range, or names a region that does not exist.
    """
    if isinstance(value, bool):
        raise ValueError(f"a {task.label} label cannot be {value!r}")
    if task is TaskType.DISTANCE:
        parsed: float | int = _parse_distance(value)
    elif task is TaskType.LEFT_RIGHT:
        parsed = _parse_side(value)
    elif task is TaskType.MULTIPLE_CHOICE:
        parsed = _parse_choice(value, num_regions)
    else:
        parsed = _parse_whole(value, what="counting", zero_words=_NO_REGION)
    involved = None
    if answer is not None and num_regions is not None:
        involved = involved_regions(task, answer, parsed, num_regions)
    return Label(task, parsed, involved)


def mine_involved(answer: str, num_regions: int) -> set[int]:
    """Find the regions that a free-form answer names, as `[Region 3]`, `Region [3]`, `Region 3` or `Regions 1 and 2`.

    Args:
        answer: The reference answer.
        num_regions: Regions of the question, numbered from 0 in order of mention.

    Returns:
        The indices, without order.

    Raises:
        ValueError: An index is not below `num_regions`.
    """
    found = {int(index) for index in _REGION.findall(answer)}
    for group in _REGION_LIST.findall(answer):
        found.update(int(index) for index in re.findall(r"\d+", group))
    beyond = sorted(index for index in found if index >= num_regions)
    if beyond:
        raise ValueError(f"answer {answer!r} names region {beyond[0]}, but the question has {num_regions} regions")
    return found


def involved_regions(task: TaskType, answer: str, value: float | int, num_regions: int) -> frozenset[int] | None:
    """Read the measured pair or the counted members off a reference answer.

    A counting answer often names the container too ("three pallets [Region 1] ... in the buffer [Region 0]"): if there
    are more regions than the count, those introduced by a container's name are left out.

    Args:
        task: The kind of question.
        answer: The reference answer.
        value: The parsed label: a count says how many members to expect.
        num_regions: Regions of the question.

    Returns:
        The set, or `None` where the answer does not settle it (or the task needs none).

    Raises:
        ValueError: The answer names a region that does not exist.
    """
    found = mine_involved(answer, num_regions)
    if task is TaskType.DISTANCE:
        return frozenset(found) if len(found) == 2 else None
    if task is not TaskType.COUNTING:
        return None
    if len(found) > value:
        found = found - {int(index) for index in _CONTAINER.findall(answer)}
    return frozenset(found) if len(found) == value else None


def _parse_distance(value: str | float | int) -> float:
    metres = _sum_quantities(value) if isinstance(value, str) else float(value)
    if not math.isfinite(metres) or metres < 0:
        raise ValueError(f"a distance label must be finite and not negative, got {value!r}")
    return metres


def _sum_quantities(text: str) -> float:
    """Add up `number unit` pairs that make up the whole text, such as `5 ft 3 in`; a bare number is in metres."""
    rest = text.strip().lower()
    metres, position, num_parts = 0.0, 0, 0
    while position < len(rest):
        match = _QUANTITY.match(rest, position)
        unit = match.group(2) if match else None
        if match is None or (unit is not None and unit not in METRES_PER_UNIT):
            raise ValueError(
                f"cannot read {text!r} as a distance: expected a number with an optional unit (m, cm, mm, km, in, ft)"
            )
        if unit is None and (num_parts > 0 or match.end() < len(rest)):
            raise ValueError(f"cannot read {text!r} as a distance: each of several numbers needs its unit")
        metres += float(match.group(1)) * METRES_PER_UNIT[unit or "m"]
        position, num_parts = match.end(), num_parts + 1
    if num_parts == 0:
        raise ValueError("cannot read an empty text as a distance")
    return metres


def _parse_side(value: str | float | int) -> int:
    if not isinstance(value, str):
        if value in (0, 1):
            return int(value)
        raise ValueError(f"a left_right label given as a number must be 0 (left) or 1 (right), got {value!r}")
    words = re.findall(r"[a-z]+|\d+", value.lower())
    sides = {_SIDE_WORDS[word] for word in words if word in _SIDE_WORDS}
    strange = [word for word in words if word not in _SIDE_WORDS and word not in _SIDE_FILLERS]
    if len(sides) != 1 or strange:
        raise ValueError(f"cannot read {value!r} as left or right")
    return sides.pop()


def _parse_choice(value: str | float | int, num_regions: int | None) -> int:
    index = _parse_whole(value, what="multiple_choice", zero_words=frozenset(("zero",)))
    if num_regions is not None and index >= num_regions:
        raise ValueError(f"choice {value!r} is not one of the question's {num_regions} regions (numbered from 0)")
    return index


def _parse_whole(value: str | float | int, *, what: str, zero_words: frozenset[str]) -> int:
    if isinstance(value, str):
        numbers = {_read_number(token, zero_words) for token in _TOKENS.findall(value.lower())} - {None}
        if len(numbers) != 1:
            raise ValueError(f"cannot read {value!r} as a {what} label: expected exactly one number or number word")
        number = float(numbers.pop() or 0.0)
    else:
        number = float(value)
    if not math.isfinite(number) or number != int(number) or number < 0:
        raise ValueError(f"a {what} label must be a whole number of at least 0, got {value!r}")
    return int(number)


def _read_number(token: str, zero_words: frozenset[str]) -> float | int | None:
    if token[-1].isdigit():
        return float(token.replace(",", "."))
    return 0.0 if token in zero_words else NUMBER_WORDS.get(token)
