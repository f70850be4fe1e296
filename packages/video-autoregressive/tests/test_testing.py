import av
import pytest
import torch
from video_autoregressive.testing import barcode, cut_clip, read_barcodes, write_clip


@pytest.mark.parametrize("number", [1, 93, 255])
def test_barcodes_read_as_they_were_written(number):
    picture = torch.from_numpy(barcode(number, 48, 70)).permute(2, 0, 1)
    assert read_barcodes(picture[None]).tolist() == [number]
    assert read_barcodes(torch.rot90(picture, 2, (1, 2))[None]).tolist() != [number]


def test_a_clip_has_the_times_asked_for(tmp_path):
    with av.open(str(write_clip(tmp_path / "clip.mp4", 3, times_ms=[0, 40, 500]))) as clip:
        assert [frame.time for frame in clip.decode(video=0)] == [0.0, 0.04, 0.5]


def test_a_cut_keeps_what_it_hides(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 20, gop=10)
    with av.open(str(cut_clip(clip, tmp_path / "cut.mp4", 13))) as cut:
        assert cut.streams.video[0].frames == 10  # from the key frame 10 on
        assert sum(1 for _ in cut.decode(video=0)) == 7
