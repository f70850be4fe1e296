"""Models and processors from settings: new, with pretrained parts saved at toy size, from a checkpoint."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from deformable_projector import DeformableProjector
from deformable_projector.config import DeformableProjectorConfig
from psalm.building import PARTS, build_config, build_model, build_processor, parts_of
from psalm.cli import APPLICATION
from psalm.collate import SegmentationCollator
from psalm.config import CriterionConfig, Settings
from psalm.model import PSALMModel
from psalm.tokenizer import PLACEHOLDERS
from psalm.untrained import fresh_model
from region_training.command_line import resolve_settings
from region_training.parts import ModelParts
from region_training.settings import TrainingSettings
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

WORDS = {"[UNK]": 0, "</s>": 1, "red": 2, "square": 3}


def save_language_model(
    folder, *, vocabulary: int, model_type: str = "phi", tied: bool = False, dtype: torch.dtype = torch.float32
):
    """Save a language model and a word-level tokenizer of 4 words beside it; return the model's weights."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(6)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>").save_pretrained(folder)
    return model.state_dict()


def save_run(toy, folder, **changes: object):
    """Save a toy model whose weights are all moved, with its processor; return the model."""
    model = toy.model(**changes)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    toy.processor(**changes).save_pretrained(folder)
    return model


def build(toy, **changes: object):
    settings = toy.settings(**changes)
    processor = build_processor(settings, toy.data_settings(), [])
    return build_model(settings, processor).eval(), processor


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({}, set()),
        ({"projector_type": "swin_conv"}, {"sampling_offsets"}),
        ({"region_geometry": False, "region_levels": False}, {"region_embedder"}),
        ({"mask_places": False}, {"place_embedder"}),
        (
            {
                "language": {
                    "model_type": "qwen2",
                    "hidden_size": 32,
                    "num_attention_heads": 4,
                    "intermediate_size": 48,
                    "num_key_value_heads": 2,
                    "num_hidden_layers": 1,
                    "tie_word_embeddings": True,
                }
            },
            {"language_head"},
        ),
    ],
    ids=["all", "swin_conv", "no geometry", "no places", "tied"],
)
def test_every_parameter_belongs_to_exactly_one_part(toy, changes, absent):
    model = toy.model(**changes)
    parts = parts_of(model.config)
    assert set(PARTS) - set(parts) == absent
    frozen = [part for part in ("vision_tower", "language_head") if part in parts]
    rates = {"sampling_offsets": 1e-5} if "sampling_offsets" in parts else {}
    settings = TrainingSettings(frozen_parts=frozen, learning_rate=1e-4, part_learning_rates=rates)
    table = {row.name: row for row in ModelParts(model, prefixes=parts, settings=settings).rows()}
    assert {name for name, row in table.items() if not row.trainable} == set(frozen)
    if "sampling_offsets" in parts:
        # Two heads of two points on four levels, two numbers each, from 16 hidden values.
        assert table["sampling_offsets"].num_parameters == 2 * 2 * 4 * 2 * (16 + 1)
        assert table["sampling_offsets"].learning_rate == 1e-5
    # Of a part that is trained, only what no loss reaches stays fixed.
    assert all(row.num_trained == row.num_parameters for row in table.values() if row.trainable)


def test_a_trained_backbone_keeps_its_last_norm_fixed(toy):
    model = toy.model()
    settings = TrainingSettings(frozen_parts=["language_head"])
    table = {row.name: row for row in ModelParts(model, prefixes=parts_of(model.config), settings=settings).rows()}
    # 64 channels with weight and bias.
    assert table["vision_tower"].num_parameters - table["vision_tower"].num_trained == 2 * 64


def test_a_frozen_backbone_is_in_evaluation_mode_and_makes_no_graph(toy):  # upstream leaves DropPath on
    model = toy.model(swin={**toy.settings().swin, "drop_path_rate": 0.5})
    settings = TrainingSettings(frozen_parts=["vision_tower", "language_head"])
    parts = ModelParts(model, prefixes=parts_of(model.config), settings=settings)
    model.train()
    parts.hold_frozen()
    assert not any(module.training for module in model.vision_tower.modules())
    assert model.projector.training
    images = toy.batch()["images"]
    first, second = model._see(images), model._see(images)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert not any(level.requires_grad for level in first)


def test_a_new_processor_and_model_fit_each_other(toy):
    processor = build_processor(toy.settings(), toy.data_settings(), [*toy.names, *toy.sentences])
    model = build_model(toy.settings(), processor)
    assert model.config.language.vocab_size == len(processor.tokenizer)
    ids = processor.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS))
    config = model.config
    assert ids == [
        config.image_token_id,
        config.seg_token_id,
        config.region_token_id,
        config.aligned_token_id,
        config.query_token_id,
    ]
    assert processor.num_image_tokens == config.num_image_tokens == 4


def test_without_sampling_the_directions_are_left_out_and_it_is_said(toy, caplog):
    with caplog.at_level(logging.INFO, logger="psalm.building"):
        config = toy.config(projector_type="swin_conv")
    assert config.directions == ()
    assert "target_to_reference and reference_to_target left out" in caplog.text


@pytest.mark.parametrize("vocabulary", [50, 4], ids=["more rows than tokens", "as many rows as words"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_pretrained_language_model_keeps_its_weights(toy, tmp_path, vocabulary, tied):
    expected = save_language_model(tmp_path, vocabulary=vocabulary, tied=tied)
    model, processor = build(toy, language_model=str(tmp_path), language=None)
    # 4 words and 5 placeholders; more rows than tokens, as Phi has, are never cut.
    assert len(processor.tokenizer) == 9
    assert model.config.language.vocab_size == max(vocabulary, 9)
    found = model.language_model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key][: len(value)], value), key
    batch = SegmentationCollator(processor, toy.settings())(toy.samples())
    assert model(**batch).loss.isfinite()


def test_a_language_model_in_float16_is_trained_in_float32(toy, tmp_path):  # microsoft/phi-1_5 asks for float16
    expected = save_language_model(tmp_path, vocabulary=50, dtype=torch.float16)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.float16
    model, _ = build(toy, language_model=str(tmp_path), language=None)
    found = model.language_model.state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in expected.items())
    model.save_pretrained(tmp_path / "saved")
    for one in (model, fresh_model(model), PSALMModel.from_pretrained(tmp_path / "saved")):
        assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")
def test_a_language_model_that_lacks_weights_is_refused(toy, tmp_path):  # q/k/v silently random upstream
    weights = save_language_model(tmp_path, vocabulary=50)
    weights.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing from the files: model\.layers\.0\.self_attn\.q_proj\.weight"):
        build(toy, language_model=str(tmp_path), language=None)


def test_another_width_than_the_language_models_is_refused(toy, tmp_path):
    save_language_model(tmp_path, vocabulary=50)
    with pytest.raises(ValueError, match=r"--projector_outdim\) is 2560"):
        build(toy, language_model=str(tmp_path), language=None, projector_outdim=2560)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swin": {"embed_dims": 8}}, "model.swin: unknown keys embed_dims"),
        ({"mask_decoder": {"dim": 8}}, "model.mask_decoder: unknown keys dim"),
        ({"language": {"model_type": "llama", "hiden_size": 8}}, "model.language: unknown keys hiden_size"),
        ({"language": {"model_type": "phi1"}}, "model.language.model_type: got 'phi1'"),
        ({"language": {"model_type": "phi", "vocab_size": 10}}, "model.language.vocab_size is 10, the tokenizer has"),
    ],
)
def test_misspelt_keys_are_refused(toy, changes, message):
    with pytest.raises(ValueError, match=message):
        toy.config(**changes)


def test_a_checkpoint_opens_with_its_own_shapes_and_the_settings_that_are_none(toy, tmp_path):
    saved = save_run(toy, tmp_path)
    settings = replace(
        toy.settings(checkpoint=str(tmp_path), criterion=CriterionConfig(no_object_weight=0.3), swin=None),
        language=None,
        mask_decoder=None,
        num_mask_queries=100,
    )
    processor = build_processor(settings, toy.data_settings(), [])
    model = build_model(settings, processor).eval()
    assert processor.num_queries == model.config.num_mask_queries == 6
    assert model.config.criterion.no_object_weight == 0.3
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in saved.state_dict().items())


def test_a_baseline_checkpoint_gains_the_residual_and_stays_what_it_was(toy, tmp_path, caplog):
    saved = save_run(toy, tmp_path, projector_type="swin_conv").eval()
    model, processor = build(toy, checkpoint=str(tmp_path), cross_image=[])
    assert "projector.align." in caplog.text  # said, not silent
    with torch.no_grad():
        expected = saved(**toy.batch(projector_type="swin_conv"))
        found = model(**toy.batch(cross_image=[]))
    assert torch.equal(found.mask_logits, expected.mask_logits)
    assert processor.aligned_modes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swin_type": "large"}, "--swin_type: got 'large', the checkpoint has 'embed_dim 8'"),
        ({"num_mask_queries": 7}, "--model.num_mask_queries: got 7, the checkpoint has 6"),
        ({"conv2_repeats": 2}, "--model.conv2_repeats: got 2, the checkpoint has 1"),
        ({"fpn_variant": "psalm"}, "--model.fpn_variant: got 'psalm', the checkpoint has 'mask2former'"),
        ({"projector_conv_dim": 24}, "--model.projector_conv_dim: got 24, the checkpoint has 16"),
        ({"projector": DeformableProjectorConfig(hidden_dim=32)}, "--mm_hidden_dim: got 32, the checkpoint has 16"),
        ({"projector": DeformableProjectorConfig(num_heads=4)}, "--mm_n_heads: got 4, the checkpoint has 2"),
        ({"projector": DeformableProjectorConfig(num_points=3)}, "--mm_n_points: got 3, the checkpoint has 2"),
    ],
)
def test_a_size_that_is_not_the_checkpoints_is_refused(toy, tmp_path, changes, message):
    toy.config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        toy.config(checkpoint=str(tmp_path), **changes)


def test_a_baseline_checkpoint_takes_a_residual_of_any_size(toy, tmp_path):
    toy.config(projector_type="swin_conv").save_pretrained(tmp_path)
    projector = DeformableProjectorConfig(hidden_dim=32, num_heads=4)
    assert toy.config(checkpoint=str(tmp_path), projector=projector).projector == projector


def test_every_source_says_what_was_taken_over(toy, tmp_path, caplog):
    expected = save_language_model(tmp_path / "words", vocabulary=4)
    with caplog.at_level(logging.INFO, logger="psalm.building"):
        build(toy, language_model=str(tmp_path / "words"), language=None)
        saved = save_run(toy, tmp_path / "run", projector_type="swin_conv").state_dict()
        model, _ = build(toy, checkpoint=str(tmp_path / "run"))
    counts = f"language model: {len(expected)} tensors taken over, 0 as in a new model, 0 left out; 5 new rows"
    assert counts in caplog.text
    new = len(model.state_dict()) - len(saved)
    assert f"whole model: {len(saved)} tensors taken over, {new} as in a new model, 0 left out" in caplog.text
    assert "num_mask_queries 6, conv2_repeats 1, fpn_variant mask2former, projector_conv_dim 16" in caplog.text


def test_the_preset_from_baseline_starts_from_the_run_of_swin_conv(toy, tmp_path):
    def preset(name, *words):
        settings = resolve_settings(APPLICATION, "train", ["--preset", name, *words])
        assert isinstance(settings, Settings)
        return settings

    assert preset("from-baseline").model.checkpoint == f"{preset('swin-conv').run_dir}/model"
    saved = save_run(toy, tmp_path, projector_type="swin_conv").eval()
    settings = preset("from-baseline", "--model.checkpoint", str(tmp_path), "--model.max_length", "512")
    processor = build_processor(settings.model, toy.data_settings(), [])
    model = build_model(settings.model, processor).eval()
    assert isinstance(model.projector, DeformableProjector)
    parts = parts_of(model.config)
    assert {*settings.training.part_learning_rates, *settings.training.frozen_parts} <= set(parts)
    maps = [torch.randn(1, channels, 16 >> level, 16 >> level) for level, channels in enumerate((8, 16, 32, 64))]
    valid = [torch.ones(1, *level.shape[2:], dtype=torch.bool) for level in maps]
    assert torch.equal(model._project(maps, valid), saved._project(maps, valid))


def test_sequences_longer_than_the_language_model_reads_are_refused(toy):  # Phi-1.5 reads 2048
    assert build_processor(toy.settings(), toy.data_settings(), []).max_length == 512
    with pytest.raises(ValueError, match=r"\(--model_max_length\) is 513, .* at most 512 tokens \(max_position_emb"):
        build_processor(toy.settings(max_length=513), toy.data_settings(), [])


def test_a_checkpoint_with_other_shapes_is_refused(toy, tmp_path):
    save_run(toy, tmp_path)
    with pytest.raises(ValueError, match=r"model.swin \(.*\): embed_dim is 8 in the pretrained model, got 16"):
        build(toy, checkpoint=str(tmp_path), swin={"embed_dim": 16})


@pytest.mark.parametrize("projector_type", ["deformable", "swin_conv"])
@pytest.mark.parametrize("statistics", [True, False], ids=["with statistics", "parameters only"])
def test_projector_weights_are_those_of_the_file(toy, tmp_path, projector_type, statistics, caplog):
    torch.manual_seed(9)
    source = toy.model(projector_type="swin_conv").projector
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    named = source.state_dict() if statistics else dict(source.named_parameters())
    weights = {f"model.mm_projector.{name}": value.detach().clone() for name, value in named.items()}
    save_file({**weights, "model.other.weight": torch.ones(1)}, tmp_path / "projector.safetensors")
    model = toy.model(projector_type=projector_type, projector_weights=str(tmp_path / "projector.safetensors"))
    base = model.projector.base if projector_type == "deformable" else model.projector
    found = base.state_dict()
    assert all(torch.equal(found[name], value) for name, value in named.items())
    # Upstream's files lack batch norm's statistics.
    assert ("statistics" in caplog.text) is not statistics


def test_settings_say_which_image_size(toy):
    with pytest.raises(ValueError, match="multiple of the backbone's coarsest stride, 16 pixels, got 72"):
        build_config(toy.settings(), toy.tokenizer, 72)


def test_a_whole_psalm_is_no_language_model_and_it_is_said_what_to_do(toy, tmp_path):
    save_run(toy, tmp_path / "own")
    with pytest.raises(
        ValueError, match=r"own' is a whole PSALM \(model_type 'psalm'\), .*; give it as model\.checkpoint"
    ):
        build(toy, language_model=str(tmp_path / "own"), language=None)
    save_language_model(tmp_path / "published", vocabulary=4)
    file = tmp_path / "published" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "llava_phi"}))
    with pytest.raises(
        ValueError, match=r"'llava_phi'\), .* by `psalm convert`, and give the result as model\.checkpoint"
    ):
        build(toy, language_model=str(tmp_path / "published"), language=None)
