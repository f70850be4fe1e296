"""Saving and opening: equal in the same process and in a fresh one, strict about what does not fit."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from sprc.model import SPRCModel
from transformers import AutoConfig, AutoModel

FRESH = """
import sys, torch
import sprc.model
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
batch = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    output = model(**batch)
torch.save({"loss": output.loss, "query": output.query_features}, sys.argv[3])
"""


@pytest.mark.parametrize("mode", ["qformer", "tokens"])
def test_a_saved_model_opens_equal(toy_model, tmp_path, mode):
    model = toy_model.model(region_mode=mode)
    model.temperature.value.data.fill_(0.05)
    model.region_branch.loss.scale.log_scale.data.fill_(2.0)
    model.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path)
    assert type(opened) is SPRCModel
    assert {name: value.dtype for name, value in opened.state_dict().items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
    batch = toy_model.batch()
    with torch.no_grad():
        assert torch.equal(opened(**batch).loss, model(**batch).loss)
    assert not any(value.requires_grad for value in opened.vision_tower.parameters())
    assert AutoConfig.from_pretrained(tmp_path).region_mode == mode


@pytest.mark.slow
def test_a_saved_model_opens_in_a_fresh_process(toy_model, model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    batch = toy_model.batch()
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", FRESH, tmp_path / "model", tmp_path / "batch.pt", tmp_path / "found.pt"]
    subprocess.run(command, check=True, capture_output=True)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    with torch.no_grad():
        expected = model(**batch)
    torch.testing.assert_close(found["loss"], expected.loss)
    torch.testing.assert_close(found["query"], expected.query_features)


def test_the_tower_keeps_its_own_dtype(toy_model, tmp_path):
    model = toy_model.model(vision_dtype="bfloat16")
    model.save_pretrained(tmp_path)
    opened = SPRCModel.from_pretrained(tmp_path)
    assert {value.dtype for value in opened.vision_tower.parameters()} == {torch.bfloat16}
    assert opened.composer.vision_projection.weight.dtype == torch.float32
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["composer.query_tokens.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing from the files: composer\.query_tokens\.weight"):
        SPRCModel.from_pretrained(tmp_path)


def test_another_dtype_may_be_asked_for(model, tmp_path):
    model.save_pretrained(tmp_path)
    opened = SPRCModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in opened.composer.parameters()} == {torch.bfloat16}
    assert opened.vision_tower.dtype == torch.float32
