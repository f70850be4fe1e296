"""`psalm convert`: published files into folders that open strictly and compute what was published."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from psalm.convert import convert
from psalm.key_map import DETECTRON2, FUSED_PHI, PSALM, to_their_names
from psalm.loading import load_model
from psalm.model import PSALMModel
from psalm.tokenizer import ALIGNED_TOKEN, IMAGE_TOKEN, QUERY_TOKEN, REGION_TOKEN
from psalm.verbs import ConvertSettings
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, Mask2FormerModel, PhiConfig, PhiForCausalLM

ROWS = 259
"""256 bytes, the end of a text, [PAD] and [SEG]: PSALM's embeddings have a row per token of its tokenizer."""
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
EMBEDDINGS = (
    "language_model.model.embed_tokens.weight",
    "language_model.lm_head.weight",
    "language_model.lm_head.bias",
)


def write_tokenizer(folder: Path, *, seg: bool = True) -> None:
    """The files of a slow CodeGen tokenizer with two added tokens, as PSALM's training saves them."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    added = {"[PAD]": len(vocabulary), "[SEG]" if seg else "[CLS]": len(vocabulary) + 1}
    end = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
    said = {"tokenizer_class": "CodeGenTokenizer", "pad_token": "[PAD]", "model_max_length": 2048, **end}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def published_weights(model: PSALMModel) -> dict[str, Tensor]:
    """A model's weights as PSALM's training program saves them, with what we have no use for."""
    theirs = to_their_names(PSALM, model.state_dict(), num_heads=4)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        theirs[name] = theirs[name][:ROWS].clone()
    return theirs | {
        "model.vision_tower.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
        "predictor.query_feat.weight": torch.ones(6, 32),
        "predictor.SEG_query_embed.weight": torch.ones(7, 32),
    }


@pytest.fixture(scope="module")
def original(toy) -> PSALMModel:
    """A model that computes as published ones do, moved away from its initialisation."""
    language = toy.settings().language | LANGUAGE
    changes = {"projector_type": "swin_conv", "fpn_variant": "psalm", "conv2_repeats": 2}
    changes |= {"region_geometry": False, "region_levels": False, "mask_places": False}
    model = toy.model(seed=4, language=language, max_length=1024, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
        model.language_model.lm_head.bias.zero_()
    return model


def write_published(folder: Path, weights: dict[str, Tensor], **said: object) -> ConvertSettings:
    """A published folder: two shards, a LLaVA-Phi config with a path that nobody has, a slow tokenizer."""
    folder.mkdir()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: weights[name].contiguous() for name in own}, folder / shard, metadata={"format": "pt"})
    index = {"weight_map": {name: shard for shard, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "llava_phi",
        "architectures": ["PSALM"],
        "mm_vision_tower": "/home/somebody/model_final_54b88a.pkl",
        "mm_projector_type": "swin_conv",
        "swin_type": "base",
        "vocab_size": ROWS,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "partial_rotary_factor": 0.5,
        **LANGUAGE,
        **said,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return ConvertSettings(source=str(folder), output=str(folder.parent / "ours"), image_size=64)


def test_a_published_psalm_opens_and_computes_what_it_did(toy, original, tmp_path, caplog):
    settings = write_published(tmp_path / "published", published_weights(original))
    with caplog.at_level(logging.INFO, logger="psalm.published"):
        convert(settings)
    found = PSALMModel.from_pretrained(settings.output).eval()
    config = found.config
    assert (config.projector_type, config.conv2_repeats, config.fpn_variant) == ("swin_conv", 2, "psalm")
    assert (config.num_mask_queries, config.image_size) == (6, 64)
    assert not config.region_geometry
    assert not config.mask_places
    assert (config.vision_dims, config.mask.decoder_layers, config.mask.num_attention_heads) == ([8, 16, 32, 64], 3, 4)
    expected = original.state_dict()
    for name, value in found.state_dict().items():
        if name.startswith("vision_tower.swin.layernorm"):
            continue  # published weights have no such norm, and nothing reads it
        rows = slice(ROWS) if name in EMBEDDINGS else slice(None)
        assert torch.equal(value[rows] if value.ndim else value, expected[name][rows] if value.ndim else value), name
    assert found.language_model.lm_head.bias.shape == (ROWS + 4,)
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        plain = original.language_model.model(ids).last_hidden_state
        assert torch.equal(found.language_model.model(ids).last_hidden_state, plain)
        pixels = torch.randn(1, 3, 64, 64)
        ours, theirs = (model.vision_tower(pixels).feature_maps for model in (found, original))
        assert torch.equal(found.projector(ours[-1]), original.projector(theirs[-1]))
        assert torch.equal(found.pixel_decoder(ours).mask_features, original.pixel_decoder(theirs).mask_features)
    assert "1 filled with zeros: language_model.lm_head.bias" in caplog.text
    assert "predictor.SEG_query_embed.weight" in caplog.text


def test_a_converted_psalm_segments_with_its_own_processor(toy, original, tmp_path):
    """The placeholders get ids behind the published tokens; those keep theirs."""
    settings = write_published(tmp_path / "published", published_weights(original))
    convert(ConvertSettings(settings.source, settings.output, image_size=64, system_text="As it was trained."))
    model, processor = load_model(settings.output, "cpu")
    ids = processor.tokenizer.get_vocab()
    assert (ids["[PAD]"], ids["[SEG]"]) == (257, 258)
    placeholders = (IMAGE_TOKEN, REGION_TOKEN, ALIGNED_TOKEN, QUERY_TOKEN)
    assert sorted(ids[token] for token in placeholders) == [259, 260, 261, 262]
    assert (model.config.seg_token_id, model.config.query_token_id) == (258, ids[QUERY_TOKEN])
    assert (processor.max_length, processor.system_text) == (1024, "As it was trained.")
    from psalm.collate import SegmentationCollator

    batch = SegmentationCollator(processor, toy.settings(), with_targets=False)(
        [toy.sample("panoptic"), toy.sample("region")]
    )
    with torch.no_grad():
        output = model(**batch)
    assert output.mask_logits.shape == (2, 6, 32, 32)
    assert output.mask_logits.isfinite().all()


def test_missing_statistics_are_told_and_those_of_a_new_model(original, tmp_path, caplog):
    """PSALM saves named parameters: no running mean and variance (spec 3.7)."""
    weights = published_weights(original)
    weights = {name: value for name, value in weights.items() if not name.endswith(("_mean", "_var", "_tracked"))}
    settings = write_published(tmp_path / "published", weights)
    convert(settings)
    assert "without the running statistics of batch normalisation (9 tensors)" in caplog.text
    found = PSALMModel.from_pretrained(settings.output)
    assert not found.projector.layer1[0].bn1.running_mean.any()


def test_a_psalm_with_missing_or_unknown_weights_is_refused(original, tmp_path):
    """Newer transformers would leave q, k and v silently random."""
    weights = published_weights(original)
    weights["model.layers.0.self_attn.q_proj.weight"] = weights.pop("model.layers.0.self_attn.query_key_value.weight")
    settings = write_published(tmp_path / "published", weights)
    message = (
        r"1 missing \(model\.layers\.0\.self_attn\.query_key_value\.weight\), 1 unknown \(model\..*q_proj\.weight\)"
    )
    with pytest.raises(ValueError, match=message):
        convert(settings)


def test_a_psalm_whose_config_says_other_sizes_is_refused(original, tmp_path):
    settings = write_published(tmp_path / "published", published_weights(original), intermediate_size=64)
    with pytest.raises(ValueError, match=r"mlp\.fc1\.weight +module \[64, 32\], weights \[48, 32\]"):
        convert(settings)


def test_a_tokenizer_that_does_not_know_seg_is_refused(original, tmp_path):
    settings = write_published(tmp_path / "published", published_weights(original))
    write_tokenizer(tmp_path / "published", seg=False)
    with pytest.raises(ValueError, match=r"its tokenizer does not know \[SEG\], which PSALM was trained with"):
        convert(settings)


def write_pickle(toy, path: Path) -> Mask2FormerModel:
    torch.manual_seed(6)
    model = Mask2FormerModel(toy.config().mask)
    theirs = to_their_names(DETECTRON2, model.state_dict())
    path.write_bytes(pickle.dumps({"model": {name: value.numpy() for name, value in theirs.items()}}, protocol=2))
    return model


def test_a_pickle_becomes_a_folder_that_a_model_starts_from(toy, tmp_path):
    expected = write_pickle(toy, tmp_path / "m2f.pkl")
    convert(ConvertSettings(source=str(tmp_path / "m2f.pkl"), output=str(tmp_path / "m2f")))
    found = Mask2FormerModel.from_pretrained(tmp_path / "m2f")
    own = expected.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.state_dict().items())
    models = [toy.model(mask2former=str(tmp_path / name)) for name in ("m2f", "m2f.pkl")]
    for model in models:
        queries = expected.transformer_module.queries_embedder.weight
        assert torch.equal(model.mask_decoder.queries_embedder.weight, queries)
        norms = model.vision_tower.state_dict()["hidden_states_norms.stage4.weight"]
        assert torch.equal(norms, own["pixel_level_module.encoder.hidden_states_norms.stage4.weight"])
    first, second = (model.pixel_decoder.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_pickle_of_another_backbone_is_refused_and_its_sizes_named(toy, tmp_path):
    write_pickle(toy, tmp_path / "m2f.pkl")
    settings = ConvertSettings(source=str(tmp_path / "m2f.pkl"), output=str(tmp_path / "m2f"), swin_type="large")
    with pytest.raises(
        ValueError, match=r"Swin of type 'large' \(swin_type\), got one with embed_dim 8, depths \[1, 1"
    ):
        convert(settings)
    assert not (tmp_path / "m2f").exists()


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_malicious_pickle_is_refused(tmp_path):
    content = {"model": {"backbone.norm0.weight": Malicious(tmp_path / "it ran")}}
    (tmp_path / "m2f.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match="refused, the pickle asks for"):
        convert(ConvertSettings(source=str(tmp_path / "m2f.pkl"), output=str(tmp_path / "m2f")))
    assert not (tmp_path / "it ran").exists()


def test_a_phi_with_fused_attention_becomes_a_plain_one(tmp_path):
    source, output = tmp_path / "fused", tmp_path / "plain"
    source.mkdir()
    torch.manual_seed(1)
    plain = PhiForCausalLM(PhiConfig(vocab_size=ROWS, **LANGUAGE)).eval()
    save_file(to_their_names(FUSED_PHI, plain.state_dict(), num_heads=4), source / "model.safetensors")
    (source / "config.json").write_text(json.dumps({"model_type": "phi", **LANGUAGE}))
    write_tokenizer(source)
    convert(ConvertSettings(source=str(source), output=str(output)))
    found = AutoModelForCausalLM.from_pretrained(output).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, plain(ids).logits)
    assert (output / "tokenizer.json").is_file()


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a \.pkl, or a folder with a config\.json"):
        convert(ConvertSettings(source=str(tmp_path / "nothing"), output=str(tmp_path / "out")))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"expected a \.pkl"):
        convert(ConvertSettings(source=str(tmp_path / "weights.bin"), output=str(tmp_path / "out")))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"expected a published PSALM .* or a Phi, got 'llama'"):
        convert(ConvertSettings(source=str(tmp_path), output=str(tmp_path / "out")))
