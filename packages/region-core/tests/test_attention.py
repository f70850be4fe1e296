import math

import pytest
import torch
from region_core import Attention, CrossAttentionBlock, FeedForward, LayerGate, SelfAttentionBlock
from torch import nn


def plain_attention(module, queries, context, key_mask):
    """Plain version: softmax(q k / sqrt(d)) v for one head and one sample at a time."""
    query, key, value = module.query(queries), module.key(context), module.value(context)
    head_dim = queries.shape[-1] // module.num_heads
    result = torch.zeros_like(query)
    for sample in range(len(queries)):
        allowed = key_mask[sample]
        for head in range(module.num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            scores = query[sample, :, part] @ key[sample, allowed, part].T / math.sqrt(head_dim)
            result[sample, :, part] = scores.softmax(-1) @ value[sample, allowed, part]
    return module.out(result)


def test_equals_the_plain_version():
    torch.manual_seed(0)
    module = Attention(8, 2).double()
    queries, context = torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(3, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, False, True, False, False], [False, False, False, False, True]])
    torch.testing.assert_close(module(queries, context, mask), plain_attention(module, queries, context, mask))
    everything = torch.ones_like(mask)
    torch.testing.assert_close(module(queries, context), plain_attention(module, queries, context, everything))


@pytest.mark.parametrize(("dim", "num_heads"), [(10, 4), (8, 0)])
def test_heads_must_divide_the_width(dim, num_heads):  # T25
    with pytest.raises(ValueError, match=f"dim={dim} and num_heads={num_heads}"):
        Attention(dim, num_heads)


def test_without_any_valid_key_zeros_and_no_nan():
    module = Attention(8, 2)
    queries, context = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    attended = module(queries, context, mask)
    attended.square().sum().backward()
    assert torch.equal(attended[1], torch.zeros(3, 8))
    assert attended[0].abs().sum() > 0
    assert context.grad is not None
    assert torch.equal(context.grad[1], torch.zeros(4, 8))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(("num_queries", "num_keys"), [(0, 4), (3, 0), (0, 0)])
def test_empty_axes_keep_every_parameter_in_the_graph(num_queries, num_keys):  # T38
    module = Attention(8, 2)
    attended = module(torch.randn(2, num_queries, 8), torch.randn(2, num_keys, 8))
    assert torch.equal(attended, torch.zeros(2, num_queries, 8))
    attended.sum().backward()
    assert all(p.grad is not None and torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_masked_keys_do_not_matter():
    module = Attention(8, 2)
    queries, context = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    mask = torch.tensor([[True, True, False, True, False]])
    other = torch.where(mask.unsqueeze(-1), context, torch.randn(1, 5, 8) * 100)
    torch.testing.assert_close(module(queries, context, mask), module(queries, other, mask))


@pytest.mark.parametrize("name", ["gelu", "relu", "silu"])
def test_activations_take_effect(name):  # T30
    module = FeedForward(4, activation=name)
    tokens = torch.randn(2, 4)
    inner = {"gelu": nn.functional.gelu, "relu": torch.relu, "silu": nn.functional.silu}[name](module.expand(tokens))
    torch.testing.assert_close(module(tokens), module.contract(inner))
    assert inner.shape == (2, 16)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'tanh'; known are gelu, relu, silu"):
        FeedForward(4, activation="tanh")


def test_gated_blocks_start_as_the_identity_and_learn():
    tokens, context = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    own, cross = SelfAttentionBlock(8, 2, gated=True), CrossAttentionBlock(8, 2, gated=True)
    assert torch.equal(own(tokens), tokens)
    assert torch.equal(cross(tokens, context), tokens)
    cross(own(tokens), context).square().sum().backward()
    gates = [gate for block in (own, cross) for gate in block.modules() if isinstance(gate, LayerGate)]
    assert len(gates) == 4
    assert all(gate.gate.grad is not None and gate.gate.grad.abs().sum() > 0 for gate in gates)


def test_gate_resets_to_zero():
    gate = LayerGate(3)
    nn.init.ones_(gate.gate)
    gate.reset_parameters()
    assert torch.equal(gate(torch.randn(2, 3)), torch.zeros(2, 3))


def test_dropout_only_while_training():
    block = SelfAttentionBlock(8, 2, dropout=0.5)
    tokens = torch.randn(1, 4, 8)
    assert not torch.equal(block(tokens), block(tokens))
    block.eval()
    assert torch.equal(block(tokens), block(tokens))


@pytest.mark.parametrize("with_mask", [False, True])
def test_gradcheck(with_mask):
    block = CrossAttentionBlock(4, 2).double()
    mask = torch.tensor([[True, False, True], [False, False, False]]) if with_mask else None
    tokens = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, c: block(t, c, mask), (tokens, context))
