import json

import pytest
from region_training.deepspeed_presets import deepspeed_config
from region_training.settings import ConfigError, TrainingSettings


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_preset_for_every_stage(stage):
    config = deepspeed_config(TrainingSettings(zero_stage=stage))
    assert config["zero_optimization"]["stage"] == stage
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_clipping",
        "gradient_accumulation_steps",
    ):
        assert config[key] == "auto"
    # Sizes are numbers: "auto" would ask the model's config for a hidden_size.
    assert "auto" not in config["zero_optimization"].values()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "could not be read as JSON"),
        ("[]", "is no DeepSpeed configuration"),
        ('{"zero_optimization": {"stage": 1}}', r"got 2, but .* sets zero_optimization\.stage to 1"),
        ('{"zero_optimization": {"stage": 2}, "optimizer": {}}', "its own 'optimizer' or 'scheduler'"),
    ],
)
def test_a_file_that_cannot_work_is_refused(tmp_path, content, message):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        deepspeed_config(TrainingSettings(deepspeed_config=str(path)))


def test_a_file_replaces_the_preset_but_not_the_clipping(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    config = deepspeed_config(TrainingSettings(deepspeed_config=str(path)))
    assert config == {"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}
