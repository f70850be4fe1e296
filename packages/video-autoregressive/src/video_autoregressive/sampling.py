"""Which frames of a video are looked at: pure functions of the times of its frames.

Indices count frames in order of presentation and are strictly increasing: a clip with fewer frames than asked for gives
those it has, never one twice, because predicting a copied frame teaches nothing. Times are in seconds, ascending.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

TIME_TOLERANCE_S = 1e-3
"""Matroska keeps times in milliseconds: a frame may stand half a millisecond from where its rate puts it."""

RATE_TOLERANCE = 0.25
"""A rate is constant if no frame is further from its place than this share of the distance of two frames."""


def sample_uniform(times: Float[Tensor, " all"], max_frames: int) -> Int[Tensor, " frames"]:
    """Frames that are evenly spread over time, the first and the last among them.

    At a constant rate these are the indices floor(i * (all - 1) / (max_frames - 1)), LLaVA-NeXT's rule. At a variable
    rate they are the frames on the screen at times spread evenly from the first to the last; two such times that share
    a frame give it once, so there may be fewer.

    Args:
        times: Times of all frames.
        max_frames: Most frames to take; 1 takes the first.
    """
    _check_count("max_frames", max_frames)
    count = len(times)
    if count <= max_frames:
        return torch.arange(count)
    if max_frames == 1:
        return torch.zeros(1, dtype=torch.int64)
    if is_constant_rate(times):
        return torch.arange(max_frames) * (count - 1) // (max_frames - 1)
    moments = torch.linspace(times[0].item(), times[-1].item(), max_frames, dtype=torch.float64)
    return frames_on_screen(times, moments)


def sample_fps(times: Float[Tensor, " all"], fps: float, max_frames: int) -> Int[Tensor, " frames"]:
    """The frames on the screen every 1 / fps seconds, from the first on.

    Where that makes more than `max_frames`, `max_frames` frames are spread evenly over time instead, so that the end of
    a long video is seen too. A rate above the video's own takes no frame twice.

    Args:
        times: Times of all frames.
        fps: Frames to take per second.
        max_frames: Most frames to take.
    """
    _check_count("max_frames", max_frames)
    if not fps > 0:
        raise ValueError(f"fps: got {fps}, expected a rate above 0")
    if not len(times):
        return torch.arange(0)
    last = int(((times[-1] - times[0]).item() + TIME_TOLERANCE_S) * fps)
    if last >= 2 * len(times) + max_frames:  # a rate that no frame can follow: spare the list of moments
        return sample_uniform(times, max_frames)
    chosen = frames_on_screen(times, times[0].double() + torch.arange(last + 1, dtype=torch.float64) / fps)
    return chosen if len(chosen) <= max_frames else sample_uniform(times, max_frames)


def sample_stride(num_frames: int, sample_rate: int, max_frames: int) -> Int[Tensor, " frames"]:
    """Every `sample_rate`-th frame; of a video with more than `max_frames` of these, `max_frames` spread evenly.

    Args:
        num_frames: Frames of the video.
        sample_rate: Distance in frames.
        max_frames: Most frames to take.
    """
    _check_count("max_frames", max_frames)
    _check_count("sample_rate", sample_rate)
    if num_frames > max_frames * sample_rate:
        return sample_uniform(torch.arange(num_frames, dtype=torch.float64), max_frames)
    return torch.arange(0, num_frames, sample_rate)


def sample_recent_plus_global(
    times: Float[Tensor, " all"], num_fast: int, fast_stride: int, num_slow: int
) -> Int[Tensor, " frames"]:
    """The last frames densely, and some of the whole video, in order of time and each once.

    Args:
        times: Times of all frames.
        num_fast: Recent frames, counted back from the last.
        fast_stride: Their distance in frames.
        num_slow: Frames spread evenly over the whole video.
    """
    for name, value in (("num_fast", num_fast), ("fast_stride", fast_stride), ("num_slow", num_slow)):
        _check_count(name, value)
    recent = torch.arange(len(times) - 1, -1, -fast_stride)[:num_fast]
    return torch.cat([recent, sample_uniform(times, num_slow)]).unique()


def frames_on_screen(times: Float[Tensor, " all"], moments: Float[Tensor, " moments"]) -> Int[Tensor, " frames"]:
    """Index of the last frame that has begun at each moment, each index once, ascending.

    Args:
        times: Times of all frames, at least one.
        moments: Times in seconds; before the first frame, the first counts.
    """
    later = torch.searchsorted(times.double().contiguous(), moments.double() + TIME_TOLERANCE_S, right=True)
    return (later - 1).clamp_(min=0).unique()


def is_constant_rate(times: Float[Tensor, " all"]) -> bool:
    """Whether all frames stand, but for rounding, where a constant rate puts them."""
    if len(times) < 3:
        return True
    times = times.double()
    first, last = times[0].item(), times[-1].item()
    places = torch.linspace(first, last, len(times), dtype=torch.float64)
    return (times - places).abs().max().item() <= RATE_TOLERANCE * ((last - first) / (len(times) - 1))


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: got {value}, expected 1 or more")
