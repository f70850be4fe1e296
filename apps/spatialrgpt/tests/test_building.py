"""Models and processors from settings: new, from pretrained parts saved at toy size, from a checkpoint."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from spatialrgpt.building import PARTS, build_config, build_model, build_processor
from spatialrgpt.config import BackboneSettings
from spatialrgpt.configuration import DEPTH_TOKEN, IMAGE_TOKEN, MASK_TOKEN
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

SIGLIP_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = {"[UNK]": 0, "</s>": 1, "how": 2, "far": 3, "<user>": 4, "<assistant>": 5}
NORMALISATION = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"


def save_tower(folder, vision: dict, *, whole: bool) -> dict[str, torch.Tensor]:
    """Save a SigLIP, whole or its vision half alone; return the weights of the vision half."""
    torch.manual_seed(5)
    (folder / "preprocessor_config.json").write_text(json.dumps(NORMALISATION))
    if not whole:
        model = AutoModel.from_config(AutoConfig.for_model(**vision))
        model.save_pretrained(folder)
        return model.state_dict()
    text = SIGLIP_TEXT | {"vocab_size": 40, "max_position_embeddings": 8}
    sizes = {key: value for key, value in vision.items() if key != "model_type"}
    model = AutoModel.from_config(AutoConfig.for_model("siglip", vision_config=sizes, text_config=text))
    model.save_pretrained(folder)
    return model.vision_model.state_dict()


def save_language_model(
    folder, *, vocabulary: int = 50, template: str | None = TEMPLATE, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Save a Llama with a vocabulary larger than its tokenizer's, as many are, and a tokenizer beside it."""
    torch.manual_seed(6)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", chat_template=template
    ).save_pretrained(folder)
    return model.state_dict()


@pytest.mark.parametrize("whole", [True, False], ids=["whole model", "vision model"])
def test_a_pretrained_tower_keeps_its_weights(toy, tmp_path, whole):
    expected = save_tower(tmp_path, dict(toy.vision), whole=whole)
    model = toy.model(vision=BackboneSettings(pretrained=str(tmp_path)))
    assert model.config.vision.model_type == "siglip_vision_model"
    found = model.vision_tower.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    assert model(**toy.batch([toy.sample((0,))])).loss.isfinite()


@pytest.mark.filterwarnings("ignore")
def test_pretrained_parts_that_lack_weights_are_refused(toy, tmp_path):  # else they would be random in silence
    for part, save in (
        ("vision", lambda folder: save_tower(folder, dict(toy.vision), whole=True)),
        ("text", save_language_model),
    ):
        folder = tmp_path / part
        folder.mkdir()
        save(folder)
        weights = load_file(folder / "model.safetensors")
        name = next(name for name in sorted(weights) if "layers.0" in name)
        del weights[name]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        settings = toy.settings(**{part: BackboneSettings(pretrained=str(folder))})
        tokenizer = build_processor(settings, texts=["how"]).tokenizer
        with pytest.raises(ValueError, match=f"missing from the files: {name}"):
            build_model(settings, tokenizer)


def test_pictures_are_normalised_as_the_pretrained_tower_knows_them(toy, tmp_path):
    save_tower(tmp_path, dict(toy.vision), whole=False)
    vision = BackboneSettings(pretrained=str(tmp_path))
    config = build_config(toy.settings(vision=vision), toy.tokenizer)
    assert {"image_mean": config.image_mean, "image_std": config.image_std} == NORMALISATION
    own = build_config(toy.settings(vision=vision, image_mean=[0.0, 0.0, 0.0]), toy.tokenizer)
    assert (own.image_mean, own.image_std) == ([0.0, 0.0, 0.0], NORMALISATION["image_std"])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config.json .*set model.image_mean and model.image_std"):
        build_config(toy.settings(vision=vision), toy.tokenizer)


def test_a_pretrained_language_model_keeps_its_weights_and_gets_the_placeholders(toy, tmp_path):
    expected = save_language_model(tmp_path, vocabulary=7)
    settings = toy.settings(text=BackboneSettings(pretrained=str(tmp_path)))
    tokenizer = build_processor(settings, texts=[]).tokenizer
    ids = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, MASK_TOKEN, DEPTH_TOKEN])
    assert ids == [6, 7, 8]
    model = build_model(settings, tokenizer)
    assert [model.config.image_token_id, model.config.mask_token_id, model.config.depth_token_id] == ids
    assert model.config.text.vocab_size == 9
    found = model.language_model.state_dict()
    for key, value in expected.items():
        assert torch.equal(found[key][: len(value)], value), key
    assert found["lm_head.weight"].shape == found["model.embed_tokens.weight"].shape == (9, 32)


def test_a_vocabulary_larger_than_the_tokenizer_stays_as_it_is(toy, tmp_path):
    save_language_model(tmp_path, vocabulary=50)
    settings = toy.settings(text=BackboneSettings(pretrained=str(tmp_path)))
    tokenizer = build_processor(settings, texts=[]).tokenizer
    assert build_model(settings, tokenizer).config.text.vocab_size == 50


def test_a_pretrained_model_composes_to_one_that_runs(toy, tmp_path):
    save_language_model(tmp_path, vocabulary=50)
    settings = toy.settings(text=BackboneSettings(pretrained=str(tmp_path)))
    processor = build_processor(settings, texts=[])
    model = build_model(settings, processor.tokenizer)
    batch = toy.batch([toy.sample((0, 0), processor=processor, words="how far", answer="far far")])
    assert model(**batch).loss.isfinite()


def test_parts_in_float16_are_trained_in_float32(toy, tmp_path):  # published configurations ask for float16
    for name in ("tower", "words"):
        (tmp_path / name).mkdir()
    vision, text = ({"pretrained": str(tmp_path / name)} for name in ("tower", "words"))
    save_tower(tmp_path / "tower", {**toy.vision, "dtype": "float16"}, whole=False)
    save_language_model(tmp_path / "words", vocabulary=50, dtype=torch.float16)
    assert AutoConfig.from_pretrained(tmp_path / "words").dtype == torch.float16
    model = toy.model(vision=BackboneSettings(**vision), text=BackboneSettings(**text))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_tokenizer_without_a_chat_template_is_refused(toy, tmp_path):
    save_language_model(tmp_path, template=None)
    with pytest.raises(ValueError, match=r"no chat template"):
        build_processor(toy.settings(text=BackboneSettings(pretrained=str(tmp_path))), texts=[])


def test_a_new_processor_makes_its_tokenizer_from_the_texts(toy, texts):
    settings = toy.settings(vocabulary_size=300)
    processor = build_processor(settings, texts)
    assert processor.tokenizer.get_vocab() == toy.tokenizer.get_vocab()
    assert (processor.image_size, processor.region_grid) == ([32, 32], [8, 8])
    assert (processor.num_image_tokens, processor.enable_depth) == (4, True)


def test_special_ids_come_from_the_tokenizer(toy):
    config = build_config(toy.settings(), toy.tokenizer)
    ids = toy.tokenizer.get_vocab()
    assert config.image_token_id == ids[IMAGE_TOKEN]
    assert config.text.vocab_size == len(toy.tokenizer)
    assert config.text.pad_token_id == toy.tokenizer.pad_token_id
    assert config.text.eos_token_id == toy.tokenizer.eos_token_id


def test_every_parameter_belongs_to_exactly_one_part(toy):
    for name, _ in toy.model(refine_depth=True).named_parameters():
        owners = [part for part, prefixes in PARTS.items() if name.startswith(prefixes)]
        assert len(owners) == 1, (name, owners)


@pytest.fixture
def checkpoint(toy, tmp_path):
    """A saved model with a tokenizer, its vocabulary larger than the tokenizer's."""
    save_language_model(tmp_path / "text", vocabulary=50)
    settings = toy.settings(text=BackboneSettings(pretrained=str(tmp_path / "text")), enable_region_heads=False)
    processor = build_processor(settings, texts=[])
    torch.manual_seed(1)
    model = build_model(settings, processor.tokenizer)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return str(tmp_path / "saved"), model, processor


def test_a_checkpoint_gives_its_weights_and_its_tokenizer(toy, checkpoint):
    path, model, processor = checkpoint
    settings = toy.settings(
        vision=BackboneSettings(), text=BackboneSettings(), checkpoint=path, enable_region_heads=False
    )
    again = build_processor(settings, texts=[])
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    loaded = build_model(settings, again.tokenizer)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_checkpoint_stands_above_the_parts_it_was_made_from(toy, checkpoint, tmp_path):
    path, model, processor = checkpoint
    (tmp_path / "tower").mkdir()
    save_tower(tmp_path / "tower", dict(toy.vision), whole=False)
    settings = toy.settings(
        vision=BackboneSettings(pretrained=str(tmp_path / "tower")),
        text=BackboneSettings(pretrained=str(tmp_path / "text")),
        checkpoint=path,
        enable_region_heads=False,
    )
    loaded = build_model(settings, processor.tokenizer)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_switches_add_to_a_checkpoint_what_it_lacks(toy, checkpoint, caplog):
    path, model, processor = checkpoint
    settings = toy.settings(vision=BackboneSettings(), text=BackboneSettings(), checkpoint=path)
    loaded = build_model(settings, processor.tokenizer)
    assert "does not hold exactly this model" in caplog.text
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert loaded.region_heads is not None
