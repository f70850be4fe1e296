"""Saving and opening: equal in the same process and in a fresh one, strict about what does not fit."""

import subprocess
import sys

import pytest
import torch
from psalm.model import PSALMModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

FRESH = """
import sys, torch
from psalm.loading import load_model
torch.set_num_threads(1)
model, processor = load_model(sys.argv[1], "cpu")
batch = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    output = model(**batch)
ids = processor.encode("panoptic", ["sky", "background"], where="test").input_ids
torch.save({"masks": output.mask_logits, "conditions": output.condition_logits, "ids": ids}, sys.argv[3])
"""


def changed(model: PSALMModel) -> PSALMModel:
    """Move every weight away from what a new model has, which may hide that it was made afresh."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(std=0.1)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"projector_type": "swin_conv"},
        {"fpn_variant": "psalm", "region_geometry": False, "region_levels": False, "mask_places": False},
    ],
    ids=["deformable", "swin_conv", "psalm"],
)
def test_a_saved_model_opens_equal(toy, tmp_path, changes):
    model = changed(toy.model(**changes))
    model.save_pretrained(tmp_path)
    opened = AutoModel.from_pretrained(tmp_path)
    assert type(opened) is PSALMModel
    assert opened.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
    batch = toy.batch(with_targets=False, **changes)
    with torch.no_grad():
        assert torch.equal(opened.eval()(**batch).mask_logits, model(**batch).mask_logits)
    fixed = [{key for key, value in one.named_parameters() if not value.requires_grad} for one in (model, opened)]
    assert fixed[0] == fixed[1]


def test_a_new_model_that_is_saved_keeps_its_zero_residuals(toy, tmp_path):
    toy.model().save_pretrained(tmp_path)
    opened = PSALMModel.from_pretrained(tmp_path)
    assert not opened.projector.align.out_proj.weight.any()
    assert not opened.projector.align.sampling_offsets.weight.any()
    assert opened.projector.align.sampling_offsets.bias.any()


def test_a_new_model_has_no_weight_that_nobody_initialised(toy):
    """Modules of the library that are no models of their own must not stay as torch or the meta device left them."""
    first, second, other = toy.model(seed=1), toy.model(seed=1), toy.model(seed=2)
    weights, again, others = (one.state_dict() for one in (first, second, other))
    assert all(value.isfinite().all() for value in weights.values())
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    random = [name for name, value in weights.items() if not torch.equal(value, others[name])]
    for name in (
        "mask_decoder.level_embed.weight",
        "mask_decoder.queries_embedder.weight",
        "pixel_decoder.decoder.level_embed",
        "mask_queries.weight",
        "query_projector.weight",
        "condition_heads.class_name_projector.weight",
        "language_model.model.embed_tokens.weight",
    ):
        assert name in random


def test_new_parts_have_the_spread_of_their_width(toy):
    """A narrow model with the 0.02 of wide ones would hardly see its input."""
    weights = toy.model().state_dict()
    assert weights["language_model.model.layers.0.mlp.fc1.weight"].std().item() == pytest.approx(32**-0.5, rel=0.1)
    name = "vision_tower.swin.encoder.layers.3.blocks.0.mlp.fc1.weight"
    assert weights[name].std().item() == pytest.approx(64**-0.5, rel=0.1)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_tied_embeddings_open_tied(toy, tmp_path, model_type):
    language = {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    model = changed(toy.model(language=language))
    model.save_pretrained(tmp_path)
    opened = PSALMModel.from_pretrained(tmp_path).eval()
    embeddings = opened.get_input_embeddings().weight
    assert opened.language_model.lm_head.weight is embeddings
    assert embeddings.requires_grad
    batch = toy.batch(with_targets=False, language=language)
    with torch.no_grad():
        assert torch.equal(opened(**batch).mask_logits, model(**batch).mask_logits)


@pytest.mark.slow
def test_a_saved_model_opens_in_a_fresh_process(toy, tmp_path):
    model, processor = changed(toy.model()), toy.processor()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    batch = toy.batch(with_targets=False)
    batch.pop("record_ids")
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", FRESH, tmp_path / "model", tmp_path / "batch.pt", tmp_path / "found.pt"]
    subprocess.run(command, check=True, capture_output=True)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    with torch.no_grad():
        expected = model(**batch)
    torch.testing.assert_close(found["masks"], expected.mask_logits)
    torch.testing.assert_close(found["conditions"], expected.condition_logits)
    assert torch.equal(found["ids"], processor.encode("panoptic", ["sky", "background"], where="test").input_ids)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_do_not_fit_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["mask_queries.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing from the files: mask_queries\.weight"):
        PSALMModel.from_pretrained(tmp_path)
