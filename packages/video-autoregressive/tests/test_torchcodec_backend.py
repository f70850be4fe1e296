from dataclasses import replace

import pytest
import torch
from video_autoregressive.backends import available_backends
from video_autoregressive.errors import VideoDecodeError
from video_autoregressive.packet_index import packet_index
from video_autoregressive.testing import read_barcodes, write_clip

REASON = available_backends()["torchcodec"]
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def module():
    """The module, which imports torchcodec."""
    from video_autoregressive import torchcodec_backend

    return torchcodec_backend


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_frames_do_not_depend_on_chunks(tmp_path, monkeypatch, module, chunk):
    path = write_clip(tmp_path / "clip.mp4", 40)
    monkeypatch.setattr(module, "CHUNK", chunk)
    frames = module.TorchcodecBackend().read(path, torch.arange(1, 40, 3)).frames
    assert read_barcodes(frames).tolist() == list(range(1, 40, 3))


def test_another_frame_than_asked_for_is_an_error(tmp_path, monkeypatch, module):
    path = write_clip(tmp_path / "clip.mp4", 20)
    index = packet_index(path, "torchcodec")
    mappings = module._mappings(index)
    expected = replace(index, pts=(*index.pts[:9], index.pts[9] + 100, *index.pts[10:]))
    monkeypatch.setattr(module, "packet_index", lambda *_: expected)
    monkeypatch.setattr(module, "_mappings", lambda _: mappings)
    with pytest.raises(VideoDecodeError, match=r"frame 9 at 0.307 s: the decoder returns the frame at 0.300 s instead"):
        module.TorchcodecBackend().read(path, torch.tensor([3, 9]))
