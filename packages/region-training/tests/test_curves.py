import io

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from region_training.curves import (
    learning_rate_curves,
    loss_curves,
    running_mean,
    save_figure,
    series,
    time_and_memory_curves,
)

METRICS = [
    {"step": step, "loss/total": 3.0 / step, "loss/$a$": 1.0, "lr/base": 1e-4, "time/step_s": 0.5}
    | ({"loss/rare": 0.1 * step} if step % 2 else {})
    for step in range(1, 101)
]


def test_each_term_has_axes_of_its_own():
    figure = loss_curves(METRICS)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "total (mean of 5)",
        "$a$ (mean of 5)",
        "rare (mean of 2)",
    ]
    logged, smoothed = (np.asarray(line.get_xydata(), dtype=float) for line in figure.axes[0].lines)
    np.testing.assert_allclose(logged, [(step, 3.0 / step) for step in range(1, 101)])
    np.testing.assert_allclose(smoothed[9], (10, np.mean([3.0 / step for step in range(6, 11)])))
    rare = np.asarray(figure.axes[2].lines[0].get_xydata(), dtype=float)
    np.testing.assert_array_equal(rare[:, 0], range(1, 100, 2))


def test_figures_become_pictures(tmp_path):
    for figure in (loss_curves(METRICS), learning_rate_curves(METRICS), time_and_memory_curves(METRICS)):
        assert figure is not None
        save_figure(figure, tmp_path / "new" / "a.png")
        picture = np.asarray(Image.open(io.BytesIO((tmp_path / "new" / "a.png").read_bytes())).convert("L"))
        assert picture.min() < 100 < picture.max()


def test_nothing_logged_gives_no_figure():
    assert loss_curves([]) is None
    assert learning_rate_curves([{"step": 1, "loss/total": 1.0}]) is None
    assert time_and_memory_curves([{"step": 1, "loss/total": 1.0}]) is None
    figure = time_and_memory_curves(METRICS)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["time/step_s (mean of 5)"]


def test_values_that_were_not_finite_leave_a_gap():
    steps, values = series(
        [{"step": 1, "a": 2}, {"step": 2, "a": None}, {"step": 3}, {"a": 1}, {"step": 4, "a": 5.0}], "a"
    )
    assert (steps.tolist(), values.tolist()) == ([1.0, 4.0], [2.0, 5.0])


@pytest.mark.parametrize("width", [1, 3, 50])
def test_running_mean_against_a_slow_one(width):
    values = np.random.default_rng(0).normal(size=20)
    slow = [np.mean(values[max(0, end - width + 1) : end + 1]) for end in range(20)]
    np.testing.assert_allclose(running_mean(values, width), slow, atol=1e-12)


def test_pyplot_holds_none_of_the_figures():
    loss_curves(METRICS)
    learning_rate_curves(METRICS)
    assert pyplot.get_fignums() == []
