import math

import pytest
import torch
from region_heads import (
    ChoiceOutput,
    CountingOutput,
    DistanceOutput,
    Label,
    LeftRightOutput,
    RegionHeadsConfig,
    RegionTargets,
    TaskType,
    count_loss_items,
)
from region_heads.losses import (
    choice_loss,
    counting_loss,
    counting_members_loss,
    distance_loss,
    distance_pair_loss,
    left_right_loss,
    select_loss_rows,
)


def _distance_output(metres: list[float]) -> DistanceOutput:
    rows = len(metres)
    pairs = torch.tensor([[0, 0], [0, 1], [0, 2], [1, 2]])
    probabilities = torch.tensor([[0.0, 0.5, 0.25, 0.25]]).expand(rows, 4)
    logs = probabilities.log().clamp_min(torch.finfo(torch.float32).min)
    return DistanceOutput(torch.tensor(metres), torch.tensor(metres)[:, None].expand(rows, 4), logs, pairs)


def test_squared_error_is_one_number_per_row() -> None:  # T1
    losses = distance_loss(_distance_output([3.0, 5.0, 7.0]), torch.tensor([1.0, 5.0, 8.0]), kind="mse", std_m=2.0)
    assert losses.shape == (3,)
    assert losses.tolist() == [1.0, 0.0, 0.25]


def test_log_huber_by_hand() -> None:  # T10
    # log(2.1 / 1.1) = 0.6466 is beyond the beta of 0.1: 0.6466 - 0.05. log(1.05 / 1.0) = 0.04879: its square / 0.2.
    output = _distance_output([2.0, 0.95, 0.0])
    losses = distance_loss(output, torch.tensor([1.0, 0.9, 0.0]), kind="log_huber", std_m=2.0)
    expected = [math.log(2.1 / 1.1) - 0.05, math.log(1.05) ** 2 / 0.2, 0.0]
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_pair_loss_is_minus_the_log_probability_of_the_pair() -> None:
    involved = torch.tensor([[True, True, False], [False, True, True]])
    losses = distance_pair_loss(_distance_output([1.0, 1.0]), involved)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4)])


def test_cross_entropies_by_hand() -> None:
    sides = left_right_loss(LeftRightOutput(torch.tensor([[1.0, -1.0], [0.0, 0.0]])), torch.tensor([1, 0]))
    assert sides.tolist() == pytest.approx([math.log(1 + math.exp(2)), math.log(2)])
    low = torch.finfo(torch.float32).min
    logits = torch.tensor([[0.0, math.log(3.0), low]])
    assert choice_loss(ChoiceOutput(logits), torch.tensor([0])).tolist() == pytest.approx([math.log(4)])


def _counting_output() -> CountingOutput:
    low = torch.finfo(torch.float32).min
    inclusion = torch.tensor([[0.0, math.log(3.0), low]])
    return CountingOutput(inclusion, torch.tensor([[0.125, 0.5, 0.375]]).log(), torch.tensor([1.25]))


def test_counting_losses_by_hand() -> None:
    output = _counting_output()
    assert counting_loss(output, torch.tensor([1]), kind="cross_entropy").item() == pytest.approx(math.log(2))
    # The last class stands for "2 or more". T8
    assert counting_loss(output, torch.tensor([9]), kind="cross_entropy").item() == pytest.approx(-math.log(0.375))
    assert counting_loss(output, torch.tensor([1]), kind="expected_count").item() == pytest.approx(0.25**2 / 2)
    assert counting_loss(output, torch.tensor([4]), kind="expected_count").item() == pytest.approx(2.75 - 0.5)
    # Members: region 0 at 1/2 is in, region 1 at 3/4 is out; the padding region is skipped.
    members = counting_members_loss(output, torch.tensor([[True, False, False]]), torch.tensor([2]))
    assert members.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def _targets(**changes: torch.Tensor) -> RegionTargets:
    fields = {
        "distance_m": torch.tensor([2.0, float("nan"), -1.0, 0.0, 3.0]),
        "left_right": torch.tensor([0, 1, 2, -1, 0]),
        "choice": torch.tensor([0, 1, 2, -1, 3]),
        "count": torch.tensor([0, 2, 3, -1, 9]),
        "valid": torch.tensor([True, True, True, True, False]),
        "involved": torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]]).bool(),
        "involved_valid": torch.tensor([True, True, True, True, True]),
        "num_regions": torch.tensor([2, 2, 2, 3, 3]),
        **changes,
    }
    return RegionTargets(**fields)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (TaskType.DISTANCE, {"distance": [1, 0, 0, 1, 0], "distance_pair": [1, 0, 0, 1, 0]}),
        (TaskType.LEFT_RIGHT, {"left_right": [1, 1, 0, 0, 0]}),
        (TaskType.MULTIPLE_CHOICE, {"multiple_choice": [1, 1, 0, 0, 0]}),
        (TaskType.COUNTING, {"counting": [1, 1, 0, 0, 0], "counting_members": [1, 1, 0, 1, 1]}),
    ],
)
def test_only_possible_targets_count(task: TaskType, expected: dict[str, list[int]]) -> None:  # T7, T8
    # A choice that points at padding, a count above the number of regions and a distance that is not finite do not.
    rows = select_loss_rows(torch.full((5,), int(task)), _targets(), RegionHeadsConfig())
    assert {name: mask.int().tolist() for name, mask in rows.items() if mask.any()} == expected


def test_rows_without_regions_and_disabled_heads_do_not_count() -> None:
    targets = _targets(num_regions=torch.zeros(5, dtype=torch.long), involved=torch.zeros(5, 3, dtype=torch.bool))
    config = RegionHeadsConfig.from_dict({"counting": {"enabled": False}})
    for task in TaskType:
        counts = count_loss_items(torch.full((5,), int(task)), targets, config)
        assert set(counts) == {"distance", "distance_pair", "left_right", "multiple_choice"}
        assert not any(counts.values())


def test_a_large_count_is_possible_where_the_last_class_is_reachable() -> None:  # T8
    config = RegionHeadsConfig(max_count=2)
    labels = [Label(TaskType.COUNTING, 9), Label(TaskType.COUNTING, 2), Label(TaskType.COUNTING, 2)]
    targets = RegionTargets.from_labels(labels, [3, 3, 3], [3, 1, 2])
    assert select_loss_rows(torch.tensor([3, 3, 3]), targets, config)["counting"].tolist() == [True, False, True]
