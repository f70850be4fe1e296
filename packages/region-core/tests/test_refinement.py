import pytest
import torch
from region_core import FeatureRefinement, area_pool
from torch import nn


@pytest.mark.parametrize("num_stages", [0, 1, 2, 3])
def test_every_stage_doubles_any_grid(num_stages):
    module = FeatureRefinement(6, num_stages)
    refined = module(torch.randn(2, 6, 3, 5))
    assert module.factor == 2**num_stages
    assert refined.shape == (2, 6, 3 * 2**num_stages, 5 * 2**num_stages)
    assert area_pool(refined, module.factor).shape == (2, 6, 3, 5)


def test_no_stage_is_the_identity():
    feature_map = torch.randn(1, 4, 2, 2)
    assert torch.equal(FeatureRefinement(4, 0)(feature_map), feature_map)


def test_two_stages_are_deconv2x():
    kinds = [type(stage).__name__ for stage in FeatureRefinement(4, 2).stages]
    assert kinds == ["ConvTranspose2d", "ChannelNorm", "GELU", "ConvTranspose2d", "GELU"]


def test_transposed_convolution_by_hand():
    """A kernel of 2 with stride 2 writes one 2 x 2 block per cell: no cell sees another."""
    module = FeatureRefinement(3, 1).double()
    feature_map = torch.randn(1, 3, 2, 4, dtype=torch.float64)
    conv = module.stages[0]
    assert isinstance(conv, nn.ConvTranspose2d)
    assert conv.bias is not None
    for row, column, inner_row, inner_column in ((0, 0, 0, 1), (1, 3, 1, 0), (0, 2, 1, 1)):
        expected = feature_map[0, :, row, column] @ conv.weight[:, :, inner_row, inner_column] + conv.bias
        found = module(feature_map)[0, :, 2 * row + inner_row, 2 * column + inner_column]
        torch.testing.assert_close(found, nn.functional.gelu(expected))


def test_negative_stages_are_refused():
    with pytest.raises(ValueError, match="num_stages must be 0 or more, got -1"):
        FeatureRefinement(4, -1)


def test_area_pool_by_hand():
    feature_map = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert area_pool(feature_map, 2).flatten().tolist() == [2.5, 4.5]
    assert torch.equal(area_pool(feature_map, 1), feature_map)


@pytest.mark.parametrize("factor", [0, 3])
def test_area_pool_needs_blocks_that_tile(factor):
    with pytest.raises(ValueError, match=f"blocks of {factor}x{factor} do not tile a feature map of 2x4"):
        area_pool(torch.zeros(1, 1, 2, 4), factor)


def test_gradients_reach_every_parameter():
    module = FeatureRefinement(4, 2)
    feature_map = torch.randn(1, 4, 2, 3, requires_grad=True)
    module(feature_map).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert feature_map.grad is not None
    assert feature_map.grad.abs().sum() > 0


def test_gradcheck():
    module = FeatureRefinement(2, 2).double()
    assert torch.autograd.gradcheck(module, torch.randn(1, 2, 1, 2, dtype=torch.float64, requires_grad=True))
