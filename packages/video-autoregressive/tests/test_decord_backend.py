"""What decord alone does; that it is right or refuses is tested for all backends in `test_backends.py`."""

from dataclasses import replace

import pytest
import torch
from video_autoregressive.backends import available_backends
from video_autoregressive.errors import VideoDecodeError
from video_autoregressive.packet_index import packet_index
from video_autoregressive.testing import read_barcodes, write_clip

REASON = available_backends()["decord"]
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def module():
    """The module, which imports decord."""
    from video_autoregressive import decord_backend

    return decord_backend


def test_many_frames_of_vp9_are_read_on_one_thread(tmp_path, module):
    path = write_clip(tmp_path / "clip.webm", 60, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    decoded = module.DecordBackend().read(path, torch.arange(0, 60, 2))
    assert read_barcodes(decoded.frames).tolist() == list(range(0, 60, 2))


def test_a_frame_at_another_time_is_an_error(tmp_path, monkeypatch, module):
    path = write_clip(tmp_path / "clip.mp4", 20)
    index = packet_index(path, "decord")
    later = replace(index, pts=(*index.pts[:9], index.pts[9] + 100, *index.pts[10:]))
    monkeypatch.setattr(module, "packet_index", lambda *_: later)
    with pytest.raises(VideoDecodeError, match=r"frame 9 at 0.307 s: decord places it at 0.300 s"):
        module.DecordBackend().read(path, torch.tensor([3]))
