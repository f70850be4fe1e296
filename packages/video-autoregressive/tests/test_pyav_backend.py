from dataclasses import replace

import av
import pytest
import torch
from video_autoregressive.errors import VideoDecodeError
from video_autoregressive.packet_index import open_indexed, packet_index
from video_autoregressive.pyav_backend import PyavBackend, _Reader
from video_autoregressive.testing import read_barcodes, write_clip


class Spy:
    """A container that notes where it is asked to seek to, and can seek too far, as some formats do."""

    def __init__(self, container, too_far=0):
        self.container, self.too_far, self.seeks = container, too_far, []

    def seek(self, tick, *, stream):
        self.seeks.append(tick)
        self.container.seek(tick + self.too_far if tick > 0 else tick, stream=stream)

    def decode(self, stream):
        return self.container.decode(stream)


@pytest.fixture
def clip(tmp_path):
    """Sixty frames, every tenth a key frame."""
    return write_clip(tmp_path / "clip.mp4", 60, gop=10, options={"sc_threshold": "0"})


@pytest.fixture
def reader_of(clip):
    """A reader of the clip with a spy as its container."""
    video = open_indexed(clip, "pyav")
    with video.container:

        def build(index, **options):
            reader = _Reader(replace(video, index=index), clip)
            reader._container = spy = Spy(video.container, **options)
            return reader, spy

        yield build


def test_it_seeks_only_over_key_frames_that_it_has_not_passed(clip, reader_of):
    index = packet_index(clip, "pyav")
    reader, spy = reader_of(index)
    frames = torch.cat([reader.frame(wanted) for wanted in (3, 7, 25, 28, 59)])
    assert read_barcodes(frames).tolist() == [3, 7, 25, 28, 59]
    assert spy.seeks == [index.keys[2], index.keys[5]]


def test_a_seek_that_goes_too_far_is_done_again_from_further_back(clip, reader_of):
    index = packet_index(clip, "pyav")
    reader, spy = reader_of(index, too_far=index.pts[15] - index.pts[0])
    assert read_barcodes(torch.cat([reader.frame(wanted) for wanted in (25, 41)])).tolist() == [25, 41]
    assert spy.seeks[:2] == [index.keys[2], index.keys[1]]


def test_a_frame_that_does_not_come_is_an_error_and_not_its_neighbour(clip, reader_of):
    index = packet_index(clip, "pyav")
    reader, spy = reader_of(replace(index, pts=(*index.pts[:25], index.pts[25] + 1, *index.pts[26:])))
    with pytest.raises(VideoDecodeError, match=r"\(pyav\), frame 25 at 0.83\d s: the decoder does not return it"):
        reader.frame(25)
    assert spy.seeks == [index.keys[2]]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("wanted", [[0, 1, 2, 13], [3, 7, 25, 28, 59], [59]])
def test_a_small_file_is_opened_once_and_gives_what_a_large_one_gives(tmp_path, monkeypatch, suffix, wanted):
    path = write_clip(tmp_path / f"clip.{suffix}", 60, gop=10, options={"sc_threshold": "0"})
    opened, open_file = [], av.open
    monkeypatch.setattr(av, "open", lambda *args: opened.append(args) or open_file(*args))
    small = PyavBackend().read(path, torch.tensor(wanted))
    assert len(opened) == 1
    monkeypatch.setattr("video_autoregressive.packet_index.KEPT_BYTES", 0)
    large = PyavBackend().read(path, torch.tensor(wanted))
    assert len(opened) == 3
    assert read_barcodes(small.frames).tolist() == wanted
    assert torch.equal(small.frames, large.frames)
    assert torch.equal(small.times, large.times)
    assert small.info == large.info


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_another_file_under_the_same_name_is_read_anew(tmp_path, monkeypatch, kept_bytes):
    monkeypatch.setattr("video_autoregressive.packet_index.KEPT_BYTES", kept_bytes)
    for count in (5, 6):
        path = write_clip(tmp_path / "clip.mp4", count)
        decoded = PyavBackend().read(path, lambda times: torch.arange(len(times)))
        assert read_barcodes(decoded.frames).tolist() == list(range(count))
        assert decoded.info.num_frames == count
