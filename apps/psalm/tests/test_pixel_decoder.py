"""The pixel decoder: equality with transformers and with a plain pyramid, float32 throughout, initialisation."""

import pytest
import torch
from psalm.pixel_decoder import PixelDecoder
from torch import nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.mask2former.modeling_mask2former import Mask2FormerModel

CHANNELS = [4, 8, 16, 32]


def small_config(**changes: object) -> Mask2FormerConfig:
    values = {
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 2,
        "decoder_layers": 4,
        "num_attention_heads": 4,
        "num_queries": 5,
    }
    return Mask2FormerConfig(**{**values, **changes})


def random_maps(batch: int = 2, side: int = 64, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, side // stride, side // stride, generator=generator)
        for channels, stride in zip(CHANNELS, (4, 8, 16, 32), strict=True)
    ]


def make(variant: str = "mask2former", seed: int = 0) -> PixelDecoder:
    torch.manual_seed(seed)
    return PixelDecoder(small_config(), CHANNELS, variant).eval()


def test_shapes_are_those_of_the_strides():
    features = make()(random_maps())
    assert features.mask_features.shape == (2, 16, 16, 16)
    assert [tuple(level.shape) for level in features.levels] == [(2, 32, 2, 2), (2, 32, 4, 4), (2, 32, 8, 8)]


def test_the_numbers_are_those_of_transformers():
    from transformers import SwinConfig

    swin = SwinConfig(image_size=64, embed_dim=4, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2)
    swin.out_features = ["stage1", "stage2", "stage3", "stage4"]
    torch.manual_seed(0)
    library = Mask2FormerModel(small_config(backbone_config=swin)).eval().pixel_level_module.decoder
    ours = make()
    ours.decoder.load_state_dict(library.state_dict())
    maps = random_maps()
    found, expected = ours(maps), library(maps)
    torch.testing.assert_close(found.mask_features, expected.mask_features)
    for ours_level, level in zip(found.levels, expected.multi_scale_features, strict=True):
        torch.testing.assert_close(ours_level, level)


def test_psalm_pyramid_is_the_plain_one():
    """Published PSALM weights: a bias in both convolutions and a ReLU behind the lateral norm (spec 5.2)."""
    decoder = make("psalm")
    parts = decoder.decoder
    assert {"adapter_1.0.bias", "layer_1.0.bias"} <= set(parts.state_dict())
    with torch.no_grad():
        for name in ("adapter_1", "layer_1"):
            nn.init.normal_(parts.get_submodule(name)[0].bias)
    maps = random_maps()
    found = decoder(maps)
    lateral_conv, lateral_norm, *_ = parts.adapter_1
    output_conv, output_norm, *_ = parts.layer_1
    lateral = F.conv2d(maps[0], lateral_conv.weight, lateral_conv.bias)
    lateral = F.relu(F.group_norm(lateral, 32, lateral_norm.weight, lateral_norm.bias))
    merged = lateral + F.interpolate(found.levels[-1], size=(16, 16), mode="bilinear", align_corners=False)
    merged = F.conv2d(merged, output_conv.weight, output_conv.bias, padding=1)
    merged = F.relu(F.group_norm(merged, 32, output_norm.weight, output_norm.bias))
    expected = F.conv2d(merged, parts.mask_projection.weight, parts.mask_projection.bias)
    torch.testing.assert_close(found.mask_features, expected)


def test_the_variants_differ():
    ours, published = make(), make("psalm")
    assert set(published.state_dict()) - set(ours.state_dict()) == {
        "decoder.adapter_1.0.bias",
        "decoder.layer_1.0.bias",
    }
    published.load_state_dict(ours.state_dict(), strict=False)
    nn.init.zeros_(published.decoder.adapter_1[0].bias)
    nn.init.zeros_(published.decoder.layer_1[0].bias)
    maps = random_maps()
    # Only the ReLU is left of the difference.
    assert (ours(maps).mask_features - published(maps).mask_features).abs().max() > 1e-3


def test_bf16_weights_maps_and_autocast_run_in_float32():
    """Spec 9.3: bf16 sampling on the CPU gives garbage from 16 x 16 maps up, so the maps here are that large."""
    decoder = make()
    decoder.bfloat16()
    maps = [features.bfloat16() for features in random_maps(side=256)]
    reference = make()
    reference.load_state_dict(decoder.state_dict())
    expected = reference([features.float() for features in maps])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(maps)
    assert found.mask_features.dtype == torch.float32
    assert {level.dtype for level in found.levels} == {torch.float32}
    torch.testing.assert_close(found.mask_features, expected.mask_features)
    found.mask_features.square().mean().backward()
    missing = [name for name, weight in decoder.named_parameters() if weight.grad is None]
    assert missing == []
    assert all(weight.grad.isfinite().all() for weight in decoder.parameters())


def test_a_wrong_number_of_maps_is_named():
    with pytest.raises(ValueError, match="got 3 maps, expected 4"):
        make()(random_maps()[1:])


class OuterConfig(PreTrainedConfig):
    model_type = "psalm_pixel_outer"


class Outer(PreTrainedModel):
    config_class = OuterConfig

    def __init__(self, config: OuterConfig) -> None:
        super().__init__(config)
        self.pixel_decoder = PixelDecoder(small_config(), CHANNELS, "psalm")
        self.post_init()


def test_nothing_is_left_uninitialised_inside_an_outer_model(tmp_path):
    """transformers 5 builds on the meta device: what no `_init_weights` fills is whatever memory held."""
    outer = Outer(OuterConfig())
    outer.save_pretrained(tmp_path)
    kept = {name: value for name, value in outer.state_dict().items() if "mask_projection" in name}
    import safetensors.torch

    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    opened, info = Outer.from_pretrained(tmp_path, output_loading_info=True)
    assert "pixel_decoder.decoder.level_embed" in info["missing_keys"]
    for model in (outer, opened):
        decoder = model.pixel_decoder.decoder
        assert 0.5 < decoder.level_embed.std() < 1.5
        attention = decoder.encoder.layers[0].self_attn
        assert not attention.sampling_offsets.weight.any()
        # Four heads look right, down, left and up, their points at distances 1 to 4.
        offsets = attention.sampling_offsets.bias.view(4, 3, 4, 2)
        torch.testing.assert_close(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
        torch.testing.assert_close(offsets[1, 2, 1], torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)
        assert not attention.attention_weights.weight.any()
        assert all(value.isfinite().all() and value.abs().max() < 10 for value in model.state_dict().values())
    assert torch.equal(
        opened.pixel_decoder.decoder.mask_projection.weight, kept["pixel_decoder.decoder.mask_projection.weight"]
    )
