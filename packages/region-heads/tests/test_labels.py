import pytest
from region_heads import TaskType, involved_regions, mine_involved, parse_label


@pytest.mark.parametrize(
    ("value", "metres"),
    [
        (5.3, 5.3),
        (0, 0.0),
        ("5.3", 5.3),
        (" 5.3 m ", 5.3),
        ("5.3 metres", 5.3),
        ("5.3 meters.", 5.3),
        ("250cm", 2.5),
        ("1 centimetre", 0.01),
        ("40 mm", 0.04),
        ("0.5 km", 500.0),
        ("10 in", 0.254),
        ("10 inches", 0.254),
        ("17 ft", 5.1816),
        ("1 foot", 0.3048),
        ("5 ft 3 in", 1.6002),
        ("5 feet and 3 inches", 1.6002),
        ("5' 3\"", 1.6002),
        ("1e1 m", 10.0),
        (".5 m", 0.5),
    ],
)
def test_distances_become_metres(value: str | float | int, metres: float) -> None:
    label = parse_label(TaskType.DISTANCE, value)
    assert label.value == pytest.approx(metres)
    assert isinstance(label.value, float)


@pytest.mark.parametrize(
    "value",
    ["", "far", "5.3 miles", "-2", "-2 m", "5 3", "5 ft 3", "5,3", "nan", float("nan"), float("inf"), -0.1, True],
)
def test_bad_distances_are_refused(value: str | float | int) -> None:
    with pytest.raises(ValueError, match="distance"):
        parse_label(TaskType.DISTANCE, value)


@pytest.mark.parametrize(
    ("value", "side"),
    [
        ("left", 0),
        ("Left", 0),
        (" LEFT. ", 0),
        ("l", 0),
        ("left side", 0),
        ("on the left", 0),
        ("to the left of", 0),
        ("left-hand side", 0),
        ("right", 1),
        ("R", 1),
        ("Right side", 1),
        (0, 0),
        (1, 1),
        (1.0, 1),
    ],
)
def test_sides(value: str | float | int, side: int) -> None:  # T16
    assert parse_label(TaskType.LEFT_RIGHT, value).value == side


@pytest.mark.parametrize("value", ["", "up", "not left", "left or right", "leftmost", "bright", 2, -1, 0.5, True])
def test_what_is_no_side_does_not_become_right(value: str | float | int) -> None:  # T16
    with pytest.raises(ValueError, match="left"):
        parse_label(TaskType.LEFT_RIGHT, value)


@pytest.mark.parametrize(
    ("value", "count"),
    [(3, 3), (3.0, 3), ("3", 3), ("3.0", 3), ("three", 3), ("There are three pallets.", 3), ("none", 0), ("zero", 0)],
)
def test_counts(value: str | float | int, count: int) -> None:
    label = parse_label(TaskType.COUNTING, value)
    assert label.value == count
    assert isinstance(label.value, int)


@pytest.mark.parametrize("value", ["", "some", "someone", "tone", "3.5", "-3", -1, 2.5, "two or three", float("nan")])
def test_bad_counts_are_refused(value: str | float | int) -> None:
    # Number words count as whole words only: "someone" and "tone" hold no "one".
    with pytest.raises(ValueError, match="counting"):
        parse_label(TaskType.COUNTING, value)


@pytest.mark.parametrize(
    ("value", "index"), [(2, 2), ("2", 2), ("Region 2", 2), ("[Region 2]", 2), ("Region [2]", 2), ("two", 2), (0, 0)]
)
def test_choices(value: str | float | int, index: int) -> None:
    assert parse_label(TaskType.MULTIPLE_CHOICE, value, 3).value == index


def test_a_choice_must_be_one_of_the_regions() -> None:  # T7
    with pytest.raises(ValueError, match=r"choice 'Region 3' is not one of the question's 3 regions"):
        parse_label(TaskType.MULTIPLE_CHOICE, "Region 3", 3)
    with pytest.raises(ValueError, match="none"):
        parse_label(TaskType.MULTIPLE_CHOICE, "none", 3)


@pytest.mark.parametrize(
    ("answer", "regions"),
    [
        ("The pallet [Region 0] is 5.99 meters away from the pallet [Region 3].", {0, 3}),
        ("Region [2] is closest.", {2}),
        ("It is Region 1, not region 2.", {1, 2}),
        ("Regions 1, 2 and 3 are inside.", {1, 2, 3}),
        ("Regions [1], [2], and [4] are inside.", {1, 2, 4}),
        ("There are 3 pallets.", set()),
        ("In region 1, 2 pallets stand.", {1}),
        ("", set()),
    ],
)
def test_regions_are_mined_from_answers(answer: str, regions: set[int]) -> None:
    assert mine_involved(answer, 5) == regions


def test_a_mined_region_must_exist() -> None:
    with pytest.raises(ValueError, match="names region 5, but the question has 5 regions"):
        mine_involved("The pallet [Region 5].", 5)


@pytest.mark.parametrize(
    ("task", "answer", "value", "expected"),
    [
        (TaskType.DISTANCE, "[Region 4] is 2 m from [Region 1].", 2.0, {1, 4}),
        (TaskType.DISTANCE, "[Region 4] is 2 m away.", 2.0, None),
        (TaskType.DISTANCE, "[Region 0], [Region 1] and [Region 2].", 2.0, None),
        (TaskType.COUNTING, "Two pallets: [Region 1] and [Region 3].", 2, {1, 3}),
        (TaskType.COUNTING, "The buffer region [Region 0] holds [Region 1] and [Region 3].", 2, {1, 3}),
        (TaskType.COUNTING, "The shelf [Region 2] holds nothing.", 0, set()),
        (TaskType.COUNTING, "There are two pallets.", 2, None),
        (TaskType.COUNTING, "[Region 1], [Region 2] and [Region 3].", 2, None),
        (TaskType.MULTIPLE_CHOICE, "[Region 1].", 1, None),
    ],
)
def test_only_unambiguous_answers_give_involved_regions(
    task: TaskType, answer: str, value: float | int, expected: set[int] | None
) -> None:
    assert involved_regions(task, answer, value, 5) == expected
    label = parse_label(task, value, 5, answer=answer)
    assert label.involved == expected
