import pytest
import torch
from region_core.precision import Float32Linear
from torch import nn


def test_it_is_torchs_layer_in_float32():
    torch.manual_seed(0)
    plain = nn.Linear(8, 4)
    torch.manual_seed(0)
    layer = Float32Linear(8, 4)
    rows = torch.randn(2, 8)
    assert torch.equal(layer(rows), plain(rows))


@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_rows_in_bf16_give_float32(bias):
    layer = Float32Linear(8, 4, bias=bias).bfloat16()
    wide = nn.Linear(8, 4, bias=bias)
    wide.load_state_dict(layer.state_dict())
    rows = torch.randn(2, 8).bfloat16()
    found = layer(rows)
    assert torch.equal(found, wide(rows.float()))
    found.sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16


def test_autocast_changes_nothing():
    layer = Float32Linear(8, 4)
    rows = torch.randn(2, 8)
    expected = layer(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(rows), expected)


def test_float64_stays():
    assert Float32Linear(8, 4).double()(torch.randn(2, 8).double()).dtype == torch.float64
