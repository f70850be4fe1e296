import pytest
import torch
from region_heads import Label, RegionTargets, TaskType


def _targets() -> RegionTargets:
    labels = [
        Label(TaskType.DISTANCE, 2.5, frozenset({0, 2})),
        Label(TaskType.LEFT_RIGHT, 1),
        None,
        Label(TaskType.COUNTING, 2, frozenset()),
        Label(TaskType.MULTIPLE_CHOICE, 1),
        Label(TaskType.COUNTING, 1, frozenset({7})),
    ]
    return RegionTargets.from_labels(labels, [0, 1, 2, 3, 0, 3], [3, 2, 0, 1, 2, 2])


def test_every_answer_has_its_own_typed_field() -> None:  # T2
    targets = _targets()
    assert targets.distance_m.dtype == torch.float32
    assert targets.left_right.dtype == targets.choice.dtype == targets.count.dtype == torch.int64
    assert targets.distance_m.tolist() == [2.5, 0, 0, 0, 0, 0]
    assert targets.left_right.tolist() == [0, 1, 0, 0, 0, 0]
    assert targets.count.tolist() == [0, 0, 0, 2, 0, 1]
    assert targets.num_regions.tolist() == [3, 2, 0, 1, 2, 2]


def test_missing_and_misrouted_labels_are_not_valid() -> None:
    # Row 2 has no label; row 4 has a choice but was routed to the distance head.
    assert _targets().valid.tolist() == [True, True, False, True, False, True]


def test_involved_regions_are_known_only_where_they_exist() -> None:
    targets = _targets()
    assert targets.involved_valid.tolist() == [True, False, False, True, False, False]
    assert targets.involved.shape == (6, 3)
    assert targets.involved[0].tolist() == [True, False, True]
    assert not targets.involved[1:].any()


def test_selecting_and_padding_rows() -> None:
    targets = _targets()
    assert targets.select(torch.tensor([3, 0])).count.tolist() == [2, 0]
    padded = targets.padded(8, 5)
    assert len(padded) == 8
    assert padded.involved.shape == (8, 5)
    assert padded.involved[0].tolist() == [True, False, True, False, False]
    assert not padded.valid[6:].any()
    assert padded.distance_m[:6].equal(targets.distance_m)


def test_empty_batches_and_empty_rows_are_legal() -> None:
    assert len(RegionTargets.from_labels([], [], [])) == 0
    empty = RegionTargets.empty(torch.tensor([0, 4]), 4)
    assert not empty.valid.any()
    assert empty.involved.shape == (2, 4)


def test_moving_keeps_everything() -> None:
    moved = _targets().to("cpu", non_blocking=True)
    assert moved.involved.equal(_targets().involved)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="got 1 labels, 2 task types and 1 region counts"):
        RegionTargets.from_labels([None], [0, 1], [2])
