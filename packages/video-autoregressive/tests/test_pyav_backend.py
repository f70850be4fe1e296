from dataclasses import replace

import av
import pytest
import torch
from video_autoregressive.errors import VideoDecodeError
from video_autoregressive.packet_index import packet_index
from video_autoregressive.pyav_backend import _Reader
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
    with av.open(str(clip)) as container:

        def build(index, **options):
            reader = _Reader(container, index, clip)
            reader._container = spy = Spy(container, **options)
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
