"""Published weights in our modules compute what they computed where they come from; other sizes are refused by name."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from deformable_projector import DeformableProjector, adapt_projector_weights
from psalm.key_map import DETECTRON2, FUSED_PHI, to_their_names
from psalm.model import PSALMModel
from psalm.published import fill_mask_side, fill_projector, open_fused_phi, open_mask2former
from safetensors.torch import save_file
from torch import Tensor
from transformers import Mask2FormerForUniversalSegmentation, PhiConfig, PhiForCausalLM, ResNetConfig

QUERIES = 9
"""More than the toy's 6 mask tokens, as Swin-L's 200 are more than PSALM's 100."""


@pytest.fixture(scope="module")
def library(toy) -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former of transformers, moved away from its initialisation, where too much is zero to see anything."""
    config = toy.config(num_mask_queries=QUERIES).mask
    config.num_labels = 7
    torch.manual_seed(2)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def detectron2_file(library: Mask2FormerForUniversalSegmentation, path: Path, *, old: bool = False) -> str:
    """Write a Mask2Former as detectron2's model zoo does: NumPy arrays in a pickle of protocol 2."""
    theirs = to_their_names(DETECTRON2, library.model.state_dict())
    theirs["sem_seg_head.predictor.class_embed.weight"] = library.class_predictor.weight.detach()
    theirs["sem_seg_head.predictor.class_embed.bias"] = library.class_predictor.bias.detach()
    theirs["criterion.empty_weight"] = torch.ones(8)
    theirs["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    if old:
        theirs = {
            name.replace("query_feat", "static_query").replace("pixel_decoder.", ""): theirs[name] for name in theirs
        }
    content = {
        "model": {name: value.numpy() for name, value in theirs.items()},
        "__author__": "a name",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


def mask_side(model: PSALMModel, pixels: Tensor, queries: Tensor) -> list[Tensor]:
    features = model.pixel_decoder(model.vision_tower(pixels).feature_maps)
    decoded = model.mask_decoder(queries, features)
    return [features.mask_features, *features.levels, *decoded.mask_logits, *decoded.states]


@torch.no_grad()
def library_side(library: Mask2FormerForUniversalSegmentation, pixels: Tensor, num_queries: int) -> list[Tensor]:
    """The same of transformers' own, with its own first queries."""
    pixel, module = library.model.pixel_level_module(pixels), library.model.transformer_module
    table = module.queries_embedder.weight, module.queries_features.weight
    module.queries_embedder.weight, module.queries_features.weight = (
        torch.nn.Parameter(weight[:num_queries]) for weight in table
    )
    decoded = module(list(pixel.decoder_hidden_states), pixel.decoder_last_hidden_state)
    module.queries_embedder.weight, module.queries_features.weight = table
    states = [state.transpose(0, 1) for state in decoded.intermediate_hidden_states]
    return [pixel.decoder_last_hidden_state, *pixel.decoder_hidden_states, *decoded.masks_queries_logits, *states]


@pytest.mark.parametrize("source", ["detectron2", "old detectron2", "Hugging Face"])
def test_the_mask_side_computes_what_the_original_does(toy, library, tmp_path, source, caplog):
    if source == "Hugging Face":
        library.save_pretrained(tmp_path / "m2f")
        path = str(tmp_path / "m2f")
    else:
        path = detectron2_file(library, tmp_path / "m2f.pkl", old=source.startswith("old"))
    model = toy.model(seed=5)
    with caplog.at_level(logging.INFO, logger="psalm.published"):
        fill_mask_side(model, path)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 64, 48, generator=generator)
    queries = library.model.transformer_module.queries_features.weight[:6].expand(2, -1, -1)
    with torch.no_grad():
        found = mask_side(model, pixels, queries)
    for ours, theirs in zip(found, library_side(library, pixels, 6), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert "positions of 6 of its 9 queries, the first ones" in caplog.text
    positions = library.model.transformer_module.queries_embedder.weight[:6]
    assert torch.equal(model.mask_decoder.queries_embedder.weight, positions)


def test_a_pyramid_of_psalm_starts_with_biases_of_zero(toy, library, tmp_path):
    model = toy.model(fpn_variant="psalm")
    fill_mask_side(model, detectron2_file(library, tmp_path / "m2f.pkl"))
    assert not model.pixel_decoder.decoder.adapter_1[0].bias.any()
    assert not model.pixel_decoder.decoder.layer_1[0].bias.any()


def test_fewer_queries_than_mask_tokens_are_refused(toy, library, tmp_path):
    path = detectron2_file(library, tmp_path / "m2f.pkl")
    with pytest.raises(ValueError, match=r"m2f\.pkl has 9 learned queries, the model 10 mask tokens"):
        fill_mask_side(toy.model(num_mask_queries=10), path)


def test_another_backbone_is_refused_and_its_sizes_named(toy, library, tmp_path):
    """`--swin_type base` with Swin-L's file: the sizes that differ, and what to change."""
    path = detectron2_file(library, tmp_path / "m2f.pkl")
    swin = toy.settings().swin | {"embed_dim": 16, "depths": [1, 1, 2, 1]}
    message = (
        r"embed_dim 8, the model 16; depths \[1, 1, 1, 1\], the model \[1, 1, 2, 1\]; model\.swin sets the backbone"
    )
    with pytest.raises(ValueError, match=message):
        fill_mask_side(toy.model(swin=swin), path)
    decoder = toy.settings().mask_decoder | {"num_attention_heads": 2}
    with pytest.raises(ValueError, match="num_attention_heads 4, the model 2"):
        fill_mask_side(toy.model(mask_decoder=decoder), path)


def test_a_folder_of_the_hub_with_its_older_names_opens(library, tmp_path):
    """What `facebook/mask2former-swin-*` hold: names of transformers 4, a computed table, no norm at Swin's end."""
    own = library.state_dict()
    older = {
        ".swin.": ".",
        "attention.q_proj": "attention.self.query",
        "attention.k_proj": "attention.self.key",
        "attention.v_proj": "attention.self.value",
        "attention.relative_position_bias.": "attention.self.",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    weights = {}
    for name, value in own.items():
        for ours, theirs in older.items() if "encoder.swin." in name else ():
            name = name.replace(ours, theirs)
        weights[name] = value
    weights = {name: value for name, value in weights.items() if "encoder.layernorm." not in name}
    table = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    library.config.save_pretrained(tmp_path)
    save_file(weights | {table: torch.zeros(16, 16)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = open_mask2former(str(tmp_path)).state_dict()
    assert table.replace("self.relative_position_index", "self.query.weight") in weights
    assert all(
        torch.equal(value, own[f"model.{name}"]) for name, value in found.items() if ".swin.layernorm." not in name
    )


def test_a_mask2former_that_lacks_weights_is_refused(library, tmp_path):
    weights = {
        f"model.{name}": value for name, value in library.model.state_dict().items() if "level_embed" not in name
    }
    library.config.save_pretrained(tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing from the files: .*level_embed"):
        open_mask2former(str(tmp_path))


def test_other_models_are_refused(toy, tmp_path):
    toy.config().language.save_pretrained(tmp_path / "phi")
    with pytest.raises(ValueError, match="expected a Mask2Former, got a model of type 'phi'"):
        open_mask2former(str(tmp_path / "phi"))
    config = toy.config().mask
    config.backbone_config = ResNetConfig()
    config.save_pretrained(tmp_path / "resnet")
    with pytest.raises(ValueError, match="expected a Swin backbone, got ResNetConfig"):
        open_mask2former(str(tmp_path / "resnet"))
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ValueError, match=r"other\.pkl: not the weights of a Swin: no 'backbone\.patch_embed"):
        open_mask2former(str(tmp_path / "other.pkl"))


def projector_file(path: Path, *, statistics: bool) -> dict[str, Tensor]:
    """A baseline's `mm_projector.bin`; PSALM's own holds parameters alone."""
    from deformable_projector import SwinConvProjector

    torch.manual_seed(7)
    base = SwinConvProjector(64, 32, 16, conv2_repeats=2)
    weights = base.state_dict() if statistics else dict(base.named_parameters())
    torch.save({f"model.mm_projector.{name}": value.detach() for name, value in weights.items()}, path)
    return base.state_dict()


@pytest.mark.parametrize("projector_type", ["swin_conv", "deformable"])
def test_a_baseline_projector_fills_either_projector(toy, tmp_path, projector_type, caplog):
    weights = projector_file(tmp_path / "mm_projector.bin", statistics=False)
    model = toy.model(projector_type=projector_type, conv2_repeats=2)
    with caplog.at_level(logging.INFO, logger="psalm.published"):
        fill_projector(model, str(tmp_path / "mm_projector.bin"))
    # The file holds parameters alone: statistics, and the residual where there is one, are new.
    new = len(model.projector.state_dict()) - 11
    assert f"projector: 11 tensors taken over, {new} as in a new model, 0 left out" in caplog.text
    base = model.projector.base if isinstance(model.projector, DeformableProjector) else model.projector
    assert all(torch.equal(value, weights[name]) for name, value in base.named_parameters())
    assert "without the running statistics of batch normalisation (9 tensors)" in caplog.text
    assert "conv2_repeats" not in caplog.text


def test_published_projectors_want_their_second_convolution_twice(toy, tmp_path, caplog):
    projector_file(tmp_path / "mm_projector.bin", statistics=True)
    fill_projector(toy.model(), str(tmp_path / "mm_projector.bin"))
    assert "run 2 times, but model.conv2_repeats is 1: other tokens than in that training; set it to 2" in caplog.text
    assert "statistics" not in caplog.text


@pytest.mark.parametrize("projector_type", ["swin_conv", "deformable"])
def test_a_projector_of_ours_fills_either_projector(toy, tmp_path, projector_type, caplog):
    """From a whole model as it was saved, by its folder or its file."""
    caplog.set_level(logging.WARNING)
    trained = toy.model(seed=8, projector_type="swin_conv")
    trained.save_pretrained(tmp_path)
    expected = trained.projector.state_dict()
    for source in (tmp_path, tmp_path / "model.safetensors"):
        model = toy.model(seed=9, projector_type=projector_type)
        fill_projector(model, str(source))
        base = model.projector.base if isinstance(model.projector, DeformableProjector) else model.projector
        assert all(torch.equal(value, expected[name]) for name, value in base.state_dict().items())
    assert not caplog.records
    fill_projector(toy.model(projector_type=projector_type, conv2_repeats=2), str(tmp_path))
    assert "run 1 times, but model.conv2_repeats is 2" in caplog.text


def test_an_adapted_projector_fills_the_one_it_was_made_for(toy, tmp_path, caplog):
    source, model = toy.model(seed=8), toy.model(seed=9)
    adapted = adapt_projector_weights(source.projector.state_dict(), source.projector)
    save_file(adapted.weights, tmp_path / "adapted.safetensors", metadata=adapted.metadata)
    with caplog.at_level(logging.INFO, logger="psalm.published"):
        fill_projector(model, str(tmp_path / "adapted.safetensors"))
    expected = source.projector.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.projector.state_dict().items())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith(f"projector: {len(expected)} tensors taken over, 0 as in a new model, 0 left out")


def test_an_adapted_projector_of_other_heads_is_refused_though_its_shapes_fit(toy, tmp_path):
    """Two heads of two points, or one head of four: the same shapes, another computation."""
    model = toy.model()
    adapted = adapt_projector_weights(model.projector.state_dict(), model.projector)
    save_file(
        adapted.weights,
        tmp_path / "adapted.safetensors",
        metadata=adapted.metadata | {"num_heads": "1", "num_points": "4"},
    )
    with pytest.raises(ValueError, match="num_heads 1, the model 2; num_points 4, the model 2"):
        fill_projector(model, str(tmp_path / "adapted.safetensors"))


def test_a_phi_with_fused_attention_reads_as_the_plain_one(tmp_path):
    config = PhiConfig(vocab_size=30, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3)
    torch.manual_seed(3)
    plain = PhiForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.save(to_their_names(FUSED_PHI, plain.state_dict(), num_heads=3), tmp_path / "pytorch_model.bin")
    said = {
        "model_type": "phi",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    found = open_fused_phi(tmp_path).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, plain(ids).logits)
