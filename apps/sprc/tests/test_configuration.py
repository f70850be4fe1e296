"""The model's configuration: sub-configurations, what is derived, what is refused."""

import pytest
from roi_region_loss.config import RegionLossConfig
from sprc.configuration import SPRCConfig


def test_parts_agree_with_each_other(toy_model):
    config = toy_model.config()
    assert config.qformer.encoder_hidden_size == config.vision.hidden_size == 16
    assert config.qformer.use_qformer_text_input
    assert config.hidden_size == 16
    assert (config.grid.height, config.grid.width, config.grid.num_prefix_tokens) == (4, 4, 1)


def test_grid_of_other_sizes_is_not_square(toy_model):
    grid = toy_model.config().grid_of(8, 24)
    assert (grid.height, grid.width, grid.num_tokens) == (2, 6, 13)


def test_defaults_are_those_of_the_published_model():
    config = SPRCConfig()
    assert (config.vision.hidden_size, config.vision.num_hidden_layers, config.grid.num_tokens) == (1408, 39, 257)
    assert (config.num_query_tokens, config.image_text_hidden_size, config.max_caption_tokens) == (32, 256, 32)
    assert (config.loss_itc, config.loss_rtc, config.loss_align, config.loss_region) == (1.0, 0.4, 0.4, 0.5)
    assert config.ln_vision_eps == 1e-5
    assert (config.region_output_size, config.region_queries) == (7, 8)
    assert config.use_region_loss is False


def test_region_settings_are_completed_and_checked(toy_model):
    assert toy_model.config(region_loss={"temperature": 0.1}).region == RegionLossConfig(temperature=0.1)
    with pytest.raises(ValueError, match="temperature"):
        toy_model.config(region_loss={"temperature": -1.0})


def test_survives_its_json(toy_model, tmp_path):
    config = toy_model.config(region_mode="tokens", region_loss={"temperature": 0.1}, loss_rtc=0.3)
    config.save_pretrained(tmp_path)
    assert SPRCConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_a_head_of_its_own_asks_for_no_queries(toy_model):
    assert toy_model.config(region_mode="tokens", region_queries=8).num_query_tokens == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_mode": "boxes"}, "region_mode: expected one of qformer, tokens, value, got 'boxes'"),
        ({"region_queries": 4}, r"region_queries is 4, expected 1 to 3 \(num_query_tokens\)"),
        ({"region_queries": 0}, "region_queries is 0, expected 1 to 3"),
        ({"vision_dtype": "int8"}, "vision_dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"max_caption_tokens": 14}, "is 16, expected at least .* = 17"),
        ({"vision_config": {"image_size": [16, 32]}}, "image_size: expected one whole number .* got"),
    ],
)
def test_refuses_what_cannot_work(toy_model, changes, message):
    with pytest.raises(ValueError, match=message):
        toy_model.config(**changes)
