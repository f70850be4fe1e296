import pytest
import torch
from deformable_projector import (
    DeformableProjectorConfig,
    SwinConvProjector,
    adapt_projector_weights,
    build_projector,
)
from torch.optim.swa_utils import update_bn

DIMS = (4, 6, 8, 10)
SHAPES = ((16, 24), (8, 12), (4, 6), (3, 5))


@pytest.fixture
def baseline():
    projector = SwinConvProjector(10, 12, 16, conv2_repeats=2)
    projector(torch.randn(4, 10, 6, 6))  # moves the running statistics
    return projector.eval()


@pytest.fixture
def projector():
    config = DeformableProjectorConfig(hidden_dim=8, num_heads=2)
    return build_projector("deformable", DIMS, 12, config=config, conv_dim=16, conv2_repeats=2).eval()


def named(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("prefix", ["", "mm_projector.", "model.mm_projector."])
def test_the_adapted_projector_is_the_baseline_to_the_bit(baseline, projector, pyramid, prefix):
    weights = named(baseline.state_dict(), prefix)
    if prefix:
        weights |= {"model.embed_tokens.weight": torch.zeros(3, 3), "lm_head.weight": torch.zeros(3, 3)}
    adapted = adapt_projector_weights(weights, projector)
    assert adapted.missing_statistics == ()
    projector.load_state_dict(adapted.weights, strict=True)
    maps = pyramid(shapes=SHAPES)
    expected = baseline(maps[-1])
    assert torch.equal(projector(maps).tokens, expected)
    assert torch.equal(projector(maps, reference_maps=pyramid()).tokens, expected)


def test_the_projector_and_the_file_stay_as_they_are(baseline, projector):
    before = {name: tensor.clone() for name, tensor in projector.state_dict().items()}
    adapted = adapt_projector_weights(baseline.state_dict(), projector)
    adapted.weights["base.fc.bias"].fill_(7.0)
    assert not (baseline.fc.bias == 7.0).any()
    for name, tensor in projector.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_published_files_lack_the_running_statistics(baseline, projector, pyramid):
    """Trap: upstream saves named parameters only; 0 and 1 are no statistics, and must be measured before evaluation."""
    parameters = named(dict(baseline.named_parameters()), "model.mm_projector.")
    adapted = adapt_projector_weights(parameters, projector)
    assert len(adapted.missing_statistics) == 9
    assert "base.layer1.0.bn1.running_mean" in adapted.missing_statistics
    projector.load_state_dict(adapted.weights, strict=True)
    # In training nothing depends on them.
    maps = pyramid(shapes=SHAPES)
    assert torch.equal(projector.train()(maps).tokens, baseline.train()(maps[-1]))
    # Measuring them makes evaluation defined: the mean over the batches, not a moving average from 0 and 1.
    batches = [torch.randn(8, 10, 6, 6) for _ in range(3)]
    update_bn(batches, projector.base)
    measured = torch.stack([projector.base.layer1[0].conv1(batch).mean(dim=(0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(projector.base.layer1[0].bn1.running_mean, measured)


def test_adapted_weights_may_be_adapted_again(baseline, projector, wake):
    once = adapt_projector_weights(baseline.state_dict(), projector)
    projector.load_state_dict(once.weights)
    wake(projector)
    twice = adapt_projector_weights(named(projector.state_dict(), "model.mm_projector."), projector)
    assert once.metadata["adapted_from"] == "swin_conv"
    assert twice.metadata["adapted_from"] == "deformable"
    for name, tensor in projector.state_dict().items():
        assert torch.equal(twice.weights[name], tensor)


def test_metadata_is_text_that_says_the_sizes(baseline, projector):
    metadata = adapt_projector_weights(baseline.state_dict(), projector).metadata
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["vision_dims"] == "4,6,8,10"
    assert (metadata["hidden_dim"], metadata["num_heads"], metadata["num_points"]) == ("8", "2", "4")
    assert (metadata["output_dim"], metadata["conv_dim"], metadata["conv2_repeats"]) == ("12", "16", "2")


def test_weights_that_do_not_fit_are_listed(baseline, projector):
    weights = dict(baseline.state_dict())
    del weights["layer1.0.conv2.weight"]
    weights["fc.bias"] = torch.zeros(13)
    weights["layer2.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match="same backbone") as error:
        adapt_projector_weights(weights, projector)
    message = str(error.value)
    assert "missing: base.layer1.0.conv2.weight" in message
    assert "unknown: base.layer2.0.conv1.weight" in message
    assert "another shape: base.fc.bias: weights [13], projector [12]" in message


def test_half_an_aligner_is_refused(baseline, projector):
    weights = dict(projector.state_dict())
    del weights["align.out_proj.bias"]
    with pytest.raises(ValueError, match=r"missing: align\.out_proj\.bias"):
        adapt_projector_weights(weights, projector)


def test_a_file_without_a_projector_or_with_two_is_refused(baseline, projector):
    with pytest.raises(ValueError, match=r"no projector among 1 weights: expected names like 'mm_projector.layer1"):
        adapt_projector_weights({"model.embed_tokens.weight": torch.zeros(1)}, projector)
    with pytest.raises(ValueError, match="no projector among 0 weights"):
        adapt_projector_weights({}, projector)
    weights = baseline.state_dict()
    with pytest.raises(ValueError, match=r"two weights are 'layer1.0.conv1.weight'"):
        adapt_projector_weights(named(weights, "mm_projector.") | named(weights, "ema.mm_projector."), projector)
