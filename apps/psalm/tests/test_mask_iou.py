"""cIoU against gIoU on unequal sizes, no target, void; by hand."""

import numpy as np
import pytest
from psalm.metrics.mask_iou import MaskIoU


def bits(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in text]])


def test_large_objects_weigh_more_in_ciou_and_all_alike_in_giou():
    iou = MaskIoU()
    iou.update(bits("########"), bits("########"))
    iou.update(bits("#......."), bits(".#......"))
    assert iou.compute() == {"cIoU": pytest.approx(100 * 8 / 10), "gIoU": 50.0}


def test_no_target_is_right_only_when_nothing_is_said():
    iou = MaskIoU()
    assert iou.update(bits("...."), bits("....")).iou == 1.0
    assert iou.update(bits("##.."), bits("....")).iou == 0.0
    assert iou.update(bits("##.."), bits("###.")).iou == pytest.approx(2 / 3)
    assert iou.update(bits("...."), bits("#...")).iou == 0.0
    scores = iou.compute()
    assert scores["N_acc"] == 50.0
    assert scores["T_acc"] == 50.0
    assert scores["gIoU"] == pytest.approx(100 * (1 + 0 + 2 / 3 + 0) / 4)
    # What is said where nothing is enters the union: 2 / (0 + 2 + 3 + 1).
    assert scores["cIoU"] == pytest.approx(100 * 2 / 6)


def test_void_counts_neither_for_nor_against():
    iou = MaskIoU()
    overlap = iou.update(bits("##.#"), bits("#..#"), void=bits(".#.#"))
    assert (overlap.shared, overlap.predicted, overlap.true) == (1, 1, 1)
    assert iou.compute() == {"cIoU": 100.0, "gIoU": 100.0}


def test_parts_add_up_in_any_order():
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(7):
        parts.append(MaskIoU())
        parts[-1].update(rng.random((5, 5)) > 0.4, rng.random((5, 5)) > 0.5)
    forwards, backwards = MaskIoU(), MaskIoU()
    for part in parts:
        forwards.merge(part)
    for part in reversed(parts):
        backwards.merge(part)
    assert forwards.compute() == backwards.compute()
    assert MaskIoU().compute() == {}
