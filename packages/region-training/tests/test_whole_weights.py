from region_training.loading import whole_weights
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled


def test_parts_are_opened_whole_under_zero3_and_the_settings_come_back():
    settings = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert is_deepspeed_zero3_enabled()
    with whole_weights():
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled()
    del settings
    assert not is_deepspeed_zero3_enabled()
