"""Names of published weights: as their own code has them, there and back to the last bit, and nothing silently."""

import pytest
import torch
from psalm.key_map import DETECTRON2, FUSED_PHI, PSALM, Layout, to_own_names, to_their_names, upgrade_detectron2
from torch import Tensor
from transformers import Mask2FormerModel, PhiConfig, PhiForCausalLM

# Written down from the published code, not made by the map that is tested. Widths: Swin 8, 16, 32, 64; others 32.
DETECTRON2_NAMES = {
    "backbone.patch_embed.proj.weight": (8, 3, 2, 2),
    "backbone.patch_embed.norm.bias": (8,),
    "backbone.layers.0.blocks.0.norm1.weight": (8,),
    "backbone.layers.1.blocks.0.norm2.weight": (16,),
    "backbone.layers.2.blocks.0.attn.qkv.weight": (96, 32),
    "backbone.layers.2.blocks.0.attn.qkv.bias": (96,),
    "backbone.layers.2.blocks.0.attn.proj.weight": (32, 32),
    "backbone.layers.3.blocks.0.attn.relative_position_bias_table": (49, 4),
    "backbone.layers.3.blocks.0.mlp.fc1.weight": (128, 64),
    "backbone.layers.3.blocks.0.mlp.fc2.bias": (64,),
    "backbone.layers.2.downsample.reduction.weight": (64, 128),
    "backbone.layers.2.downsample.norm.weight": (128,),
    "backbone.norm0.weight": (8,),
    "backbone.norm3.weight": (64,),
    "sem_seg_head.pixel_decoder.input_proj.0.0.weight": (32, 64, 1, 1),
    "sem_seg_head.pixel_decoder.input_proj.2.1.bias": (32,),
    "sem_seg_head.pixel_decoder.transformer.level_embed": (3, 32),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.bias": (96,),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.attention_weights.weight": (48, 32),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.value_proj.weight": (32, 32),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.output_proj.bias": (32,),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.norm1.weight": (32,),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.norm2.weight": (32,),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear1.weight": (32, 32),
    "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear2.weight": (32, 32),
    "sem_seg_head.pixel_decoder.adapter_1.weight": (32, 8, 1, 1),
    "sem_seg_head.pixel_decoder.adapter_1.norm.weight": (32,),
    "sem_seg_head.pixel_decoder.layer_1.weight": (32, 32, 3, 3),
    "sem_seg_head.pixel_decoder.layer_1.norm.bias": (32,),
    "sem_seg_head.pixel_decoder.mask_features.weight": (32, 32, 1, 1),
    "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_weight": (96, 32),
    "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_bias": (96,),
    "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.out_proj.weight": (32, 32),
    "sem_seg_head.predictor.transformer_self_attention_layers.1.norm.weight": (32,),
    "sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn.in_proj_weight": (96, 32),
    "sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn.out_proj.bias": (32,),
    "sem_seg_head.predictor.transformer_cross_attention_layers.0.norm.bias": (32,),
    "sem_seg_head.predictor.transformer_ffn_layers.1.linear1.weight": (48, 32),
    "sem_seg_head.predictor.transformer_ffn_layers.1.linear2.weight": (32, 48),
    "sem_seg_head.predictor.transformer_ffn_layers.1.norm.weight": (32,),
    "sem_seg_head.predictor.decoder_norm.weight": (32,),
    "sem_seg_head.predictor.query_feat.weight": (6, 32),
    "sem_seg_head.predictor.query_embed.weight": (6, 32),
    "sem_seg_head.predictor.level_embed.weight": (3, 32),
    "sem_seg_head.predictor.mask_embed.layers.2.weight": (32, 32),
}
PSALM_NAMES = {
    "model.embed_tokens.weight": (300, 32),
    "model.layers.1.self_attn.query_key_value.weight": (96, 32),
    "model.layers.1.self_attn.query_key_value.bias": (96,),
    "model.layers.1.self_attn.dense.weight": (32, 32),
    "model.layers.0.mlp.fc1.weight": (48, 32),
    "model.layers.0.mlp.fc2.bias": (32,),
    "model.layers.0.input_layernorm.weight": (32,),
    "model.final_layernorm.bias": (32,),
    "lm_head.weight": (300, 32),
    "model.vision_tower.patch_embed.proj.bias": (8,),
    "model.vision_tower.layers.3.blocks.0.attn.qkv.weight": (192, 64),
    "model.vision_tower.norm2.bias": (32,),
    "model.mm_projector.layer1.0.conv1.weight": (16, 64, 3, 3),
    "model.mm_projector.layer1.0.bn2.bias": (16,),
    "model.mm_projector.layer1.0.downsample.1.weight": (16,),
    "model.mm_projector.fc.weight": (32, 16),
    "seg_query": (6, 32),
    "seg_query_projector.weight": (32, 32),
    "SEG_token_projector.bias": (32,),
    "class_name_projector.weight": (32, 32),
    "region_projector.weight": (32, 32),
    "pixel_decoder.input_proj.1.0.bias": (32,),
    "pixel_decoder.adapter_1.0.weight": (32, 8, 1, 1),
    "pixel_decoder.adapter_1.0.bias": (32,),
    "pixel_decoder.adapter_1.1.bias": (32,),
    "pixel_decoder.layer_1.0.bias": (32,),
    "pixel_decoder.transformer.encoder.layers.0.linear1.bias": (32,),
    "pixel_decoder.mask_features.bias": (32,),
    "predictor.query_embed.weight": (6, 32),
    "predictor.transformer_ffn_layers.0.linear2.bias": (32,),
    "predictor.SEG_proj.layers.0.weight": (32, 32),
    "predictor.CLASS_proj.layers.1.bias": (32,),
    "predictor.REGION_proj.layers.1.weight": (32, 32),
}


def shaken(module: torch.nn.Module) -> dict[str, Tensor]:
    """A module's tensors, every number another than in a new one; batch norm's count stays a whole number."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in module.state_dict().items()
    }


@pytest.fixture(scope="module")
def mask2former(toy) -> dict[str, Tensor]:
    return shaken(Mask2FormerModel(toy.config().mask))


@pytest.fixture(scope="module")
def psalm(toy) -> dict[str, Tensor]:
    changes = {"projector_type": "swin_conv", "fpn_variant": "psalm", "conv2_repeats": 2}
    model = toy.model(**changes, region_geometry=False, region_levels=False, mask_places=False)
    weights = shaken(model)
    weights["language_model.lm_head.bias"].zero_()
    return weights


@pytest.fixture(scope="module")
def phi() -> dict[str, Tensor]:
    return shaken(
        PhiForCausalLM(
            PhiConfig(vocab_size=20, hidden_size=24, intermediate_size=8, num_hidden_layers=2, num_attention_heads=3)
        )
    )


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("layout", "ours", "names", "heads"),
    [(DETECTRON2, "mask2former", DETECTRON2_NAMES, 1), (PSALM, "psalm", PSALM_NAMES, 4)],
)
def test_names_and_shapes_are_the_published_ones(layout, ours, names, heads, request):
    theirs = to_their_names(layout, request.getfixturevalue(ours), num_heads=heads)
    assert {name: tuple(theirs[name].shape) for name in names} == names
    # Numbers of layers apart, no kind of name is there that was not written down.
    assert {name.split(".")[0] for name in theirs} == {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("layout", "ours", "heads"), [(DETECTRON2, "mask2former", 1), (PSALM, "psalm", 4), (FUSED_PHI, "phi", 3)]
)
def test_there_and_back_to_the_last_bit(layout, ours, heads, request):
    weights = request.getfixturevalue(ours)
    theirs = to_their_names(layout, weights, num_heads=heads)
    renamed = to_own_names(layout, theirs, weights, num_heads=heads)
    kept = {name: weights[name] for name in renamed.kept}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in kept} <= {"layernorm"}
    assert equal(renamed.weights | kept, weights)
    assert equal(to_their_names(layout, renamed.weights, num_heads=heads), theirs)


# Pairs that shapes and a round trip cannot tell apart, written down from the code of both sides.
_SWIN, _PIXEL = (
    "pixel_level_module.encoder.swin.encoder.layers.0.blocks.0.",
    "pixel_level_module.decoder.encoder.layers.0.",
)
_LAYER, _D2_PREDICTOR = "transformer_module.decoder.layers.1.", "sem_seg_head.predictor."
_D2_SELF = f"{_D2_PREDICTOR}transformer_self_attention_layers.1."
_D2_CROSS = f"{_D2_PREDICTOR}transformer_cross_attention_layers.1."
_D2_ENCODER = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0."
SAME_SHAPES = {
    "backbone.layers.0.blocks.0.norm1.weight": f"{_SWIN}layernorm_before.weight",
    "backbone.layers.0.blocks.0.norm2.weight": f"{_SWIN}layernorm_after.weight",
    "backbone.norm1.weight": "pixel_level_module.encoder.hidden_states_norms.stage2.weight",
    f"{_D2_ENCODER}norm1.weight": f"{_PIXEL}self_attn_layer_norm.weight",
    f"{_D2_ENCODER}norm2.weight": f"{_PIXEL}final_layer_norm.weight",
    f"{_D2_ENCODER}linear1.weight": f"{_PIXEL}fc1.weight",
    f"{_D2_ENCODER}linear2.weight": f"{_PIXEL}fc2.weight",
    f"{_D2_ENCODER}self_attn.value_proj.weight": f"{_PIXEL}self_attn.value_proj.weight",
    f"{_D2_ENCODER}self_attn.output_proj.weight": f"{_PIXEL}self_attn.output_proj.weight",
    "sem_seg_head.pixel_decoder.adapter_1.norm.weight": "pixel_level_module.decoder.adapter_1.1.weight",
    "sem_seg_head.pixel_decoder.layer_1.norm.weight": "pixel_level_module.decoder.layer_1.1.weight",
    "sem_seg_head.pixel_decoder.transformer.level_embed": "pixel_level_module.decoder.level_embed",
    f"{_D2_PREDICTOR}level_embed.weight": "transformer_module.level_embed.weight",
    f"{_D2_PREDICTOR}query_embed.weight": "transformer_module.queries_embedder.weight",
    f"{_D2_PREDICTOR}query_feat.weight": "transformer_module.queries_features.weight",
    f"{_D2_PREDICTOR}decoder_norm.weight": "transformer_module.decoder.layernorm.weight",
    f"{_D2_SELF}norm.weight": f"{_LAYER}self_attn_layer_norm.weight",
    f"{_D2_CROSS}norm.weight": f"{_LAYER}cross_attn_layer_norm.weight",
    f"{_D2_PREDICTOR}transformer_ffn_layers.1.norm.weight": f"{_LAYER}final_layer_norm.weight",
    f"{_D2_CROSS}multihead_attn.in_proj_weight": f"{_LAYER}cross_attn.in_proj_weight",
    f"{_D2_SELF}self_attn.out_proj.weight": f"{_LAYER}self_attn.out_proj.weight",
    f"{_D2_PREDICTOR}mask_embed.layers.1.weight": "transformer_module.decoder.mask_predictor.mask_embedder.1.0.weight",
}
PSALM_SAME_SHAPES = {
    "seg_query_projector.weight": "query_projector.weight",
    "class_name_projector.weight": "condition_heads.class_name_projector.weight",
    "SEG_token_projector.weight": "condition_heads.SEG_token_projector.weight",
    "region_projector.weight": "condition_heads.region_projector.weight",
    "predictor.CLASS_proj.layers.0.weight": "condition_heads.CLASS_proj.layers.0.weight",
    "predictor.SEG_proj.layers.0.weight": "condition_heads.SEG_proj.layers.0.weight",
    "predictor.REGION_proj.layers.1.weight": "condition_heads.REGION_proj.layers.1.weight",
    "predictor.query_embed.weight": "mask_decoder.queries_embedder.weight",
    "model.mm_projector.layer1.0.bn1.weight": "projector.layer1.0.bn1.weight",
    "pixel_decoder.adapter_1.0.bias": "pixel_decoder.decoder.adapter_1.0.bias",
    "pixel_decoder.adapter_1.1.bias": "pixel_decoder.decoder.adapter_1.1.bias",
    "model.embed_tokens.weight": "language_model.model.embed_tokens.weight",
    "lm_head.weight": "language_model.lm_head.weight",
}


@pytest.mark.parametrize(
    ("layout", "ours", "pairs"), [(DETECTRON2, "mask2former", SAME_SHAPES), (PSALM, "psalm", PSALM_SAME_SHAPES)]
)
def test_tensors_of_one_shape_are_not_mistaken_for_each_other(layout, ours, pairs, request):
    weights = request.getfixturevalue(ours)
    theirs = to_their_names(layout, weights, num_heads=4)
    for name, own in pairs.items():
        assert torch.equal(theirs[name], weights[own]), name


def test_queries_keys_and_values_stand_one_after_the_other(mask2former):
    theirs = to_their_names(DETECTRON2, mask2former)
    own = "pixel_level_module.encoder.swin.encoder.layers.1.blocks.0.attention."
    expected = torch.cat([mask2former[f"{own}{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(theirs["backbone.layers.1.blocks.0.attn.qkv.weight"], expected)
    attention = "transformer_module.decoder.layers.0.self_attn."
    expected = torch.cat([mask2former[f"{attention}{name}_proj.bias"] for name in "qkv"])
    name = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn.in_proj_bias"
    assert torch.equal(theirs[name], expected)


def test_old_phi_keeps_them_head_by_head(phi):
    """By hand, as transformers 4.36 did: project, view as heads x 3 x width, take apart (spec 5.4)."""
    theirs = to_their_names(FUSED_PHI, phi, num_heads=3)
    states = torch.randn(2, 5, 24)
    name = "model.layers.1.self_attn."
    fused = states @ theirs[f"{name}query_key_value.weight"].T + theirs[f"{name}query_key_value.bias"]
    for part, values in zip("qkv", fused.view(2, 5, 3, 3, 8).unbind(3), strict=True):
        split = states @ phi[f"{name}{part}_proj.weight"].T + phi[f"{name}{part}_proj.bias"]
        torch.testing.assert_close(values.flatten(2), split)


def test_the_first_published_files_have_other_names(mask2former):
    """`static_query` for `query_feat`, and no `pixel_decoder.` (detectron2's version 1 and 2)."""
    theirs = to_their_names(DETECTRON2, mask2former)
    old = {name.replace("query_feat", "static_query").replace("pixel_decoder.", ""): theirs[name] for name in theirs}
    assert "sem_seg_head.predictor.static_query.weight" in old
    assert "sem_seg_head.mask_features.weight" in old
    assert equal(upgrade_detectron2(old), theirs)
    assert equal(upgrade_detectron2(theirs), theirs)


def test_what_is_of_no_use_is_left_out_by_name(mask2former):
    classifier = {
        "sem_seg_head.predictor.class_embed.weight": torch.zeros(134, 32),
        "criterion.empty_weight": torch.ones(134),
    }
    index = {"backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long)}
    renamed = to_own_names(DETECTRON2, to_their_names(DETECTRON2, mask2former) | classifier | index, mask2former)
    assert set(renamed.left_out) == set(classifier | index)
    assert "3 left out, for we have no use for them: sem_seg_head.predictor.class_embed.weight" in renamed.report()


def test_missing_and_unknown_names_are_listed(mask2former):
    theirs = to_their_names(DETECTRON2, mask2former)
    theirs["backbone.layers.9.norm.weight"] = theirs.pop("backbone.layers.0.blocks.0.attn.qkv.weight")
    message = r"1 missing \(backbone\.layers\.0\.blocks\.0\.attn\.qkv\.weight\), 1 unknown \(backbone\.layers\.9\.norm"
    with pytest.raises(ValueError, match=message):
        to_own_names(DETECTRON2, theirs, mask2former)


def test_a_head_without_bias_gets_one_of_zeros(psalm):
    theirs = to_their_names(PSALM, psalm, num_heads=4)
    assert "lm_head.bias" not in theirs
    renamed = to_own_names(PSALM, theirs, psalm, num_heads=4)
    assert renamed.zeros == ("language_model.lm_head.bias",)
    assert torch.equal(renamed.weights["language_model.lm_head.bias"], torch.zeros(300))
    with pytest.raises(ValueError, match=r"lm_head\.bias: not zero, and the layout of published PSALM has no place"):
        to_their_names(PSALM, psalm | {"language_model.lm_head.bias": torch.ones(300)}, num_heads=4)


def test_a_baseline_projector_is_also_the_base_of_a_deformable_one(psalm):
    theirs = to_their_names(PSALM, psalm, num_heads=4)
    own = {
        name.replace("projector.", "projector.base.", 1) if name.startswith("projector.") else name: value
        for name, value in psalm.items()
    }
    renamed = to_own_names(PSALM, theirs, own | {"projector.align.out_proj.weight": torch.zeros(1)}, num_heads=4)
    assert torch.equal(renamed.weights["projector.base.fc.weight"], psalm["projector.fc.weight"])
    assert "projector.align.out_proj.weight" in renamed.kept
    assert not any(
        name.startswith("model.mm_projector.align")
        for name in to_their_names(PSALM, {"projector.align.x": torch.zeros(1)})
    )


def test_half_precision_is_read_exactly_and_whole_numbers_stay_so(psalm):
    theirs = {
        name: value.half() if value.is_floating_point() else value
        for name, value in to_their_names(PSALM, psalm, num_heads=4).items()
    }
    renamed = to_own_names(PSALM, theirs, psalm, num_heads=4)
    assert renamed.weights["mask_queries.weight"].dtype == torch.float32
    assert torch.equal(renamed.weights["mask_queries.weight"], psalm["mask_queries.weight"].half().float())
    assert renamed.weights["projector.layer1.0.bn1.num_batches_tracked"].dtype == torch.int64


def test_a_fused_tensor_that_cannot_be_split_is_named():
    layout = Layout("toy", rules=(("query", "fused.[h0]"), ("key", "fused.[h1]"), ("value", "fused.[h2]")))
    own = {name: torch.zeros(2) for name in ("queryw", "keyw", "valuew")}
    with pytest.raises(ValueError, match=r"fused\.w: expected queries, keys and values of 2 heads.*got shape \[9\]"):
        to_own_names(layout, {"fused.w": torch.zeros(9)}, own, num_heads=2)
    with pytest.raises(ValueError, match=r"fused\.w: expected its 3 parts, got 2"):
        to_their_names(layout, {"queryw": torch.zeros(2), "keyw": torch.zeros(2)}, num_heads=2)
