"""From a question's text to its task: ordered whole-word rules, each with a name.

The guide's sketch looks for substrings ("near" in "linear", "count" in "counter", "right" in "bright") and lets the
first keyword win, so that "which pallet is closest" becomes a distance. Here a stored category wins over the text;
then come phrases that only one kind of question uses, in the order counting, distance, choice, side; whatever matches
none of them stays unknown, which means: no head, no loss. The rules know English warehouse questions; another domain
should store a category.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from region_heads.tasks import TaskType, parse_task

_OBJECT = r"(?:pallet|buffer|shelf|shelve|rack|region|transporter|object|zone|area|one|item)s?"
_UNIT = r"(?:meters?|metres?|cm|centimet(?:er|re)s?|feet|foot|ft|inch(?:es)?|yards?|steps?)"
_MOST = (
    r"(?:most|fewest|least|greatest|largest|biggest|highest|lowest|smallest|shortest|longest|minimum|maximum|minimal)"
)
_PICK = r"(?:identify|select|choose|pick|name|find|point out|specify|determine|indicate|locate)"

# Order matters: the first rule that matches decides. The first two are exceptions to the phrases that follow them.
_RULES: tuple[tuple[str, TaskType, re.Pattern[str]], ...] = tuple(
    (name, task, re.compile(pattern))
    for name, task, pattern in (
        ("how many metres", TaskType.DISTANCE, rf"\bhow many {_UNIT}\b"),
        (
            "which has the most",
            TaskType.MULTIPLE_CHOICE,
            rf"\b(?:which|what|{_PICK})(?: one)?(?: of)?(?: the| a| these| those)?(?: \w+)?(?: is the)? {_OBJECT}\b"
            rf"[^?]*\b{_MOST} (?:\w+ )?(?:distance|gap|separation|number|count|amount|quantity)\b"
            rf"|\bwhich {_OBJECT} (?:minimi[sz]es|maximi[sz]es)\b",
        ),
        (
            "count phrase",
            TaskType.COUNTING,
            r"\bhow (?:many|numerous)\b|\bcount(?:ing)? (?:of|the|all|only|how|up)\b|\b\w+ count\b"
            r"|\b(?:number|quantity|amount|tally) of\b|\b(?:tally|enumerate|sum up)\b|\btotal (?:number|count|of)\b"
            rf"|\btotal {_OBJECT}\b",
        ),
        (
            "distance phrase",
            TaskType.DISTANCE,
            r"\bdistances?\b|\bhow (?:far|distant|close|near)\b|\b(?:separation|spacing|tape measure)\b"
            rf"|\b(?:gap|space|room|{_UNIT})\b[^?]*\bbetween\b|\bhow long is (?:it|the (?:path|way|line))\b"
            r"|\bmeasure from\b",
        ),
        (
            "which one",
            TaskType.MULTIPLE_CHOICE,
            rf"\bwhich\b(?! (?:sides?|directions?|way|hand)\b)|\bwho is\b|\b{_PICK} (?:the|a|an|one)\b"
            rf"|\bwhat {_OBJECT}\b|\bwhat is the (?:\w+most|most \w+|closest|nearest|farthest|furthest|best)\b"
            rf"|\bwhere should\b",
        ),
        ("left or right", TaskType.LEFT_RIGHT, r"\b(?:left|right)\b"),
    )
)
_PLACEHOLDER = re.compile(r"<(?:mask|region)\s*\d*>|\[?\bregion\b\s*\[?\d+\]?", re.IGNORECASE)


@dataclass(frozen=True)
class Route:
    """Where a question goes and why.

    Attributes:
        task: The task, or `None` if the question belongs to no head.
        source: `"category"`, the name of the rule that matched, or `"unknown"`.
    """

    task: TaskType | None
    source: str


def explain_route(text: str, num_regions: int | None = None, category: str | None = None) -> Route:
    """Route a question and say what decided.

    Args:
        text: The question.
        num_regions: How many regions it mentions; `None` counts the placeholders (`<mask>`, `Region 3`) in the text.
            A left/right question has exactly two, a choice at least two where the number is known at all.
        category: The data set's own category, if it has one; it wins over the text.

    Returns:
        The decision.

    Raises:
        ValueError: The category is neither a task nor an alias of one.
    """
    if category is not None:
        return Route(parse_task(category), "category")
    if num_regions is None:
        num_regions = len(_PLACEHOLDER.findall(text)) or None
    words = " ".join(_PLACEHOLDER.sub(" ", text).lower().split())
    for name, task, pattern in _RULES:
        if pattern.search(words) and _fits(task, num_regions):
            return Route(task, name)
    return Route(None, "unknown")


def route_question(text: str, num_regions: int | None = None, category: str | None = None) -> TaskType | None:
    """Route a question; see `explain_route`.

    Returns:
        The task, or `None` if the question belongs to no head.
    """
    return explain_route(text, num_regions, category).task


def route_record(record: Mapping[str, object], num_regions: int | None = None) -> Route:
    """Route a record of the LLaVA form: its `category` if present, else the text of its first human turn.

    Args:
        record: Has `conversations`, a list of turns with `from` and `value`, and perhaps `category`.
        num_regions: Regions of the record; `None` counts the placeholders in the text.

    Returns:
        The decision.

    Raises:
        ValueError: There is no human turn, or the category is unknown.
    """
    category = record.get("category")
    turns = record.get("conversations")
    for turn in turns if isinstance(turns, list) else []:
        if isinstance(turn, Mapping) and turn.get("from") == "human" and isinstance(turn.get("value"), str):
            return explain_route(turn["value"], num_regions, None if category is None else str(category))
    raise ValueError(
        f"record {record.get('id')!r} has no human turn in 'conversations': expected a list of "
        "{'from': 'human', 'value': text}"
    )


def _fits(task: TaskType, num_regions: int | None) -> bool:
    if num_regions is None:
        return True
    return num_regions == 2 if task is TaskType.LEFT_RIGHT else task is TaskType.COUNTING or num_regions >= 2
