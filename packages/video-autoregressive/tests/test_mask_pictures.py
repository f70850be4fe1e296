import sys

import pytest
import torch
from video_autoregressive import mask_pictures
from video_autoregressive.mask_pictures import mask_text, visualize_mask
from video_autoregressive.masks import FrameLevelMaskGenerator

generator = FrameLevelMaskGenerator()


@pytest.fixture
def picture():
    """Reads a PNG back as an array of (height, width, channels) in [0, 1]."""
    pytest.importorskip("matplotlib", reason="needs the extra 'pictures'")
    from matplotlib.image import imread

    return imread


def test_the_picture_is_dark_where_attention_is_allowed(tmp_path, picture):
    causal = picture(visualize_mask(generator.create_causal_frame_mask(4, 9), tmp_path / "causal.png"))
    alone = picture(visualize_mask(generator.create_sliding_window_frame_mask(4, 9, 1), tmp_path / "alone.png"))
    assert causal.shape == alone.shape
    dark = [float((image[..., :3].max(-1) < 0.2).mean()) for image in (causal, alone)]
    assert dark[0] / dark[1] == pytest.approx(10 / 4, rel=0.1)


def test_boundaries_are_drawn_when_the_frames_are_known(tmp_path, picture):
    mask = generator.create_causal_frame_mask(3, [2, 5, 3])

    def red(path):
        image = picture(path)
        return int(((image[..., 0] > 0.7) & (image[..., 1] < 0.4)).sum())

    assert red(visualize_mask(mask, tmp_path / "plain.png")) == 0
    assert red(visualize_mask(mask, tmp_path / "frames.png", num_patches_per_frame=[2, 5, 3])) > 100


def test_large_masks_are_drawn_smaller(tmp_path, picture, monkeypatch):
    """Ten frames on a picture of seven points: where a point covers pairs of both kinds, it is grey."""
    mask = generator.create_causal_frame_mask(10, 1)
    sharp = picture(visualize_mask(mask, tmp_path / "sharp.png"))
    monkeypatch.setattr(mask_pictures, "MAX_SIDE", 7)
    path = visualize_mask(mask, tmp_path / "new" / "small.png", title="Small")
    assert path == tmp_path / "new" / "small.png"
    grey = [int(((image[..., :3] > 0.3) & (image[..., :3] < 0.7)).sum()) for image in (sharp, picture(path))]
    assert grey[1] > 10 * grey[0]


def test_many_boundaries_are_left_out(tmp_path, picture):
    mask = generator.create_causal_frame_mask(200, 1)
    image = picture(visualize_mask(mask, tmp_path / "many.png", num_patches_per_frame=1))
    assert not ((image[..., 0] > 0.7) & (image[..., 1] < 0.4)).any()


def test_the_programs_own_figures_are_left_alone(tmp_path, picture):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="needs the extra 'pictures'")
    before = pyplot.get_fignums()
    visualize_mask(generator.create_causal_frame_mask(2, 2), tmp_path / "mask.png")
    assert pyplot.get_fignums() == before


def test_without_matplotlib_the_mask_is_written_as_text(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    mask = generator.create_causal_frame_mask(3, [1, 2, 1])
    path = visualize_mask(mask, tmp_path / "new" / "mask.png", num_patches_per_frame=[1, 2, 1])
    assert path == tmp_path / "new" / "mask.txt"
    assert path.read_text() == "100\n110\n111\n"
    assert not path.with_suffix(".png").exists()
    assert f"wrote {path}" in caplog.text
    assert "video-autoregressive[pictures]" in caplog.text
    assert visualize_mask(mask, path).read_text() == "1000\n1110\n1110\n1111\n"
    monkeypatch.setattr(mask_pictures, "MAX_SIDE", 2)
    assert visualize_mask(mask, path).read_text() == "??\n1?\n"
    assert visualize_mask(mask[:, :2], path).read_text() == "1?\n11\n"
    with pytest.raises(ValueError, match="does not add up"):
        visualize_mask(mask, path, num_patches_per_frame=3)


@pytest.mark.parametrize("counts", [5, 0, [3, 4], [3, 4, 3]])
def test_frames_must_add_up_to_the_mask(tmp_path, counts):
    mask = generator.create_causal_frame_mask(2, 4)
    with pytest.raises(ValueError, match="does not add up to a mask of 8 x 8"):
        mask_text(mask, counts)


def test_text_has_a_line_per_frame():
    assert mask_text(generator.create_sliding_window_frame_mask(4, 3, 2), 3) == "1000\n1100\n0110\n0011"
    assert mask_text(generator.create_causal_frame_mask(3, [2, 1, 4]), [2, 1, 4]) == "100\n110\n111"
    assert mask_text(generator.create_causal_frame_mask(2, 3), 3, allowed="#", blocked=".") == "#.\n##"


def test_text_marks_pairs_that_are_allowed_in_part():
    assert mask_text(torch.ones(4, 4, dtype=torch.bool).tril(), 2) == "?0\n1?"
