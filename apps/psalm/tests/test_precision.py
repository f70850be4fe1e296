"""Float32 layers: the same names and numbers as torch's, and float32 whatever the weights are."""

import pytest
import torch
from psalm.precision import compute_in_float32
from torch import nn

LAYERS = {
    "linear": (lambda: nn.Linear(4, 6), (3, 4)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), (3, 4)),
    "conv": (lambda: nn.Conv2d(4, 6, kernel_size=3, padding=1), (2, 4, 5, 5)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 3, 3)),
    "layer norm": (lambda: nn.LayerNorm(4), (3, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_torch_computes(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    wide = nn.Sequential(make())
    compute_in_float32(wide)
    assert [key.removeprefix("0.") for key in wide.state_dict()] == list(plain.state_dict())
    inputs = torch.randn(shape)
    assert torch.equal(wide(inputs), plain(inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_bf16_weights_and_inputs_give_float32(name):
    make, shape = LAYERS[name]
    layer = make()
    layer.bfloat16()
    inputs = torch.randn(shape).bfloat16()
    reference = make()
    reference.load_state_dict(layer.state_dict())
    expected = reference(inputs.float())
    holder = nn.ModuleList([layer])
    compute_in_float32(holder)
    found = layer(inputs)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    found.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.bfloat16


def test_attention_computes_what_torch_computes():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2).bfloat16()
    reference = nn.MultiheadAttention(8, 2)
    reference.load_state_dict(attention.state_dict())
    compute_in_float32(attention)
    queries, keys = torch.randn(3, 2, 8).bfloat16(), torch.randn(5, 2, 8).bfloat16()
    mask = torch.rand(4, 3, 5) < 0.4
    mask[:, :, 0] = False
    expected, _ = reference(queries.float(), keys.float(), keys.float(), attn_mask=mask)
    found, weights = attention(queries, keys, keys, attn_mask=mask)
    assert weights is None
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_an_embedding_comes_out_wide():
    table = nn.Embedding(3, 4).bfloat16()
    compute_in_float32(table)
    rows = table(torch.tensor([2, 0]))
    assert rows.dtype == torch.float32
    assert torch.equal(rows, table.weight[[2, 0]].float())
