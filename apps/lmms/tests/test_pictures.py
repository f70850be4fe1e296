"""Pictures of frames with words and errors."""

import numpy as np
import pytest
from lmms.pictures import draw_frames
from region_training.curves import save_figure
from region_training.images import read_image

FRAMES = [np.full((12, 16, 3), 20 * index, dtype=np.uint8) for index in range(10)]


def _picture(tmp_path, *args, **kwargs):
    save_figure(draw_frames(*args, **kwargs), tmp_path / "picture.png", dpi=40)
    return read_image(tmp_path / "picture.png")


def test_frames_stand_in_rows_in_order(tmp_path):
    figure = draw_frames(FRAMES, [f"{index}.00 s" for index in range(10)], title="question: $why\nanswer: \x00")
    shown = [axes.get_xlabel() for axes in figure.axes]
    assert shown == [f"{index}.00 s" for index in range(10)]
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == [20 * index for index in range(10)]
    rows = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
    assert rows == {0, 1}
    assert figure.get_suptitle() == "question: $why\nanswer: \N{REPLACEMENT CHARACTER}"
    assert _picture(tmp_path, FRAMES[:1], ["only"], title="one").std() > 0


def test_errors_are_bars_below_the_frames(tmp_path):
    errors = ([None, 0.5, 0.25], [None, 1.0, 0.75])
    figure = draw_frames(FRAMES[:3], ["0", "1", "2"], title="errors", errors=errors)
    bars = figure.axes[-1]
    heights = [[bar.get_height() for bar in container] for container in bars.containers]
    assert np.isnan([heights[0][0], heights[1][0]]).all()
    assert [row[1:] for row in heights] == [[0.5, 0.25], [1.0, 0.75]]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["predicted", "copied"]
    with_bars = _picture(tmp_path, FRAMES[:3], ["0", "1", "2"], title="errors", errors=errors)
    assert with_bars.shape[0] > _picture(tmp_path, FRAMES[:3], ["0", "1", "2"], title="errors").shape[0]


def test_numbers_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match=r"got 2 frames with \[1\] captions"):
        draw_frames(FRAMES[:2], ["0"], title="")
    with pytest.raises(ValueError, match=r"\[2, 1, 2\]"):
        draw_frames(FRAMES[:2], ["0", "1"], title="", errors=([0.1], [0.1, 0.2]))
