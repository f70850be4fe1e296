"""The library's arguments become the engine's settings, and what is not read is named."""

import logging

import pytest
from lmms.hf_arguments import READ, SETTLED, settings_of, without_effect
from region_training.settings import ConfigError
from transformers import TrainingArguments


def arguments(tmp_path, **values: object) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **values)


def test_arguments_become_settings(tmp_path):
    args = arguments(tmp_path, learning_rate=3e-4, num_train_epochs=2, warmup_steps=5, seed=7, save_strategy="no")
    settings = settings_of(args, ["vision_tower"])
    assert (settings.learning_rate, settings.num_epochs, settings.warmup, settings.seed) == (3e-4, 2.0, 5.0, 7)
    assert (settings.frozen_parts, settings.device, settings.save_every) == (["vision_tower"], "cpu", 0)


def test_what_is_not_read_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        settings_of(arguments(tmp_path), [])
        assert not caplog.records
        settings_of(arguments(tmp_path, label_smoothing_factor=0.1, hub_token="secret", save_strategy="epoch"), [])
    (record,) = caplog.records
    assert record.message.endswith(": label_smoothing_factor, hub_token, save_strategy")


def test_every_name_is_an_argument_of_the_library(tmp_path):
    known = set(vars(arguments(tmp_path)))
    assert not without_effect(arguments(tmp_path))
    assert READ - {"activation_checkpointing", "gradient_checkpointing"} <= known
    assert known & {"activation_checkpointing", "gradient_checkpointing"}
    assert known >= SETTLED


def test_what_the_engine_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lr_scheduler_type: got 'polynomial'"):
        settings_of(arguments(tmp_path, lr_scheduler_type="polynomial"), [])
    with pytest.raises(ConfigError, match="deepspeed: got a dict"):
        settings_of(arguments(tmp_path, deepspeed={"zero_optimization": {"stage": 0}, "train_batch_size": "auto"}), [])
