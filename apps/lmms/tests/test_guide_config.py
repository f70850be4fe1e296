"""The guide's YAML lists: every key sets what it says, is named as without effect, or is an error."""

from pathlib import Path

import pytest
from lmms.cli import APPLICATION
from lmms.config import Settings
from lmms.guide_config import DATA_KEYS, EXTRA_KEYS, MODEL_KEYS, PROCESSOR_KEYS, TRAINING_KEYS, translate_config
from region_training.command_line import resolve_settings
from region_training.config_tree import options_of, section_keys
from region_training.settings import ConfigError

BASIC = """
- type: trainer
  config:
    trainer_type: autoregressive_trainer
    model_config:
      enable_autoregressive: true
      autoregressive_config:
        embedding_dim: 1152
        loss_weight: 0.1
        use_frame_causal_mask: true
    output_dir: "./output/basic_autoregressive"
    per_device_train_batch_size: 2
"""
FULL = """
- type: trainer
  config:
    trainer_type: autoregressive_trainer
    model_config:
      load_from_pretrained_path: some/model
      enable_autoregressive: true
      autoregressive_config:
        embedding_dim: 1152
        num_hist: 3
        loss_weight: 0.1
        num_heads: 8
        num_layers: 3
        use_frame_causal_mask: true
        enable_multiscale_pooling: true
        mm_spatial_pool_stride: 2
        mm_spatial_pool_mode: "average"
        add_faster_video: true
    dataset_config:
      dataset_format: parquet
      datasets:
        - {path: "a/*.parquet", data_folder: /videos, data_type: parquet}
        - {path: b.json, data_folder: /videos}
      processor_config:
        processor_name: some/model
        processor_type: llava_onevision
        extra_kwargs: {frames_upbound: 16, add_time_instruction: true}
      video_sampling_strategy: frame_num
      video_backend: decord
      packing: true
      packing_length: 4096
    output_dir: "./output/llava_next_style"
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 8
    num_train_epochs: 3
    learning_rate: 2.0e-5
    bf16: true
    logging_steps: 10
    save_steps: 500
    freeze_modules: [visual]
    deepspeed: zero3.json
    report_to: none
"""


def settings_of(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "guide.yaml"
    path.write_text(text, encoding="utf-8")
    settings = resolve_settings(APPLICATION, "train", ["--config", str(path)])
    assert isinstance(settings, Settings)
    return settings


def test_the_guides_first_file(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BASIC)
    assert settings.model.enable_autoregressive
    assert settings.model.autoregressive_config.loss_weight == 0.1
    assert settings.run_dir == "./output/basic_autoregressive"
    assert settings.training.micro_batch_size == 2


def test_the_guides_full_file_with_a_data_section(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(tmp_path, FULL)
    assert settings.model.autoregressive_config.stream == "slowfast_pool"
    assert settings.model.autoregressive_config.scales == (1, 2)
    assert settings.model.pretrained == settings.model.tokenizer == "some/model"
    data, training = settings.data, settings.training
    assert (data.root, data.train_files) == ("/videos", ["a/*.parquet", "b.json"])
    assert (data.max_frames, data.sampling, data.backend, data.time_instruction) == (16, "uniform", "decord", True)
    assert (data.packing, data.max_length) == (True, 4096)
    assert (training.precision, training.frozen_parts, training.report_to) == ("bf16", ["vision_tower"], [])
    assert (training.deepspeed_config, training.gradient_accumulation_steps) == ("zero3.json", 8)
    assert "dataset_format is known from the guide" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("loss_weight: 0.1", "loss_weigth: 0.1", "loss_weight"),
        ("output_dir:", "output_dri:", "did you mean 'output_dir'"),
        ("type: trainer", "type: pipeline", "0 of them of type trainer"),
        ("autoregressive_trainer", "dpo_trainer", "trainer_type is 'dpo_trainer'"),
        ("enable_autoregressive: true", "overwrite_config: {a: 1}", "overwrite_config"),
        ("per_device_train_batch_size: 2", "fp16: true", "fp16"),
        ("per_device_train_batch_size: 2", "freeze_modules: [vsion]", "unknown \\['vsion'\\]"),
        ("per_device_train_batch_size: 2", "dataset_config: {datasets: [{data_folder: x}]}", "needs a path"),
        ("per_device_train_batch_size: 2", "dataset_config: {video_sampling_strategy: random}", "random"),
    ],
)
def test_a_mistake_is_an_error_that_names_it(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(tmp_path, BASIC.replace(old, new, 1))


def test_two_keys_that_set_the_same_must_agree() -> None:
    data = {"frame_num": 8, "processor_config": {"extra_kwargs": {"frames_upbound": 16}}}
    with pytest.raises(ConfigError, match=r"data.max_frames to 8"):
        translate_config([{"type": "trainer", "config": {"dataset_config": data}}], "file")


def test_every_target_is_a_setting() -> None:
    known = {*options_of(Settings), *section_keys(Settings)}
    for table in (TRAINING_KEYS, MODEL_KEYS, DATA_KEYS, PROCESSOR_KEYS, EXTRA_KEYS):
        assert {key for key in table.values() if key is not None} <= known


def test_a_list_that_holds_more_than_one_trainer_is_refused() -> None:
    trainer = {"type": "trainer", "config": {}}
    with pytest.raises(ConfigError, match="got 2 entries"):
        translate_config([trainer, trainer], "file")


def test_the_guides_trainer_without_its_switch_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = BASIC.replace("enable_autoregressive: true", "load_from_pretrained_path: x")
    assert not settings_of(tmp_path, text).model.enable_autoregressive
    assert "autoregressive_trainer without model_config.enable_autoregressive" in caplog.text
