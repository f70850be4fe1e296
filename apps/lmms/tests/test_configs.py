"""What the presets with real sizes promise, computed from their settings."""

import pytest
import torch
from lmms.cli import APPLICATION
from region_training.command_line import resolve_settings
from region_training.presets import preset_names
from video_autoregressive.layout import FrameBatch, FrameLayout, FrameSpan
from video_autoregressive.sampling import sample_recent_plus_global


def settings_of(preset):
    return resolve_settings(APPLICATION, "train", ["--preset", preset])


@pytest.mark.parametrize("preset", sorted(set(preset_names(APPLICATION.presets_package)) - {"tiny"}))
def test_a_decoder_that_hangs_does_not_hang_a_preset_of_real_size(preset):
    assert settings_of(preset).data.decode_timeout_s == 30


@pytest.mark.parametrize("seconds", [5, 10, 30, 120, 600])
@pytest.mark.parametrize("fps", [24, 30])
def test_fast_slow_compares_frames_about_a_quarter_of_a_second_apart(seconds, fps):
    settings = settings_of("fast-slow")
    stream = settings.model.autoregressive_config
    assert settings.data.max_frames == stream.num_fast + stream.num_slow
    times = torch.arange(seconds * fps, dtype=torch.float64) / fps
    chosen = sample_recent_plus_global(times, stream.num_fast, stream.fast_stride, stream.num_slow)
    spans = [FrameSpan(at, time, at, 1, (1, 1)) for at, time in enumerate(times[chosen].tolist())]
    frames = FrameBatch.collate([FrameLayout(tuple(spans))], len(spans))
    source, target = frames.pairs(1, stream.gap_tolerance)
    gaps = frames.times[target] - frames.times[source]
    assert len(gaps) >= 4
    assert 0.2 <= gaps.min() <= gaps.max() <= 0.4
