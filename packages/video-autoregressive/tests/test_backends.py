"""The decoder matrix: for every kind of file, the right frames or one clear error, in every backend alike."""

import logging
import struct
import sys
from fractions import Fraction
from types import ModuleType

import av
import pytest
import torch
from video_autoregressive.backends import available_backends, backend_of
from video_autoregressive.errors import VideoDecodeError, VideoError
from video_autoregressive.testing import barcode, cut_clip, read_barcodes, write_clip

BACKENDS = ("torchcodec", "pyav", "decord")
X264_OPEN = {"x264-params": "open-gop=1:bframes=3:scenecut=0"}
PAUSES_MS = [0, 33, 66, 100, 500, 533, 566, 600, 1200, 1233, 1266, 1300, *range(2000, 2720, 40)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Each backend that can be used here."""
    reason = available_backends()[request.param]
    if reason is not None:
        pytest.skip(reason)
    return backend_of(request.param)


def encodable(codec):
    try:
        av.Codec(codec, "w")
    except ValueError:
        return False
    return True


def numbers_of(backend, path, indices):
    """The numbers in the frames of these indices, after what holds for every read was checked."""
    indices = torch.tensor(indices, dtype=torch.int64)
    decoded = backend.read(path, indices)
    info = backend.probe(path)
    assert decoded.frames.shape == (len(indices), 3, info.height, info.width)
    assert torch.equal(decoded.indices, indices)
    assert torch.equal(decoded.times, backend.frame_times(path)[indices])
    assert decoded.info == backend.probe(path)
    assert bool((decoded.times.diff() > 0).all())
    return read_barcodes(torch.rot90(decoded.frames, -(info.rotation // 90), (2, 3))).tolist()


def check_every_way_of_reading(backend, path, first=0):
    """Frames are numbered from `first`: all at once, some in front, some at the end, and some with seeks between."""
    count = backend.probe(path).num_frames
    for indices in (range(count), range(3), range(count - 2, count), range(2, count, 7), [count // 2], [0, count - 1]):
        assert numbers_of(backend, path, list(indices)) == [first + index for index in indices]
    assert len(backend.frame_times(path)) == count


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {}),
        ("h264.mkv", {}),
        ("h264_fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("ffv1_odd.mkv", {"codec": "ffv1", "size": (49, 67)}),
        ("vp9.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}),
        ("av1.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}, "size": (64, 64)}),
        ("variable.mp4", {"times_ms": PAUSES_MS}),
        ("variable.mkv", {"times_ms": PAUSES_MS}),
    ],
)
def test_every_backend_returns_the_right_frames(tmp_path, backend, name, options):
    if not encodable(options.get("codec", "libx264")):
        pytest.skip(f"this FFmpeg has no encoder {options['codec']}")
    check_every_way_of_reading(backend, write_clip(tmp_path / name, **options))


def check_frames_or_error(backend, path, first=0):
    """decord cannot read some files: it says so, instead of returning other frames."""
    if backend.name == "decord":
        with pytest.raises(VideoDecodeError, match=r"decord (counts|seeks|does not return)"):
            backend.read(path, torch.tensor([0]))
    else:
        check_every_way_of_reading(backend, path, first)


@pytest.mark.parametrize("start", [3, 17, 20, 29])
def test_stream_copied_cuts(tmp_path, backend, start):
    clip = write_clip(tmp_path / "clip.mp4", 45, gop=15, options={"sc_threshold": "0"})
    cut = cut_clip(clip, tmp_path / "cut.mp4", start)
    assert backend.probe(cut).num_frames == 45 - start
    check_frames_or_error(backend, cut, start)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mp4", "libx264", X264_OPEN),
        ("open.mkv", "libx264", X264_OPEN),
        ("hevc.mp4", "libx265", {"x265-params": "log-level=none:open-gop=1:bframes=3"}),
    ],
)
def test_open_groups_of_pictures(tmp_path, backend, name, codec, options):
    if not encodable(codec):
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    check_frames_or_error(backend, write_clip(tmp_path / name, 45, gop=12, codec=codec, options=options))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_turned_as_displayed(tmp_path, backend, degrees):
    path = write_clip(tmp_path / "clip.mp4")
    cosine, sine = {90: (0, -1), 180: (-1, 0), 270: (0, 1)}[degrees]  # counter-clockwise
    upright, turned = (
        struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
        for a, b in ((1, 0), (cosine, sine))
    )
    data = path.read_bytes()
    header = data.find(b"tkhd")
    path.write_bytes(data[:header] + data[header:].replace(upright, turned, 1))
    info = backend.probe(path)
    assert info.rotation == degrees
    assert (info.width, info.height) == ((64, 48) if degrees == 180 else (48, 64))
    if degrees == 180:
        check_every_way_of_reading(backend, path)
    else:
        check_frames_or_error(backend, path)


def test_transport_streams(tmp_path, backend):
    path = write_clip(tmp_path / "clip.ts", 40)
    if backend.name == "pyav":
        check_every_way_of_reading(backend, path)
    else:
        with pytest.raises(VideoDecodeError, match=r"try PyAV|decord seeks"):
            backend.read(path, torch.arange(0, 40, 5))


def test_a_size_that_changes_on_the_way(tmp_path, backend):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(12):
            height, width = (48, 64) if number < 6 else (64, 80)
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
            encoder.time_base = Fraction(1, 30)
            frame = av.VideoFrame.from_ndarray(barcode(number, height, width), format="rgb24")
            frame = frame.reformat(format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            for packet in encoder.encode(frame):
                packet.stream = stream
                container.mux(packet)
    assert numbers_of(backend, path, [0, 3, 5]) == [0, 3, 5]
    if backend.name == "decord":  # it scales them to the first size
        assert backend.read(path, torch.arange(12)).frames.shape == (12, 3, 48, 64)
    else:
        with pytest.raises(VideoDecodeError, match=r"frame \d+ at .*(80 x 64 pixels|64x80|decoded)"):
            backend.read(path, torch.tensor([3, 7]))


def test_damaged_packets_are_errors_where_they_are_needed(tmp_path, backend):
    path = write_clip(tmp_path / "clip.mp4", 40, options={"bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as clip:
        packets = [(packet.pos, packet.size) for packet in clip.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[25]
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    if backend.name != "decord":  # it decodes ahead in a thread, and fails or not as that is faster or slower
        assert numbers_of(backend, path, [0, 12, 19, 32]) == [0, 12, 19, 32]
    with pytest.raises(VideoDecodeError, match=rf"\({backend.name}\).*cannot be decoded"):
        backend.read(path, torch.tensor([0, 27]))


def test_every_file_that_is_no_video_is_one_error_with_the_backends_name(tmp_path, backend):
    (tmp_path / "text.mp4").write_text("no video")
    for call in (backend.probe, backend.frame_times, lambda path: backend.read(path, torch.tensor([0]))):
        with pytest.raises(VideoError, match=rf"text.mp4 \({backend.name}\): expected a video"):
            call(tmp_path / "text.mp4")


def test_frames_can_be_resized_none_and_out_of_range(tmp_path, backend):
    path = write_clip(tmp_path / "clip.mp4", 12)
    assert backend.read(path, torch.arange(12), size=(24, 20)).frames.shape == (12, 3, 24, 20)
    assert backend.read(path, torch.arange(0), size=(24, 20)).frames.shape == (0, 3, 24, 20)
    assert backend.read(path, torch.arange(0)).frames.shape == (0, 3, 48, 64)
    with pytest.raises(IndexError, match="expected 0 to 11"):
        backend.read(path, torch.tensor([3, 12]))
    with pytest.raises(ValueError, match="strictly increasing"):
        backend.read(path, torch.tensor([3, 3]))


@pytest.mark.parametrize("size", [None, (30, 50)])
def test_pixels_do_not_depend_on_the_backend(tmp_path, size):
    path = write_clip(tmp_path / "clip.mp4")
    usable = [name for name, reason in available_backends().items() if reason is None]
    frames = [backend_of(name).read(path, torch.tensor([0, 4, 20]), size).frames for name in usable]
    assert all(torch.equal(one, frames[0]) for one in frames)


def test_auto_is_torchcodec_where_its_libraries_are():
    usable = available_backends()["torchcodec"] is None
    assert backend_of("auto").name == ("torchcodec" if usable else "pyav")


def test_auto_falls_back_to_pyav_and_says_why(monkeypatch, caplog, tmp_path):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # as if it were not installed
    with caplog.at_level(logging.INFO, logger="video_autoregressive.backends"):
        backend = backend_of("auto")
    assert backend.name == "pyav"
    (record,) = caplog.records
    assert "decoded with PyAV: import of torchcodec halted" in record.message
    assert "install video-autoregressive[decoders]" in record.message
    check_every_way_of_reading(backend, write_clip(tmp_path / "clip.mp4"))
    with pytest.raises(ImportError, match=r"the backend 'torchcodec' cannot be used: import of torchcodec halted"):
        backend_of("torchcodec")


def test_torchcodec_without_ffmpeg_cannot_be_used(monkeypatch):
    torchcodec = pytest.importorskip("torchcodec")
    monkeypatch.setattr(torchcodec, "ffmpeg_major_version", None)
    assert "finds no FFmpeg libraries" in available_backends()["torchcodec"]
    assert backend_of("auto").name == "pyav"


def test_a_decoder_that_does_not_load_cannot_be_used(monkeypatch, tmp_path):
    # What releases of torchcodec that do not fit torch do when they are imported.
    (tmp_path / "torchcodec.py").write_text("raise RuntimeError('\\nCould not load libtorchcodec.\\nA long story.')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchcodec", raising=False)
    assert available_backends()["torchcodec"] == "torchcodec cannot be loaded: Could not load libtorchcodec."
    assert backend_of("auto").name == "pyav"


def test_no_backend_at_all_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for decoder in ("torchcodec", "decord"):  # as if they were installed: every backend needs PyAV's index
        monkeypatch.setitem(sys.modules, decoder, ModuleType(decoder))
    assert set(available_backends().values()) == {available_backends()["pyav"]}
    with pytest.raises(ImportError, match=r"'pyav' cannot be used: .*install video-autoregressive\[decoders\]"):
        backend_of("auto")


def test_unknown_backends_are_refused():
    with pytest.raises((ValueError, TypeError), match="opencv"):
        backend_of("opencv")
