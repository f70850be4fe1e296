import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra 'pictures'")

from region_heads import Label, RegionMetrics, RegionPrediction, TaskType
from region_heads.pictures import draw_all, draw_by_num_regions, draw_confusion, draw_distances, save_png


def _metrics() -> RegionMetrics:
    metrics = RegionMetrics()
    rows = [
        (TaskType.DISTANCE, 2.0, 2.1, 2),
        (TaskType.DISTANCE, 8.0, 4.0, 5),
        (TaskType.LEFT_RIGHT, 0, "left", 2),
        (TaskType.LEFT_RIGHT, 1, "left", 2),
        (TaskType.MULTIPLE_CHOICE, 1, 1, 3),
        (TaskType.COUNTING, 2, 3, 4),
    ]
    for task, truth, answer, num_regions in rows:
        metrics.update([RegionPrediction(task, answer, 1.0)], [Label(task, truth)], [num_regions])
    metrics.update([None], [Label(TaskType.DISTANCE, 3.0)], [2])
    return metrics


def test_points_lie_where_the_answers_are() -> None:
    axes = draw_distances(_metrics()).axes[0]
    points = axes.collections[-1].get_offsets().tolist()
    assert points == [[2.0, 2.1], [8.0, 4.0]]
    assert axes.get_xlabel() == "true distance (m)"


def test_cells_carry_the_counts() -> None:
    figure = draw_confusion(_metrics(), TaskType.LEFT_RIGHT)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "1"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["left", "right"]


def test_bars_carry_the_number_of_questions() -> None:
    axes = draw_by_num_regions(_metrics(), TaskType.DISTANCE).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 0.0]
    assert [text.get_text() for text in axes.texts] == ["n=2", "n=1"]


def test_one_file_per_picture(tmp_path: Path) -> None:
    figures = draw_all(_metrics())
    assert set(figures) == {
        "distance",
        "distance_by_num_regions",
        "left_right_confusion",
        "counting_confusion",
        "multiple_choice_by_num_regions",
    }
    for name, figure in figures.items():
        path = save_png(figure, tmp_path / "pictures" / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_empty_metrics_draw_too() -> None:
    assert draw_all(RegionMetrics()) == {}
    draw_distances(RegionMetrics())
    draw_by_num_regions(RegionMetrics(), TaskType.COUNTING)


def test_no_global_state() -> None:
    assert "matplotlib.pyplot" not in sys.modules
