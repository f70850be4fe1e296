import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from region_core import (
    EnhancedRegions,
    RegionEnhancerConfig,
    RegionFeatureExtractor,
    SelfAttentionBlock,
    build_region_enhancer,
    split_enhanced_features,
)
from torch import nn

DIM = 16


def build(*, opened=True, geometry_dim=0, num_heads=2, layers=(2, 1), dropout=0.0):
    """A small module; `opened` gives the gate random values, as after some training."""
    torch.manual_seed(0)
    module = RegionFeatureExtractor(DIM, num_heads, layers[0], layers[1], dropout, geometry_dim=geometry_dim)
    if opened:
        nn.init.normal_(module.gate.gate)
    return module


def inputs(batch=2, regions=3, tokens=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = {"rgb_features": regions, "depth_features": regions, "image_features": tokens}
    return {key: torch.randn(batch, n, DIM, generator=generator, dtype=dtype) for key, n in shapes.items()}


def one_image(batched, index):
    return {key: value[index] for key, value in batched.items()}


# Contract


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("with_depth", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_exactly_the_identity_at_initialisation(train, with_image, with_depth, with_mask):  # T29
    module = build(opened=False, dropout=0.5, geometry_dim=4).train(train)
    given = inputs()
    enhanced = module(
        given["rgb_features"],
        given["depth_features"] if with_depth else None,
        given["image_features"] if with_image else None,
        torch.tensor([[True, True, False], [False] * 3]) if with_mask else None,
        torch.rand(2, 3, 4),
    )
    assert torch.equal(enhanced.rgb, given["rgb_features"])
    if with_depth:
        assert torch.equal(enhanced.depth, given["depth_features"])
    else:
        assert enhanced.depth is None


@pytest.mark.parametrize("batch", [1, 3])
def test_rank_in_is_rank_out(batch):  # T27
    module = build()
    given = inputs(batch=batch)
    batched = module(**given)
    assert batched.rgb.shape == batched.depth.shape == (batch, 3, DIM)
    single = module(**one_image(given, 0))
    assert single.rgb.shape == single.depth.shape == (3, DIM)
    torch.testing.assert_close(single.rgb, batched.rgb[0])
    masked = module(**one_image(given, 0), region_mask=torch.tensor([True, True, True]))
    torch.testing.assert_close(masked.depth, batched.depth[0])


@pytest.mark.parametrize(("batch", "regions"), [(2, 0), (0, 3), (0, 0)])
def test_no_regions_and_no_images_are_legal(batch, regions):  # T24
    enhanced = build()(**inputs(batch, regions))
    assert enhanced.rgb.shape == enhanced.depth.shape == (batch, regions, DIM)


def test_no_image_tokens_is_like_no_image():
    module = build()
    given = inputs(tokens=0)
    with_none = module(given["rgb_features"], given["depth_features"])
    torch.testing.assert_close(module(**given).rgb, with_none.rgb)


@pytest.mark.parametrize("layers", [(0, 0), (2, 0), (0, 2)])
def test_numbers_of_layers_take_effect_and_zero_is_legal(layers):  # T30
    module = build(layers=layers)
    assert (len(module.self_attention_layers), len(module.cross_attention_layers)) == layers
    given = inputs()
    sees_image = not torch.equal(module(**given).rgb, module(**given | {"image_features": torch.randn(2, 5, DIM)}).rgb)
    others = given | {"rgb_features": given["rgb_features"].clone()}
    others["rgb_features"][:, 1:] = torch.randn(2, 2, DIM)
    sees_regions = not torch.allclose(module(**given).rgb[:, 0], module(**others).rgb[:, 0])
    assert (sees_regions, sees_image) == (layers[0] > 0, layers[1] > 0)


def test_type_in_is_type_out_under_autocast():
    given = {key: value.bfloat16() for key, value in inputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enhanced = build()(**given)
    assert enhanced.rgb.dtype == enhanced.depth.dtype == torch.bfloat16


def test_heads_must_divide_the_width():  # T25
    with pytest.raises(ValueError, match="multiple of num_heads, got dim=16 and num_heads=3"):
        build(num_heads=3)


def test_negative_geometry_is_refused():
    with pytest.raises(ValueError, match="geometry_dim must be 0 or more, got -1"):
        build(geometry_dim=-1)


@pytest.mark.parametrize(
    "change",
    [
        {"rgb_features": torch.zeros(2, 3, DIM + 1), "depth_features": None, "image_features": None},
        {"depth_features": torch.zeros(2, 4, DIM)},
        {"image_features": torch.zeros(2, 5, DIM + 2)},
        {"image_features": torch.zeros(3, 5, DIM)},
        {"image_features": torch.zeros(5, DIM)},
        {"geometry": torch.zeros(2, 3, 4)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(change):  # T25, T26
    # The annotations speak first where they are checked; without them the module's own message does.
    with pytest.raises((ValueError, TypeCheckError)):
        build()(**inputs() | change)


def test_own_messages_name_the_input():
    module = build()
    with pytest.raises(ValueError, match=r"expected rgb_features of shape \[batch, regions, 16\]"):
        module(torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match=r"built with geometry_dim=0, got geometry of shape \(2, 3, 4\)"):
        module(torch.zeros(2, 3, DIM), geometry=torch.zeros(2, 3, 4))
    # The annotations of `forward` would speak first here, so the check is called by itself.
    with pytest.raises(ValueError, match=r"depth_features must have the shape of rgb_features, \(2, 3, 16\)"):
        module._check(torch.zeros(2, 3, DIM), torch.zeros(2, 4, DIM), None, None)
    with pytest.raises(ValueError, match=r"image_features of shape \[2, tokens, 16\], got \(2, 5, 8\); project"):
        module._check(torch.zeros(2, 3, DIM), None, torch.zeros(2, 5, 8), None)


# Invariance


@pytest.mark.parametrize("with_depth", [False, True])
def test_padding_changes_nothing_whatever_it_holds(with_depth):  # T24, T26
    module = build(geometry_dim=3)
    given, geometry = inputs(batch=1), torch.rand(1, 3, 3)
    if not with_depth:
        given["depth_features"] = None
    alone = module(**given, geometry=geometry)
    for filling in (0.0, 1e4, float("nan")):
        padding = torch.full((1, 2, DIM), filling)
        padded = {
            key: value if key == "image_features" or value is None else torch.cat([value, padding], dim=1)
            for key, value in given.items()
        }
        mask = torch.tensor([[True, True, True, False, False]])
        padded_geometry = torch.cat([geometry, torch.full((1, 2, 3), filling)], dim=1)
        enhanced = module(**padded, region_mask=mask, geometry=padded_geometry)
        torch.testing.assert_close(enhanced.rgb[:, :3], alone.rgb)
        torch.testing.assert_close(enhanced.rgb[:, 3:], padding, equal_nan=True)
        if with_depth:
            torch.testing.assert_close(enhanced.depth[:, :3], alone.depth)


def test_batch_equals_one_by_one():
    module = build()
    given = inputs(batch=3)
    batched = module(**given)
    for index in range(3):
        single = module(**one_image(given, index))
        torch.testing.assert_close(batched.rgb[index], single.rgb)
        torch.testing.assert_close(batched.depth[index], single.depth)


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(4)))
def test_permuting_the_regions_permutes_the_result(order):  # T21
    module = build(geometry_dim=2).double()
    given, geometry = inputs(regions=4, dtype=torch.float64), torch.rand(2, 4, 2, dtype=torch.float64)
    moved = {key: value if key == "image_features" else value[:, order] for key, value in given.items()}
    expected, found = module(**given, geometry=geometry), module(**moved, geometry=geometry[:, order])
    torch.testing.assert_close(found.rgb, expected.rgb[:, order])
    torch.testing.assert_close(found.depth, expected.depth[:, order])


def test_without_depth_the_same_weights_serve():  # T28
    module = build()
    given = inputs()
    names = set(module.state_dict())
    with_depth, without = module(**given), module(**given | {"depth_features": None})
    assert without.depth is None
    assert set(module.state_dict()) == names
    assert not torch.allclose(with_depth.rgb, without.rgb)


def test_modalities_are_told_apart():  # T28
    module = build()
    given = inputs()
    swapped = given | {"rgb_features": given["depth_features"], "depth_features": given["rgb_features"]}
    assert not torch.allclose(module(**given).rgb, module(**swapped).depth)


def test_geometry_matters_and_enters_the_layers_only():  # T22
    module = build(geometry_dim=2)
    given = inputs()
    near, far = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    assert not torch.allclose(module(**given, geometry=near).rgb, module(**given, geometry=far).rgb)
    assert torch.equal(module(**given, geometry=near).rgb, module(**given).rgb)
    nn.init.zeros_(module.gate.gate)
    assert torch.equal(module(**given, geometry=far).rgb, given["rgb_features"])


# Gradients


@pytest.mark.parametrize("absent", [(), ("depth_features",), ("image_features",), ("depth_features", "image_features")])
@pytest.mark.parametrize("regions", [0, 3])
def test_every_parameter_gets_a_gradient_in_every_call(absent, regions):  # T38
    module = build(geometry_dim=2)
    given = inputs(regions=regions) | dict.fromkeys(absent)
    enhanced = module(**given)
    enhanced.rgb.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_the_closed_gate_opens_and_lets_gradients_through_from_the_second_step():
    module = build(opened=False)
    given, target = inputs(), torch.randn(2, 3, DIM)

    def gradients():
        module.zero_grad()
        enhanced = module(**given)
        (enhanced.rgb - target).square().mean().backward()
        return {name: parameter.grad.abs().sum().item() for name, parameter in module.named_parameters()}

    first = gradients()
    assert first["gate.gate"] > 0
    assert all(value == 0 for name, value in first.items() if name != "gate.gate")
    with torch.no_grad():
        module.gate.gate -= 0.1 * module.gate.gate.grad
    # A key's bias cancels in the softmax; everything else learns.
    assert all(value > 0 for name, value in gradients().items() if "attention.key.bias" not in name)


def test_a_batch_may_mix_images_with_and_without_depth():  # T28
    module, batch = build(), inputs()
    depth_mask = torch.tensor([[True] * 3, [False] * 3])
    mixed = module(**batch, depth_mask=depth_mask)
    with_depth = module(**one_image(batch, 0))
    without = one_image(batch, 1)
    without.pop("depth_features")
    torch.testing.assert_close(mixed.rgb[0], with_depth.rgb)
    torch.testing.assert_close(mixed.depth[0], with_depth.depth)
    torch.testing.assert_close(mixed.rgb[1], module(**without).rgb)
    assert not torch.allclose(mixed.rgb[1], module(**one_image(batch, 1)).rgb)


def test_padding_gets_no_gradient_from_other_regions():
    module = build()
    given = inputs(batch=1)
    given["rgb_features"].requires_grad_()
    module(**given, region_mask=torch.tensor([[True, True, False]])).rgb[:, :2].sum().backward()
    assert torch.equal(given["rgb_features"].grad[0, 2], torch.zeros(DIM))
    assert given["rgb_features"].grad[0, :2].abs().min() > 0


def test_gradcheck():
    torch.manual_seed(0)
    module = RegionFeatureExtractor(4, num_heads=2, num_transformer_layers=1, dropout=0.0, geometry_dim=1).double()
    nn.init.normal_(module.gate.gate)
    shapes = ((1, 2, 4), (1, 2, 4), (1, 1, 4), (1, 2, 1))
    tensors = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    mask = torch.tensor([[True, False]])
    assert torch.autograd.gradcheck(
        lambda rgb, depth, image, geometry: tuple(module(rgb, depth, image, mask, geometry)), tensors
    )


def test_gradient_checkpointing_changes_no_number():
    module = build(dropout=0.2)
    given = inputs()
    results = []
    for checkpointing in (False, True):
        module.gradient_checkpointing = checkpointing
        module.zero_grad()
        torch.manual_seed(3)
        enhanced = module(**given)
        enhanced.rgb.square().sum().backward()
        results.append([enhanced.rgb.detach(), *(parameter.grad.clone() for parameter in module.parameters())])
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_gradient_checkpointing_recomputes():
    module = build()
    module.gradient_checkpointing = True
    calls = []
    module.self_attention_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    module(**inputs()).rgb.sum().backward()
    assert len(calls) == 2
    module.eval()
    module(**inputs()).rgb.sum().backward()
    assert len(calls) == 3


# Builder, saving, splitting


def test_builder_takes_the_guides_dictionary():  # T30, T32
    module = build_region_enhancer({"num_heads": 4, "num_transformer_layers": 1, "activation": "relu"}, DIM)
    assert len(module.self_attention_layers) == 1
    layer = module.self_attention_layers[0]
    assert isinstance(layer, SelfAttentionBlock)
    assert layer.attention.num_heads == 4
    assert isinstance(layer.feed_forward.activation, nn.ReLU)
    assert layer.dropout.p == 0.1
    settings = RegionEnhancerConfig(num_heads=2, num_transformer_layers=0)
    assert len(build_region_enhancer(settings, DIM, geometry_dim=3).self_attention_layers) == 0


def test_builder_refuses_unknown_keys():  # T31
    with pytest.raises(ValueError, match=r"unknown key 'num_layers'"):
        build_region_enhancer({"num_layers": 4}, DIM)


def test_weights_round_trip():  # T35
    module, other = build(), build(opened=False)
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(**inputs()).rgb, other(**inputs()).rgb)


@pytest.mark.parametrize("shape", [(2, 6, DIM), (6, DIM)])
def test_split_uses_the_number_of_regions(shape):  # T23
    enhanced = torch.randn(shape)
    rgb, depth = split_enhanced_features(enhanced, 3)
    assert rgb is not None
    assert depth is not None
    assert torch.equal(torch.cat([rgb, depth], dim=-2), enhanced)
    rgb, depth = split_enhanced_features(enhanced, 6)
    assert rgb is enhanced
    assert depth is None


def test_split_passes_pairs_and_nothing():  # T23
    assert split_enhanced_features(None, 3) == (None, None)
    pair = EnhancedRegions(torch.zeros(2, 3, DIM), torch.ones(2, 3, DIM))
    assert split_enhanced_features(pair, 3) == (pair.rgb, pair.depth)
    assert split_enhanced_features(EnhancedRegions(pair.rgb, None), 3)[1] is None


def test_split_refuses_other_lengths():  # T23
    with pytest.raises(ValueError, match=r"expected 3 enhanced tokens \(RGB\) or 6 \(RGB and depth\), got 5"):
        split_enhanced_features(torch.zeros(2, 5, DIM), 3)
    with pytest.raises(ValueError, match="expected 4 enhanced regions, got 3"):
        split_enhanced_features(EnhancedRegions(torch.zeros(2, 3, DIM), None), 4)
