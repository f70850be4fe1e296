import pytest
import torch
from region_core import LossTerms
from region_heads import ChoiceOutput, CountingOutput, DistanceOutput, LeftRightOutput, RegionHeadsOutput, decode


def test_answers_by_hand() -> None:
    pairs = torch.tensor([[0, 0], [0, 1]])
    outputs = {
        "distance": DistanceOutput(torch.tensor([2.5]), torch.tensor([[0.0, 2.5]]), torch.tensor([[-1e9, 0.0]]), pairs),
        "left_right": LeftRightOutput(torch.tensor([[1.0, -1.0], [-2.0, 2.0]])),
        "multiple_choice": ChoiceOutput(torch.tensor([[0.0, 0.0, 2.0]])),
        "counting": CountingOutput(
            torch.zeros(1, 3), torch.tensor([[0.125, 0.375, 0.375, 0.125]]).log() + 1e-7, torch.tensor([1.5])
        ),
    }
    rows = {
        "distance": torch.tensor([4]),
        "left_right": torch.tensor([0, 3]),
        "multiple_choice": torch.tensor([1]),
        "counting": torch.tensor([5]),
    }
    predictions = decode(RegionHeadsOutput(outputs, rows, LossTerms(), {}, 6))
    answers = [None if item is None else (item.task.label, item.value) for item in predictions]
    assert answers == [
        ("left_right", "left"),
        ("multiple_choice", 2),
        None,
        ("left_right", "right"),
        ("distance", 2.5),
        ("counting", 1),
    ]
    confidences = [0.0 if item is None else item.confidence for item in predictions]
    expected = [0.880797, 0.786986, 0.0, 0.982014, 1.0, 0.375]
    assert confidences == pytest.approx(expected, abs=1e-5)


def test_nothing_answered() -> None:
    assert decode(RegionHeadsOutput({}, {}, LossTerms(), {}, 2)) == [None, None]
