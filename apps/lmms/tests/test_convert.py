"""`lmms convert`."""

import logging

import pytest
import torch
from lmms.convert import convert
from lmms.verbs import ConvertSettings
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from video_autoregressive.config import VideoTokenConfig


def test_the_plain_model_comes_out(each, tmp_path, caplog):
    model = each.model()
    model.save_pretrained(tmp_path / "run/model")
    each.processor.save_pretrained(tmp_path / "run/model")
    with caplog.at_level(logging.INFO):
        convert(ConvertSettings(model=str(tmp_path / "run"), output=str(tmp_path / "plain")))
    assert not (tmp_path / "plain/autoregressive").exists()
    assert "answers about videos will differ" not in caplog.text
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "plain", output_loading_info=True)
    assert not any(info.values())
    AutoProcessor.from_pretrained(tmp_path / "plain")
    weights = load_file(tmp_path / "run/model/model.safetensors")
    for name, value in load_file(tmp_path / "plain/model.safetensors").items():
        assert torch.equal(value, weights[name]), name
    with pytest.raises(ValueError, match="holds a model; name a new folder"):
        convert(ConvertSettings(model=str(tmp_path / "run"), output=str(tmp_path / "plain")))


def test_a_layout_that_the_library_does_not_know_is_said(toy, tmp_path, caplog):
    toy.model(video_tokens=VideoTokenConfig(newline="grid")).save_pretrained(tmp_path / "model")
    toy.processor.save_pretrained(tmp_path / "model")
    convert(ConvertSettings(model=str(tmp_path / "model"), output=str(tmp_path / "plain")))
    assert "answers about videos will differ" in caplog.text
