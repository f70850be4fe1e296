import pickle
from pathlib import Path

import pytest
from video_autoregressive.errors import (
    VideoDecodeError,
    VideoEmptyError,
    VideoError,
    VideoOpenError,
    VideoTimeoutError,
    brief,
)


@pytest.mark.parametrize("kind", [VideoOpenError, VideoEmptyError, VideoTimeoutError, VideoDecodeError])
def test_message_names_path_backend_and_reason(kind):
    error = kind(Path("a/b.mp4"), "pyav", "no frames")
    assert str(error) == "a/b.mp4 (pyav): no frames"
    assert (error.path, error.backend) == ("a/b.mp4", "pyav")
    assert isinstance(error, VideoError)
    assert isinstance(error, ValueError)


def test_decode_errors_name_frame_and_time():
    error = VideoDecodeError("b.mp4", "pyav", "broken", index=3, time_s=0.1)
    assert str(error) == "b.mp4 (pyav), frame 3 at 0.100 s: broken"
    assert str(VideoDecodeError("b.mp4", "pyav", "broken", index=3)) == "b.mp4 (pyav), frame 3: broken"


@pytest.mark.parametrize(
    "error", [VideoOpenError("a", "pyav", "no file"), VideoDecodeError("a", "pyav", "broken", index=3, time_s=0.1)]
)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 our own
    assert type(again) is type(error)
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_brief_keeps_the_first_line():
    assert brief(RuntimeError("one\ntwo")) == "one"
    assert brief(RuntimeError("x" * 300)) == "x" * 200 + "..."
    assert brief(AssertionError()) == "AssertionError"
