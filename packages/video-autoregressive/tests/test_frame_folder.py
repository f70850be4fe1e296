import numpy as np
import pytest
import torch
from PIL import Image
from video_autoregressive.errors import VideoDecodeError, VideoEmptyError, VideoOpenError
from video_autoregressive.frame_folder import FrameFolder


@pytest.fixture
def folder(tmp_path):
    """Twelve grey pictures, frame_0.png to frame_11.png, as bright as their numbers, and a file that is none."""
    for number in range(12):
        Image.new("RGB", (8, 6), (number,) * 3).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "labels.txt").write_text("no picture")
    return tmp_path


def test_numbers_in_names_count_as_numbers(folder):
    decoded = FrameFolder(fps=2.0).read(folder, torch.tensor([0, 2, 10, 11]))
    assert decoded.frames.shape == (4, 3, 6, 8)
    assert decoded.frames[:, 0, 0, 0].tolist() == [0, 2, 10, 11]
    assert decoded.times.tolist() == [0.0, 1.0, 5.0, 5.5]


def test_probe_and_times(folder):
    backend = FrameFolder(fps=2.0)
    info = backend.probe(folder)
    assert (info.num_frames, info.fps, info.duration_s) == (12, 2.0, 6.0)
    assert (info.width, info.height, info.codec, info.kind) == (8, 6, "png", "folder")
    assert torch.equal(backend.frame_times(folder), torch.arange(12, dtype=torch.float64) / 2)


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is top left moves to the top right
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    (frame,) = FrameFolder().read(tmp_path, torch.tensor([0])).frames
    assert frame.shape == (3, 8, 6)
    assert frame[0].nonzero().tolist() == [[0, 5]]


def test_frames_can_be_resized_and_then_may_differ_in_size(folder):
    Image.new("RGB", (20, 20), (255,) * 3).save(folder / "frame_5.png")
    assert FrameFolder().read(folder, torch.arange(12), size=(4, 5)).frames.shape == (12, 3, 4, 5)
    with pytest.raises(VideoDecodeError, match=r"frame 5 at 5.000 s: frame_5.png is 20 x 20 pixels, expected 8 x 6"):
        FrameFolder().read(folder, torch.arange(12))


def test_no_frames_are_legal(folder):
    assert FrameFolder().read(folder, torch.arange(0), size=(4, 5)).frames.shape == (0, 3, 4, 5)


def test_a_broken_picture_is_named(folder):
    data = (folder / "frame_3.png").read_bytes()
    (folder / "frame_3.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoDecodeError, match=r"\(folder\), frame 3 at 3.000 s: frame_3.png cannot be read"):
        FrameFolder().read(folder, torch.tensor([2, 3]))
    (folder / "frame_0.png").write_text("no picture")
    with pytest.raises(VideoDecodeError, match=r"frame_0.png cannot be read"):
        FrameFolder().probe(folder)


def test_folders_without_pictures_are_empty_and_files_are_no_folders(tmp_path):
    with pytest.raises(VideoEmptyError, match=r"no pictures, expected files that end in .jpg"):
        FrameFolder().probe(tmp_path)
    with pytest.raises(VideoOpenError, match="expected a folder"):
        FrameFolder().frame_times(tmp_path / "missing")


def test_the_rate_must_be_one():
    with pytest.raises(ValueError, match=r"fps of a frame folder: got 0\.0"):
        FrameFolder(0.0)
