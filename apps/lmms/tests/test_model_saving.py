"""Saved folders: plain transformers opens them, ours come back to the bit, and what does not fit is an error."""

import json

import pytest
import torch
from lmms.building import build_model
from lmms.model import VideoLMM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor
from video_autoregressive.config import VideoTokenConfig

OWN = "autoregressive/model.safetensors"


def inputs_of(toy) -> dict:
    return toy.batch([toy.sample((3,)), toy.sample((3,), seed=1)])


@torch.no_grad()
def test_the_folder_opens_in_plain_transformers_with_the_same_logits(each, tmp_path):
    model = each.model(frozen_parts=())
    model.save_pretrained(tmp_path)
    each.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == each.model_type
    assert "auto_map" not in config
    plain, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    assert [type(plain).__name__] == config["architectures"]
    assert type(plain).__module__.startswith("transformers.")
    batch = inputs_of(each)
    found = model(batch["input_ids"], batch["attention_mask"], visuals=batch["visuals"]).logits
    expected = plain.eval()(**theirs(each, model, batch)).logits
    true = batch["attention_mask"].bool()
    torch.testing.assert_close(found[true], expected[true], rtol=1e-5, atol=1e-5)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(each.processor)


def theirs(each, model, batch: dict) -> dict:
    """The library's own arguments for the videos of a batch."""
    visuals, given = batch["visuals"], {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if each.model_type == "llava_onevision":
        frames = model.backbone.normalise(visuals["video_frames"], 1, torch.float32)
        return given | {"pixel_values_videos": frames.unflatten(0, (2, 3))}
    pixels = model.backbone._pixels(visuals["pixel_values_videos"], torch.float32)
    types = 2 * (batch["input_ids"] == model.config.lmm.video_token_id).int()
    return given | {**visuals, "pixel_values_videos": pixels, "mm_token_type_ids": types}


@pytest.mark.parametrize("frozen", [("vision_tower",), ()], ids=["shared", "snapshot"])
def test_a_saved_model_comes_back_to_the_bit(each, tmp_path, frozen):
    model = each.model(frozen_parts=frozen, main_loss_weight=0.5)
    model.save_pretrained(tmp_path)
    teacher = model.autoregressive_module.teacher if not frozen else None
    again = VideoLMM.from_pretrained(tmp_path, teacher=teacher)
    assert again.config.teacher["kind"] == model.config.teacher["kind"]
    batch = each.batch(each.mixed())
    with torch.no_grad():
        assert torch.equal(again(**batch).loss, model(**batch).loss)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, expected[name]), name
    stored = load_file(tmp_path / OWN)
    assert set(stored) == {name for name in expected if not name.startswith("lmm.")}


def test_without_the_first_weights_of_a_trained_tower_there_is_no_reconstruction_loss(toy, tmp_path):
    toy.model(frozen_parts=()).save_pretrained(tmp_path)
    again, batch = VideoLMM.from_pretrained(tmp_path), toy.batch(toy.mixed())
    assert not again.computes_autoregressive_loss
    output = again(**batch)
    assert list(output.losses) == ["main"]
    assert output.autoregressive is None
    with pytest.raises(ValueError, match="its teacher's weights are not known"):
        again.encode_frames(batch["visuals"])


def test_the_learned_faster_token_is_ours(toy, tmp_path):
    changes = {"video_tokens": VideoTokenConfig(newline="grid", faster_stride=2)}
    model = toy.model(**changes)
    model.save_pretrained(tmp_path)
    assert "lmm.model.faster_token" in load_file(tmp_path / OWN)
    assert not any("faster" in name for name in load_file(tmp_path / "model.safetensors"))
    again = VideoLMM.from_pretrained(tmp_path)
    assert again.config.tokens == changes["video_tokens"]
    assert torch.equal(again.lmm.model.faster_token, model.lmm.model.faster_token)
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


def test_a_plain_folder_gets_a_new_module(toy, tmp_path):
    model = toy.model(enable_autoregressive=False)
    model.save_plain(tmp_path)
    toy.processor.save_pretrained(tmp_path)
    assert not (tmp_path / "autoregressive").exists()
    settings = toy.settings(config=None, pretrained=str(tmp_path))
    grown = build_model(settings, toy.processor, frozen_parts=["vision_tower"])
    assert grown.config.teacher["source"] == str(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(grown.state_dict()[name], value), name
    assert grown.train()(**toy.batch(toy.mixed())).autoregressive.num_targets > 0


def test_training_goes_on_with_the_module_of_a_folder(toy, tmp_path):
    model = toy.model()
    model.save_pretrained(tmp_path)
    settings = toy.settings(config=None, pretrained=str(tmp_path))
    again = build_model(settings, toy.processor, frozen_parts=["vision_tower"])
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("part", ["model.safetensors", OWN])
def test_weights_that_do_not_fit_are_an_error(toy, tmp_path, part):
    toy.model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / part)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, tmp_path / part, {"format": "pt"})
    with pytest.raises(ValueError, match="weights and configuration do not match"):
        VideoLMM.from_pretrained(tmp_path)
    save_file({**weights, "stray": torch.zeros(1)}, tmp_path / part, {"format": "pt"})
    with pytest.raises(ValueError, match="stray"):
        VideoLMM.from_pretrained(tmp_path)


def test_unknown_keys_of_our_configuration_are_an_error(toy, tmp_path):
    toy.model().save_pretrained(tmp_path)
    path = tmp_path / "autoregressive/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lossweight": 1}))
    with pytest.raises(ValueError, match=r"unknown keys lossweight; known are video_tokens"):
        VideoLMM.from_pretrained(tmp_path)
