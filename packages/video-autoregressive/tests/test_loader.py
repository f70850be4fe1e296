import copy

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from video_autoregressive.errors import VideoDecodeError, VideoEmptyError, VideoOpenError
from video_autoregressive.loader import MultiScaleVideoFrameLoader, scaled_sizes
from video_autoregressive.sampling import sample_uniform
from video_autoregressive.testing import read_barcodes, write_clip


@pytest.fixture
def loader():
    return MultiScaleVideoFrameLoader(backend="pyav")


@pytest.fixture
def clip(tmp_path):
    """Three seconds at ten frames per second."""
    return write_clip(tmp_path / "clip.mp4", 30, fps=10)


@pytest.fixture
def folder(tmp_path):
    """Five pictures, each as bright as its number."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 6), (number,) * 3).save(folder / f"{number}.png")
    return folder


def test_the_guides_call(loader, clip):
    frames = loader.load_video_frames(video_path=str(clip), max_frames=8, sample_rate=1, target_size=(32, 40))
    assert frames.shape == (8, 3, 32, 40)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() < 0.2 < 0.8 < frames.max() <= 1


def test_the_guides_call_takes_every_nth_frame(loader, clip):
    frames = loader.load_video_frames(clip, max_frames=8, sample_rate=5, target_size=(48, 64))
    assert read_barcodes((frames * 255).round().to(torch.uint8)).tolist() == [0, 5, 10, 15, 20, 25]


def test_the_guides_call_at_several_scales(loader, clip):
    scales = loader.load_video_frames(clip, max_frames=4, target_size=(56, 84), enable_multiscale=True)
    assert [tuple(scale.shape) for scale in scales] == [(4, 3, 56, 84), (4, 3, 42, 56), (4, 3, 28, 42)]
    plain = loader.load_video_frames(clip, max_frames=4, target_size=(56, 84))
    assert torch.equal(scales[0], plain)
    (half,) = loader.load_video_frames(
        clip, max_frames=4, target_size=(56, 84), enable_multiscale=True, scale_factors=[0.5]
    )
    assert torch.equal(half, scales[2])


def test_sizes_of_scales_are_whole_patches_each_once():
    assert scaled_sizes((224, 224), (1.0, 0.75, 0.5), 14) == [(224, 224), (168, 168), (112, 112)]
    assert scaled_sizes((384, 384), (1.0, 0.75, 0.5), 14) == [(378, 378), (294, 294), (196, 196)]
    assert scaled_sizes((384, 384), (1.0, 0.75, 0.5), 16) == [(384, 384), (288, 288), (192, 192)]
    assert scaled_sizes((28, 42), (0.1, 0.2, 1.0), 14) == [(14, 14), (28, 42)]
    with pytest.raises(ValueError, match="scale_factors: got 0"):
        scaled_sizes((28, 28), (0.0,), 14)


def test_a_short_clip_gives_the_frames_it_has_and_none_twice(loader, tmp_path):
    clip = loader.load_clip(write_clip(tmp_path / "short.mp4", 3), max_frames=8)
    assert read_barcodes(clip.frames).tolist() == [0, 1, 2]
    assert clip.valid.tolist() == [True, True, True]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_frames": 4}, [0, 9, 19, 29]),
        ({"max_frames": 8, "sampling": "fps", "fps": 2.0}, [0, 5, 10, 15, 20, 25]),
        ({"max_frames": 8, "sampling": "stride", "sample_rate": 7}, [0, 7, 14, 21, 28]),
        (
            {"max_frames": 8, "sampling": "recent_plus_global", "num_fast": 3, "fast_stride": 2, "num_slow": 3},
            [0, 14, 25, 27, 29],
        ),
    ],
)
def test_clips_say_which_frames_they_are(loader, clip, options, expected):
    loaded = loader.load_clip(clip, **options)
    assert read_barcodes(loaded.frames).tolist() == loaded.indices.tolist() == expected
    torch.testing.assert_close(loaded.times, loaded.indices.double() / 10)
    assert loaded.info.num_frames == 30


def test_a_variable_rate_is_sampled_by_time(loader, tmp_path):
    times_ms = [*range(0, 1000, 50), *range(1000, 11000, 1000)]
    loaded = loader.load_clip(write_clip(tmp_path / "clip.mp4", 30, times_ms=times_ms), max_frames=5)
    assert loaded.times.tolist() == [0.0, 2.0, 5.0, 7.0, 10.0]  # on the screen at 0, 2.5, 5, 7.5 and 10 seconds
    assert read_barcodes(loaded.frames).tolist() == [0, 21, 24, 26, 29]


def test_folders_of_pictures(folder):
    loaded = MultiScaleVideoFrameLoader("pyav", frame_folder_fps=2.0).load_clip(folder, max_frames=3)
    assert loaded.frames[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert loaded.times.tolist() == [0.0, 1.0, 2.0]
    assert loaded.info.kind == "folder"


def test_tensors_with_and_without_times(loader):
    frames = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 4, 6)
    loaded = loader.load_clip(frames, max_frames=3)
    assert torch.equal(loaded.frames, frames[[0, 4, 8]])
    assert (loaded.info.kind, loaded.info.num_frames, loaded.info.fps) == ("tensor", 9, 1.0)
    times = torch.tensor([5.0, 5.1, 5.2, 5.3, 5.4, 7.0, 7.1, 7.2, 9.0], dtype=torch.float64)
    loaded = loader.load_clip(frames, max_frames=3, times=times, size=(8, 8))
    assert loaded.indices.tolist() == [0, 5, 8]
    torch.testing.assert_close(loaded.times, torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64))
    assert loaded.frames.shape == (3, 3, 8, 8)
    assert loaded.info.is_vfr
    with pytest.raises(ValueError, match="expected 9 strictly increasing times"):
        loader.load_clip(frames, max_frames=3, times=times.flip(0))
    with pytest.raises(VideoEmptyError, match="got no frames"):
        loader.load_clip(frames[:0], max_frames=3)


def test_one_frame_of_a_tensor_is_a_clip(loader):
    loaded = loader.load_clip(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), max_frames=3)
    assert (loaded.info.duration_s, loaded.times.tolist()) == (1.0, [0.0])


def test_what_cannot_be_read_is_an_error_and_never_noise(loader, tmp_path):
    with pytest.raises(VideoOpenError, match=r"missing.mp4 \(pyav\): expected a video file"):
        loader.load_clip(tmp_path / "missing.mp4", max_frames=4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoEmptyError, match=r"empty \(folder\): no pictures"):
        loader.load_video_frames(tmp_path / "empty")
    with pytest.raises(ValueError, match="expected them with a tensor"):
        loader.load_clip(tmp_path / "a.mp4", max_frames=4, times=torch.arange(4.0))


def test_settings_that_cannot_be_are_refused(loader, clip):
    with pytest.raises(ValueError, match=r"max_frames: got 8, expected at least num_fast \+ num_slow \(8 \+ 8\)"):
        loader.load_clip(clip, max_frames=8, sampling="recent_plus_global")
    with pytest.raises(ValueError, match="timeout_s: got -1"):
        MultiScaleVideoFrameLoader("pyav", timeout_s=-1.0)
    with pytest.raises(ValueError, match="patch_multiple: got 0"):
        MultiScaleVideoFrameLoader("pyav", patch_multiple=0)


def test_pooling_takes_a_square_or_the_grid_given(loader):
    features = torch.randn(2, 36, 4)
    pooled = loader.apply_spatial_pooling(video_features=features, stride=2, mode="average")
    expected = F.avg_pool2d(features.mT.reshape(2, 4, 6, 6), 2).flatten(2).mT
    torch.testing.assert_close(pooled, expected)
    assert loader.apply_spatial_pooling(features, stride=2, grid=(4, 9)).shape == (2, 8, 4)
    with pytest.raises(ValueError, match="got 37 patches per frame, which are no square"):
        loader.apply_spatial_pooling(torch.randn(2, 37, 4))


@pytest.mark.slow
def test_with_a_limit_clips_are_the_same_and_errors_too(loader, clip, folder, tmp_path):
    limited = copy.deepcopy(MultiScaleVideoFrameLoader("pyav", timeout_s=30.0))
    for source in (clip, folder):
        ours, theirs = (which.load_clip(source, max_frames=4, size=(20, 30)) for which in (loader, limited))
        assert torch.equal(ours.frames, theirs.frames)
        assert torch.equal(ours.times, theirs.times)
        assert (ours.info, ours.indices.tolist()) == (theirs.info, theirs.indices.tolist())
    data = bytearray(clip.read_bytes())
    clip.write_bytes(data[: len(data) // 2])
    with pytest.raises((VideoDecodeError, VideoOpenError), match=r"clip.mp4 \(pyav\)"):
        limited.load_clip(clip, max_frames=4)


@pytest.mark.slow
def test_a_data_loaders_workers_can_have_a_limit(clip):
    limited = MultiScaleVideoFrameLoader("pyav", timeout_s=30.0)
    batches = torch.utils.data.DataLoader(
        [clip] * 2, batch_size=None, num_workers=1, collate_fn=limited.load_video_frames
    )
    expected = MultiScaleVideoFrameLoader("pyav").load_video_frames(clip)
    assert all(torch.equal(frames, expected) for frames in batches)


def test_uniform_sampling_is_the_default(loader, clip):
    assert torch.equal(loader.load_clip(clip, max_frames=7).indices, sample_uniform(torch.arange(30.0), 7))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (
            torch.rand(4, 3, 8, 8),
            r"got a torch.float32 tensor of shape \(4, 3, 8, 8\), expected torch.uint8 .*255 \* frames",
        ),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), r"of shape \(4, 8, 8, 3\), expected torch.uint8 of shape \(T, 3"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"of shape \(3, 8, 8\), expected"),
    ],
)
def test_tensors_of_another_type_or_shape_are_refused(frames, message):
    """Floats would be taken for bytes, and give almost black frames."""
    with pytest.raises(ValueError, match=message):
        MultiScaleVideoFrameLoader("pyav").load_clip(frames, max_frames=2)
    with pytest.raises(ValueError, match=message):
        MultiScaleVideoFrameLoader("pyav").load_video_frames(frames)
