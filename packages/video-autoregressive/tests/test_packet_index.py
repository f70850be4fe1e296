from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video_autoregressive.errors import VideoDecodeError, VideoEmptyError, VideoOpenError
from video_autoregressive.packet_index import packet_index
from video_autoregressive.testing import cut_clip, write_clip


def index_of(path):
    return packet_index(path, "pyav")


def test_constant_rate(tmp_path):
    index = index_of(write_clip(tmp_path / "clip.mp4", 30))
    info = index.info
    assert (info.num_frames, info.width, info.height, info.rotation) == (30, 64, 48, 0)
    assert (info.codec, info.kind, info.is_vfr) == ("h264", "file", False)
    assert (info.fps, info.duration_s) == (pytest.approx(30.0), pytest.approx(1.0))
    torch.testing.assert_close(index.times(), torch.arange(30, dtype=torch.float64) / 30)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate(tmp_path, suffix):
    times_ms = [0, 33, 66, 100, 500, 533, 1200, 1233]
    index = index_of(write_clip(tmp_path / f"clip.{suffix}", 8, times_ms=times_ms))
    torch.testing.assert_close(index.times(), torch.tensor(times_ms, dtype=torch.float64) / 1000)
    assert index.info.is_vfr
    assert index.info.fps == pytest.approx(8 / index.info.duration_s)


def test_milliseconds_are_no_variable_rate(tmp_path):
    assert not index_of(write_clip(tmp_path / "clip.mkv", 30)).info.is_vfr


def test_a_cut_presents_only_what_it_does_not_hide(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 30, gop=10)
    index = index_of(cut_clip(clip, tmp_path / "cut.mp4", 17))
    assert index.info.num_frames == 13
    assert float(index.times()[0]) == 0
    assert index.keys[0] < index.pts[0]


def test_frames_before_the_first_key_frame_do_not_count(tmp_path):
    source = write_clip(tmp_path / "clip.mp4", 30, gop=10, options={"bf": "0"})
    with av.open(str(source)) as clip, av.open(str(tmp_path / "late.mkv"), "w") as container:
        stream = clip.streams.video[0]
        copy = container.add_stream_from_template(stream)
        for packet in list(clip.demux(stream))[4:-1]:
            packet.stream = copy
            container.mux(packet)
    assert index_of(tmp_path / "late.mkv").info.num_frames == 20


def test_open_groups_are_seen(tmp_path):
    closed = write_clip(tmp_path / "closed.mp4", 30)
    x264 = {"x264-params": "open-gop=1:bframes=3:scenecut=0"}
    assert not index_of(closed).is_open
    assert index_of(write_clip(tmp_path / "open.mp4", 45, gop=12, options=x264)).is_open


def test_one_frame(tmp_path):
    info = index_of(write_clip(tmp_path / "clip.mp4", 1)).info
    assert (info.num_frames, info.is_vfr) == (1, False)
    assert info.fps == pytest.approx(30.0)


def test_short_clips_are_walked_through_once(tmp_path):
    clips = [write_clip(tmp_path / f"{number}.mp4", 4 + number) for number in range(12)]
    first = [index_of(clip) for clip in clips]
    assert all(again is before for again, before in zip(map(index_of, clips), first, strict=True))


def test_another_file_under_the_same_name_is_read_anew(tmp_path):
    assert index_of(write_clip(tmp_path / "clip.mp4", 5)).info.num_frames == 5
    assert index_of(write_clip(tmp_path / "clip.mp4", 6)).info.num_frames == 6


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path):
    with av.open(str(path), "w", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def no_header(path):
    data = write_clip(path).read_bytes()
    path.write_bytes(data[: data.find(b"moov") - 4])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, VideoOpenError, "expected a video file: No such file"),
        (lambda path: path.mkdir(), VideoOpenError, "got no regular file"),
        (lambda path: path.write_bytes(b""), VideoOpenError, "the file is empty"),
        (lambda path: path.write_text("a video\n" * 99), VideoOpenError, "expected a video: .*Invalid data"),
        (no_header, VideoOpenError, "expected a video: .*Invalid data"),
        (audio_only, VideoOpenError, "no video stream"),
        (no_frames, VideoEmptyError, "the video stream has no frames"),
    ],
    ids=["missing", "directory", "empty", "text", "no_header", "audio", "no_frames"],
)
def test_what_is_no_video_is_refused(tmp_path, make, error, message):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(error, match=rf"clip.mp4 \(pyav\): .*{message}"):
        index_of(path)


@pytest.mark.parametrize("share", [0.99, 0.9, 0.5])
def test_a_truncated_mp4_is_refused(tmp_path, share):
    path = write_clip(tmp_path / "clip.mp4", container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoDecodeError, match="cut off"):
        index_of(path)


def test_an_mp4_that_ends_between_two_frames_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", container_options={"movflags": "faststart"})
    with av.open(str(path)) as clip:
        last = max(packet.pos or 0 for packet in clip.demux(video=0))
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(VideoDecodeError, match="holds 29 frames and its header says 30"):
        index_of(path)


def test_a_truncated_matroska_file_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(VideoDecodeError, match=r"its header says 2.00 s: cut off"):
        index_of(path)


def test_a_matroska_file_whose_sound_is_longer_is_complete(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        video = container.add_stream("mpeg4", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=16000)
        for number in range(60):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 16000, number * 1024
            container.mux(audio.encode(sound))
            if number < 10:
                picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(video.encode(picture))
        container.mux(audio.encode())
        container.mux(video.encode())
    assert index_of(tmp_path / "clip.mkv").info.num_frames == 10


def test_a_first_frame_that_cannot_be_decoded_is_named(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 8, options={"bf": "0"})
    with av.open(str(path)) as clip:
        first = next(clip.demux(video=0))
    data = bytearray(path.read_bytes())
    data[first.pos : first.pos + first.size] = bytes(first.size)
    path.write_bytes(data)
    with pytest.raises(VideoDecodeError, match=r"frame 0 at 0.000 s: cannot be decoded"):
        index_of(path)


def test_streams_without_times_of_presentation_are_refused(tmp_path):
    with pytest.raises(VideoOpenError, match="AVI keeps no times"):
        index_of(write_clip(tmp_path / "clip.avi"))
    raw = write_clip(tmp_path / "clip.h264")
    with pytest.raises(VideoOpenError, match="the stream has no times"):
        index_of(raw)


def test_paths_may_be_text(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 3)
    assert packet_index(str(path), "pyav").pts == packet_index(Path(path), "pyav").pts
