"""One video, piece by piece."""

import numpy as np
import pytest
import torch
from lmms.check_video import PIECE, check_piece, probe_video
from lmms.clip_files import write_clip
from video_autoregressive.backends import backend_of
from video_autoregressive.errors import VideoError
from video_autoregressive.pyav_backend import PyavBackend


class Noting(PyavBackend):
    """Notes which frames it is asked for instead of decoding them."""

    def __init__(self):
        self.asked = []

    def frame_times(self, path):
        return torch.arange(PIECE + 44, dtype=torch.float64) / 30

    def read(self, path, wanted, size=None):
        self.asked.append(wanted.tolist())


def test_a_good_video_is_described_and_a_damaged_one_is_an_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mp4"
    write_clip(path, rng.integers(0, 256, (20, 32, 48, 3), dtype=np.uint8), np.arange(20) / 10)
    reader = backend_of("pyav")
    info = probe_video(reader, path)
    assert (info.num_frames, info.height, info.width, info.kind) == (20, 32, 48, "file")
    for num_frames in (0, 8):
        check_piece(reader, path, 0, num_frames)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"a\.mp4"):
        check_piece(reader, path, 0, 0)


@pytest.mark.parametrize(("num_frames", "expected"), [(0, range(PIECE + 44)), (3, [0, 149, 299])])
def test_pieces_are_bounded_and_cover_the_frames_that_are_checked(tmp_path, num_frames, expected):
    reader = Noting()
    for begin in (0, PIECE):
        check_piece(reader, tmp_path / "a.mp4", begin, num_frames)
    assert all(len(indices) <= PIECE for indices in reader.asked)
    assert [index for indices in reader.asked for index in indices] == list(expected)
