"""From settings to a model: new, from BLIP-2's Hugging Face layout, from an SPRC folder."""

from dataclasses import replace

import pytest
import torch
from region_training.parts import ModelParts
from region_training.settings import TrainingSettings
from roi_region_loss.config import RegionLossConfig
from sprc.building import PARTS, build_config, build_model, build_tokenizer, with_tower_dtype
from sprc.config import ModelSettings
from sprc.tokenizer import train_tokenizer
from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

CAPTIONS = ["make the red circle blue", "remove the green square"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 60)


@pytest.fixture(scope="module")
def settings(toy_model) -> ModelSettings:
    qformer = {key: value for key, value in toy_model.qformer.items() if key != "vocab_size"}
    return ModelSettings(
        vision=dict(toy_model.vision),
        qformer=qformer,
        vocabulary_size=60,
        num_query_tokens=3,
        region_queries=3,
        image_text_hidden_size=8,
        max_caption_tokens=6,
        use_region_loss=True,
    )


@pytest.fixture(scope="module")
def blip2(toy_model, tokenizer, tmp_path_factory):
    """A BLIP-2 retrieval model of toy size, and the folder that it was saved to."""
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**toy_model.vision, initializer_range=0.02),
        qformer_config=Blip2QFormerConfig(
            **{**toy_model.qformer, "vocab_size": len(tokenizer), "use_qformer_text_input": True}
        ),
        num_query_tokens=3,
        image_text_hidden_size=8,
    )
    torch.manual_seed(1)
    model = Blip2ForImageTextRetrieval(config).eval()
    torch.nn.init.normal_(model.query_tokens)
    torch.nn.init.normal_(model.vision_model.post_layernorm.bias)
    folder = tmp_path_factory.mktemp("blip2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, folder


def from_folder(settings: ModelSettings, **changes) -> ModelSettings:
    return replace(settings, vision=None, qformer=None, **changes)


def test_a_new_model_takes_its_vocabulary_from_the_tokenizer(settings):
    tokenizer = build_tokenizer(settings, CAPTIONS)
    model = build_model(settings, tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.config.qformer.pad_token_id == tokenizer.pad_token_id
    assert model.config.max_caption_tokens == 6


def test_settings_of_the_losses_reach_the_model(settings, tokenizer):
    region_loss = RegionLossConfig(temperature=0.2)
    changed = replace(
        settings, region_mode="tokens", region_loss=region_loss, loss_rtc=0.1, loss_align=0.2, loss_region=0.3
    )
    config = build_config(changed, tokenizer)
    assert (config.region_mode, config.region, config.use_region_loss) == ("tokens", region_loss, True)
    assert (config.loss_itc, config.loss_rtc, config.loss_align, config.loss_region) == (1.0, 0.1, 0.2, 0.3)


def test_blip2_gives_its_features(settings, blip2, toy_model):
    """The same image features as BLIP-2's own contrastive head, from the same folder."""
    source, folder = blip2
    wanted = from_folder(settings, blip2=str(folder))
    model = build_model(wanted, build_tokenizer(wanted, ())).eval()
    batch = toy_model.batch(owners=None)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in model.config.normalisation)
    with torch.no_grad():
        expected = source(
            pixel_values=(batch["target_images"] / 255 - mean) / std,
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
        ).image_embeds
        found = model.encode_targets(model.image_tokens(batch["target_images"]))
    # The norm behind the tower has another epsilon here (LAVIS').
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert model.temperature.value.item() == pytest.approx(0.07)
    assert model.composer.prompt_tokens.weight.std() > 0


def test_a_blip2_model_without_retrieval_parts_is_refused(settings, blip2, tmp_path):
    source, _ = blip2
    state = {name: value for name, value in source.state_dict().items() if not name.startswith("text_projection")}
    source.save_pretrained(tmp_path, state_dict=state)
    build_tokenizer(settings, CAPTIONS).save_pretrained(tmp_path)
    wanted = from_folder(settings, blip2=str(tmp_path))
    with pytest.raises(ValueError, match=r"no BLIP-2 retrieval model .*missing from the files: text_projection.bias"):
        build_model(wanted, build_tokenizer(wanted, ()))


def test_a_checkpoint_goes_on_with_its_weights(settings, tokenizer, tmp_path):
    torch.manual_seed(2)
    first = build_model(settings, tokenizer)
    first.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    wanted = from_folder(settings, checkpoint=str(tmp_path), loss_region=0.1)
    second = build_model(wanted, build_tokenizer(wanted, ()))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert second.config.loss_region == 0.1


def test_a_checkpoint_may_change_its_region_mode(settings, tokenizer, tmp_path, caplog):
    build_model(settings, tokenizer).save_pretrained(tmp_path)
    wanted = from_folder(settings, checkpoint=str(tmp_path), region_mode="tokens")
    assert build_model(wanted, tokenizer).region_branch.head is not None
    assert "missing      region_branch.head.0.weight" in caplog.text


def test_a_checkpoint_of_another_model_is_refused(settings, tokenizer, tmp_path):
    model = build_model(settings, tokenizer)
    state = {name: value for name, value in model.state_dict().items() if name != "temperature.value"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"missing      temperature.value"):
        build_model(from_folder(settings, checkpoint=str(tmp_path)), tokenizer)


def test_free_keys_of_a_part_may_be_set_over_a_checkpoint(settings, tokenizer, tmp_path):
    build_model(settings, tokenizer).save_pretrained(tmp_path)
    wanted = from_folder(settings, checkpoint=str(tmp_path))
    wanted = replace(wanted, qformer={"hidden_dropout_prob": 0.3, "hidden_size": 16})
    assert build_config(wanted, tokenizer).qformer.hidden_dropout_prob == 0.3
    with pytest.raises(ValueError, match=r"model.qformer .*: hidden_size is 16 in the pretrained model, got 32"):
        build_config(replace(wanted, qformer={"hidden_size": 32}), tokenizer)


def test_a_region_has_no_more_queries_than_the_pretrained_model(settings, blip2, tokenizer):
    _, folder = blip2
    assert build_config(from_folder(settings, blip2=str(folder), region_queries=2), tokenizer).region_queries == 2
    with pytest.raises(ValueError, match=r"region_queries is 8, expected 1 to 3 \(num_query_tokens\)"):
        build_config(from_folder(settings, blip2=str(folder), region_queries=8), tokenizer)


def test_how_images_are_read_needs_no_tokenizer(settings, blip2, tokenizer):
    _, folder = blip2
    for wanted in (settings, from_folder(settings, blip2=str(folder))):
        with_words, without = build_config(wanted, tokenizer), build_config(wanted, None)
        assert (without.grid, without.image_size, without.region) == (
            *(with_words.grid, with_words.image_size, with_words.region),
        )


def test_the_tower_of_a_new_model_may_have_another_dtype(settings, tokenizer):
    model = build_model(replace(settings, vision={**settings.vision, "dtype": "bfloat16"}), tokenizer)
    assert model.vision_tower.dtype == torch.bfloat16
    assert model.ln_vision.weight.dtype == torch.float32


def test_training_in_bf16_settles_the_type_of_the_tower(settings, caplog):
    assert with_tower_dtype(settings, "fp32") is settings
    assert with_tower_dtype(settings, "bf16").vision == {**settings.vision, "dtype": "bfloat16"}
    pretrained = from_folder(settings, blip2="somewhere")
    assert with_tower_dtype(pretrained, "bf16").vision == {"dtype": "bfloat16"}
    assert caplog.text == ""
    told = replace(settings, vision={**settings.vision, "dtype": "float16"})
    assert with_tower_dtype(told, "bf16").vision["dtype"] == "bfloat16"
    assert "model.vision.dtype 'float16' has no effect" in caplog.text
    assert with_tower_dtype(told, "fp32") is told


def test_misspelt_keys_are_refused(settings, tokenizer):
    with pytest.raises(ValueError, match=r"model.vision: unknown keys hiden_size; Blip2VisionConfig has"):
        build_config(replace(settings, vision={"hiden_size": 16}), tokenizer)


def test_a_tokenizer_with_more_words_than_the_model_is_refused(settings, tokenizer, tmp_path):
    build_model(settings, tokenizer).save_pretrained(tmp_path)
    larger = train_tokenizer([*CAPTIONS, "zebra xylophone quiz"], 90)
    with pytest.raises(ValueError, match=f"has {len(tokenizer)} word embeddings, the tokenizer {len(larger)} tokens"):
        build_config(from_folder(settings, checkpoint=str(tmp_path)), larger)


@pytest.mark.parametrize("mode", ["qformer", "tokens", "value"])
def test_every_parameter_belongs_to_one_part(settings, tokenizer, mode):
    model = build_model(replace(settings, region_mode=mode), tokenizer)
    parts = ModelParts(model, prefixes=PARTS, settings=TrainingSettings(frozen_parts=["vision_tower"]))
    rows = {row.name: row for row in parts.rows()}
    assert not rows["vision_tower"].trainable
    assert all(row.num_trained == row.num_parameters for name, row in rows.items() if name != "vision_tower")
