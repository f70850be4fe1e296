"""Figures of a run."""

import pytest
from lmms.figures import draw_frame_errors, draw_losses, draw_mask
from lmms.frame_errors import FrameErrors
from region_training.images import read_image


def _titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_raw_loss_and_copying_share_their_axes():
    names = ("main_loss", "autoregressive_loss", "autoregressive_loss_raw", "ar_copy_loss", "ar_skill")
    figure = draw_losses([{"step": step, **dict.fromkeys(names, 1.0 / step)} for step in range(1, 5)])
    assert _titles(figure) == [
        "main_loss",
        "autoregressive_loss",
        "autoregressive_loss_raw and ar_copy_loss",
        "ar_skill",
    ]
    raw, copy = figure.axes[2].lines
    assert (raw.get_label(), copy.get_label()) == ("autoregressive_loss_raw", "ar_copy_loss")
    assert raw.get_ydata()[-1] == pytest.approx(0.25)


def test_a_run_without_the_module_has_the_words_alone():
    assert _titles(draw_losses([{"step": 1, "main_loss": 2.0}])) == ["main_loss"]
    assert draw_losses([]) is None
    assert draw_losses([{"step": 1, "loss/main": 1.0}]) is None


def test_errors_by_frame_stand_over_their_positions():
    (axes,) = draw_frame_errors(FrameErrors((1, 3), (0.5, 0.25), (1.0, 0.5), (2, 1))).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[1, 3], [1, 3]]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0.25], [1.0, 0.5]]
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize(("causal", "dark"), [(True, 5 / 9), (False, 1.0)])
def test_the_mask_shows_the_window_of_frames(toy, tmp_path, monkeypatch, causal, dark):
    seen = {}

    def keep(mask, title, path, num_patches_per_frame):
        seen.update(mask=mask, title=title, patches=num_patches_per_frame)
        return path

    monkeypatch.setattr("lmms.figures.FrameLevelMaskGenerator.visualize_mask", staticmethod(keep))
    config = toy.autoregressive(num_hist=2, use_frame_causal_mask=causal)
    draw_mask(config, 3, 4, tmp_path / "mask.png")
    assert seen["mask"].shape == (12, 12)
    assert seen["mask"].float().mean().item() == pytest.approx(dark)
    draw_mask(config, 256, 196, tmp_path / "mask.png")
    assert seen["patches"] == 8


def test_the_mask_becomes_a_picture(toy, tmp_path):
    path = draw_mask(toy.autoregressive(), 4, 4, tmp_path / "samples" / "mask.png")
    assert read_image(path).std() > 0
