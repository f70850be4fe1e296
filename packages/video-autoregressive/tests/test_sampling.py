import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from video_autoregressive.sampling import (
    frames_on_screen,
    is_constant_rate,
    sample_fps,
    sample_recent_plus_global,
    sample_stride,
    sample_uniform,
)

TIMES = st.lists(st.floats(0.002, 5.0), min_size=0, max_size=60).map(
    lambda gaps: torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)
)


def constant(num_frames, fps=30.0):
    return torch.arange(num_frames, dtype=torch.float64) / fps


# An opening shot, a still of ten seconds, and four more frames.
PAUSE = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 12.0, 12.5, 13.0, 13.5], dtype=torch.float64)


@pytest.mark.parametrize("num_frames", [1, 2, 7, 8, 9, 100, 301, 1800])
@pytest.mark.parametrize("max_frames", [2, 8, 32, 33])
def test_uniform_at_a_constant_rate_is_the_inclusive_linspace_rule(num_frames, max_frames):
    expected = list(range(num_frames))
    if num_frames > max_frames:
        expected = [i * (num_frames - 1) // (max_frames - 1) for i in range(max_frames)]
        assert expected == np.linspace(0, num_frames - 1, max_frames).astype(int).tolist()
    assert sample_uniform(constant(num_frames), max_frames).tolist() == expected


@pytest.mark.parametrize("fps", [24000 / 1001, 30, 60, 120])
def test_uniform_does_not_mind_times_rounded_to_milliseconds(fps):
    times = constant(1000, fps)
    assert torch.equal(sample_uniform((times * 1000).round() / 1000, 64), sample_uniform(times, 64))


def test_uniform_is_even_in_time_not_in_index():
    # Moments 0, 3.375, 6.75, 10.125 and 13.5: the still of ten seconds is on the screen at three of them.
    assert sample_uniform(PAUSE, 5).tolist() == [0, 4, 8]
    # Moments 0, 1, 2, 3 and 4.
    assert sample_uniform(torch.tensor([0.0, 0.1, 0.2, 0.3, 2.0, 4.0]), 5).tolist() == [0, 3, 4, 5]


def test_uniform_with_one_frame_takes_the_first():
    assert sample_uniform(constant(9), 1).tolist() == [0]


def test_fps_takes_what_is_on_the_screen():
    assert sample_fps(constant(90), 1.0, 8).tolist() == [0, 30, 60]
    assert sample_fps(constant(90), 2.0, 8).tolist() == [0, 15, 30, 45, 60, 75]
    assert sample_fps(PAUSE, 0.5, 8).tolist() == [0, 4, 5]  # seconds 0, 2, 4 to 10, 12


def test_fps_does_not_mind_times_rounded_to_milliseconds():
    times = constant(90)
    assert torch.equal(sample_fps((times * 1000).round() / 1000, 15.0, 99), sample_fps(times, 15.0, 99))


def test_fps_above_the_videos_own_takes_no_frame_twice():
    assert sample_fps(constant(9), 120.0, 20).tolist() == list(range(9))
    assert sample_fps(constant(9), 1e9, 20).tolist() == list(range(9))


def test_fps_that_makes_too_many_frames_is_spread_over_the_whole_video():
    assert torch.equal(sample_fps(constant(300), 10.0, 8), sample_uniform(constant(300), 8))


@pytest.mark.parametrize(
    ("num_frames", "sample_rate", "max_frames", "expected"),
    [
        (5, 1, 8, [0, 1, 2, 3, 4]),
        (16, 2, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (15, 2, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (17, 2, 8, [0, 2, 4, 6, 9, 11, 13, 16]),
        (100, 4, 3, [0, 49, 99]),
        (0, 1, 8, []),
    ],
)
def test_stride_is_the_guides_rule(num_frames, sample_rate, max_frames, expected):
    assert sample_stride(num_frames, sample_rate, max_frames).tolist() == expected


def test_recent_plus_global_is_in_order_of_time_and_has_no_frame_twice():
    assert sample_recent_plus_global(constant(101), 4, 2, 5).tolist() == [0, 25, 50, 75, 94, 96, 98, 100]
    assert sample_recent_plus_global(constant(3), 8, 1, 8).tolist() == [0, 1, 2]
    assert sample_recent_plus_global(constant(10), 3, 4, 1).tolist() == [0, 1, 5, 9]


@settings(deadline=None, max_examples=60)
@given(times=TIMES, max_frames=st.integers(1, 40), fps=st.floats(0.05, 50.0))
def test_every_rule_gives_frames_of_the_video_in_order(times, max_frames, fps):
    for chosen in (
        sample_uniform(times, max_frames),
        sample_fps(times, fps, max_frames),
        sample_stride(len(times), 3, max_frames),
    ):
        assert 1 <= len(chosen) <= max_frames
        assert bool((chosen.diff() > 0).all())
        assert int(chosen[0]) == 0
        assert int(chosen[-1]) < len(times)
    if max_frames > 1:
        assert int(sample_uniform(times, max_frames)[-1]) == len(times) - 1


def test_frames_on_screen_are_the_last_that_have_begun():
    moments = torch.tensor([-1.0, 0.0, 0.6, 1.9999, 11.0, 99.0], dtype=torch.float64)
    assert frames_on_screen(PAUSE, moments).tolist() == [0, 1, 4, 8]


def test_constant_rates_are_told_from_variable_ones():
    assert is_constant_rate(constant(1))
    assert is_constant_rate((constant(500, 29.97) * 1000).round() / 1000)
    assert not is_constant_rate(PAUSE)
    assert not is_constant_rate(torch.cat([constant(50), constant(50) + 51 / 30]))  # one frame dropped


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample_uniform(constant(3), 0), "max_frames: got 0"),
        (lambda: sample_fps(constant(3), 0.0, 2), "fps: got 0.0"),
        (lambda: sample_stride(3, 0, 2), "sample_rate: got 0"),
        (lambda: sample_recent_plus_global(constant(3), 1, 0, 2), "fast_stride: got 0"),
    ],
)
def test_impossible_numbers_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
