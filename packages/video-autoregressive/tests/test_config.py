import subprocess
import sys

import pytest
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig

GUIDE = {
    "embedding_dim": 1152,
    "num_hist": 3,
    "loss_weight": 0.1,
    "num_heads": 8,
    "num_layers": 3,
    "use_frame_causal_mask": True,
    "use_fast_slow_frames": False,
    "fast_stride": 1,
    "slow_stride": 4,
    "num_fast": 8,
    "num_slow": 8,
    "enable_multiscale_pooling": False,
    "mm_spatial_pool_stride": 2,
    "mm_spatial_pool_mode": "average",
    "add_faster_video": False,
}


def test_the_keys_and_defaults_of_the_guide():
    config = AutoregressiveConfig()
    assert {key: vars(config)[key] for key in GUIDE} == GUIDE
    assert AutoregressiveConfig.from_mapping(GUIDE) == config


def test_the_guides_whole_example():
    config = AutoregressiveConfig.from_mapping({**GUIDE, "enable_multiscale_pooling": True, "add_faster_video": True})
    assert config.scales == (1, 2)
    assert config.stream == "slowfast_pool"
    assert config.width == 1152


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("num_histt", "unknown key 'num_histt'.*did you mean 'num_hist'"),
        ("slow_frame_ratio", "unknown key 'slow_frame_ratio'"),
        ("zzz", "known are embedding_dim, num_hist"),
    ],
)
def test_unknown_keys_are_refused(key, message):
    """Trap: a key that is ignored is a setting that somebody believes in."""
    with pytest.raises(ValueError, match=message):
        AutoregressiveConfig.from_mapping({key: 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hist": 0}, "num_hist: got 0, expected 1 or more"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"mm_spatial_pool_stride": 0}, "mm_spatial_pool_stride"),
        ({"teacher_chunk": 0}, "teacher_chunk"),
        ({"loss_weight": -0.1}, "loss_weight: got -0.1, expected 0 or more"),
        ({"horizon": -1}, "horizon"),
        ({"dropout": 1.0}, "dropout: got 1.0, expected a share below 1"),
        ({"weight_warmup": 1.5}, "weight_warmup"),
        ({"predictor_dim": 0}, "predictor_dim"),
        ({"embedding_dim": 100}, r"num_heads: got 8, which does not divide the predictor's width 100 \(embedding_dim"),
        ({"predictor_dim": 100}, r"width 100 \(predictor_dim"),
        ({"teacher": "external"}, "teacher_path: needed with teacher 'external'"),
        ({"teacher": "cache"}, "teacher_path"),
        ({"use_fast_slow_frames": True, "add_faster_video": True}, "ask for different streams"),
        ({"use_fast_slow_frames": True, "stream": "slowfast_pool"}, "recent_plus_global, slowfast_pool"),
    ],
)
def test_values_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoregressiveConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "stream"),
    [
        ({}, "uniform"),
        ({"use_fast_slow_frames": True}, "recent_plus_global"),
        ({"add_faster_video": True}, "slowfast_pool"),
        ({"stream": "slowfast_pool"}, "slowfast_pool"),
        ({"add_faster_video": True, "stream": "slowfast_pool"}, "slowfast_pool"),
    ],
)
def test_the_guides_switches_choose_the_stream(settings, stream):
    assert AutoregressiveConfig(**settings).stream == stream


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, (1,)),
        ({"enable_multiscale_pooling": True}, (1, 2)),
        ({"enable_multiscale_pooling": True, "mm_spatial_pool_stride": 3}, (1, 3)),
        ({"enable_multiscale_pooling": True, "mm_spatial_pool_stride": 1}, (1,)),
    ],
)
def test_scales(settings, scales):
    assert AutoregressiveConfig(**settings).scales == scales


def test_the_predictor_may_be_narrower_than_what_it_predicts():
    assert AutoregressiveConfig(predictor_dim=256).width == 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_stride": 0}, "pool_stride"),
        ({"faster_stride": -1}, "faster_stride"),
        ({"faster_stride": 10}, "newline: got 'one_token' with faster_stride 10, expected 'grid' or 'no_token'"),
    ],
)
def test_token_layouts_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VideoTokenConfig(**settings)


def printed_by(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_words_that_are_not_known_are_refused_without_a_type_checker():
    code = """
from video_autoregressive.config import AutoregressiveConfig, VideoTokenConfig
module = ("mm_spatial_pool_mode", "stream", "loss", "target_norm", "teacher", "weight_schedule")
words = [(AutoregressiveConfig, key) for key in module]
for settings, key in (*words, (VideoTokenConfig, "newline"), (VideoTokenConfig, "pool_mode")):
    try:
        settings(**{key: "avrage"})
    except ValueError as error:
        assert str(error).startswith(f"{key}: got 'avrage', expected one of "), error
        print(key)
"""
    assert len(printed_by(code).split()) == 8


def test_settings_do_not_import_torch():
    assert printed_by("import video_autoregressive.config, sys; print('torch' in sys.modules)") == "False\n"
