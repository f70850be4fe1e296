"""One video from end to end."""

import numpy as np
import pytest
from lmms.check_video import check_video
from lmms.clip_files import write_clip
from video_autoregressive.backends import backend_of
from video_autoregressive.errors import VideoError


def test_a_good_video_is_described_and_a_damaged_one_is_an_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mp4"
    write_clip(path, rng.integers(0, 256, (20, 32, 48, 3), dtype=np.uint8), np.arange(20) / 10)
    info = check_video(backend_of("pyav"), path, 8)
    assert (info.num_frames, info.height, info.width, info.kind) == (20, 32, 48, "file")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=r"a\.mp4"):
        check_video(backend_of("pyav"), path, 20)
