"""The mask decoder: equality with transformers, given queries, float32 throughout, initialisation."""

import pytest
import torch
from psalm.mask_decoder import MaskDecoder
from psalm.pixel_decoder import PixelFeatures
from transformers import Mask2FormerConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule


def small_config(**changes: object) -> Mask2FormerConfig:
    values = {
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "dim_feedforward": 32,
        "encoder_layers": 1,
        "decoder_layers": 5,
        "num_attention_heads": 4,
        "num_queries": 5,
    }
    return Mask2FormerConfig(**{**values, **changes})


def random_inputs(batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, PixelFeatures]:
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(batch, 32, side, side, generator=generator) for side in (2, 4, 8))
    features = PixelFeatures(torch.randn(batch, 16, 16, 16, generator=generator), levels)
    return torch.randn(batch, 5, 32, generator=generator), features


def make(seed: int = 0, **changes: object) -> MaskDecoder:
    torch.manual_seed(seed)
    return MaskDecoder(small_config(**changes)).eval()


def test_there_is_a_prediction_before_the_first_layer_and_after_every_layer():
    queries, features = random_inputs()
    decoded = make()(queries, features)
    assert [tuple(logits.shape) for logits in decoded.mask_logits] == [(2, 5, 16, 16)] * 5
    assert [tuple(states.shape) for states in decoded.states] == [(2, 5, 32)] * 5


@pytest.mark.parametrize("enforce", [False, True])
def test_the_numbers_are_those_of_transformers(enforce):
    """Given Mask2Former's own query features as queries, it is Mask2Former's decoder."""
    config = small_config(enforce_input_projection=enforce)
    library = Mask2FormerTransformerModule(in_features=32, config=config).eval()
    ours = make(enforce_input_projection=enforce)
    weights = {name: value for name, value in library.state_dict().items() if not name.startswith("queries_features")}
    ours.load_state_dict(weights)
    _, features = random_inputs()
    expected = library(list(features.levels), features.mask_features)
    found = ours(library.queries_features.weight.expand(2, -1, -1), features)
    for ours_logits, logits in zip(found.mask_logits, expected.masks_queries_logits, strict=True):
        torch.testing.assert_close(ours_logits, logits)
    for ours_states, states in zip(found.states, expected.intermediate_hidden_states, strict=True):
        torch.testing.assert_close(ours_states, states.transpose(0, 1))


def test_samples_do_not_see_each_other():
    queries, features = random_inputs()
    decoder = make()
    together = decoder(queries, features)
    for sample in range(2):
        own = slice(sample, sample + 1)
        levels = tuple(level[own] for level in features.levels)
        alone = decoder(queries[own], PixelFeatures(features.mask_features[own], levels))
        torch.testing.assert_close(together.mask_logits[-1][own], alone.mask_logits[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bf16_weights_inputs_and_autocast_run_in_float32(checkpointing):
    """Also when activation checkpointing runs a layer a second time, in backward and outside of forward."""
    decoder = make().bfloat16()
    reference = make()
    reference.load_state_dict(decoder.state_dict())
    queries, features = random_inputs()
    queries = queries.bfloat16()
    expected = reference(queries.float(), features)
    decoder.train()
    if checkpointing:
        # Renamed between the oldest and the newest supported transformers, with a warning about the old name.
        enable = getattr(decoder, "activation_checkpointing_enable", None) or decoder.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(queries, features)
    assert {tensor.dtype for tensor in (*found.mask_logits, *found.states)} == {torch.float32}
    torch.testing.assert_close(found.mask_logits[-1], expected.mask_logits[-1])
    sum(logits.square().mean() for logits in found.mask_logits).backward()
    sum(logits.square().mean() for logits in expected.mask_logits).backward()
    for (name, weight), other in zip(decoder.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight.grad.float(), other.grad, atol=1e-3, rtol=0.02, msg=name)


def test_gradients_reach_queries_and_features():
    queries, features = random_inputs()
    leaves = [queries, features.mask_features, *features.levels]
    for leaf in leaves:
        leaf.requires_grad_()
    decoded = make()(queries, features)
    (decoded.mask_logits[-1].sum() + decoded.states[-1].square().sum()).backward()
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves)


def test_dropout_is_refused_because_it_drops_layers():
    with pytest.raises(ValueError, match=r"got dropout 0\.1, expected 0"):
        make(dropout=0.1)


def test_a_wrong_number_of_queries_is_named():
    queries, features = random_inputs()
    with pytest.raises(ValueError, match="got 4 queries, expected 5"):
        make()(queries[:, 1:], features)


class OuterConfig(PreTrainedConfig):
    model_type = "psalm_mask_outer"


class Outer(PreTrainedModel):
    config_class = OuterConfig

    def __init__(self, config: OuterConfig) -> None:
        super().__init__(config)
        self.mask_decoder = MaskDecoder(small_config(enforce_input_projection=True))
        self.post_init()


def test_nothing_is_left_uninitialised_inside_an_outer_model(tmp_path):
    outer = Outer(OuterConfig())
    outer.save_pretrained(tmp_path)
    import safetensors.torch

    name = "mask_decoder.decoder.layernorm.weight"
    kept = {name: torch.full((32,), 2.0)}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    opened, info = Outer.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(outer.state_dict()) - {name}
    assert torch.equal(opened.state_dict()[name], kept[name])
    for model in (outer, opened):
        decoder = model.mask_decoder
        for table in (decoder.queries_embedder, decoder.level_embed):
            assert 0.7 < table.weight.std() < 1.3
        for projection in decoder.input_projections:
            # Uniform on [-a, a] with a^2 = 6 / (fan in + fan out), that is 6 / 64.
            assert 0.25 < projection.weight.abs().max() <= (6 / 64) ** 0.5
            assert not projection.bias.any()
        layer = decoder.decoder.layers[0]
        assert 0 < layer.cross_attn.in_proj_weight.std() < 1
        assert not layer.cross_attn.in_proj_bias.any()
        assert all(value.isfinite().all() and value.abs().max() < 10 for value in model.state_dict().values())
