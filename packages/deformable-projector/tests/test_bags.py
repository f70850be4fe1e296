import gc

import pytest
import torch
from deformable_projector import bags
from deformable_projector.bags import sum_rows


def test_sums_rows_by_weight():
    table = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    rows = torch.tensor([[0, 2], [1, 1]], dtype=torch.int32)
    weights = torch.tensor([[1.0, 0.5], [1.0, -1.0]])
    assert torch.equal(sum_rows(table[None, :, None], rows, weights), torch.tensor([[3.0, 30.0], [0.0, 0.0]]))


def test_the_gradient_of_a_row_sums_over_every_entry_that_reads_it():
    table = torch.zeros(4, 1, requires_grad=True)
    rows = torch.tensor([[0, 2], [2, 2], [0, 1]])
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]], requires_grad=True)
    sum_rows(table[None, :, None], rows, weights).backward(torch.tensor([[1.0], [10.0], [100.0]]))
    assert torch.equal(table.grad.flatten(), torch.tensor([501.0, 0.0, 72.0, 0.0]))


def test_weights_alone_get_their_gradient():
    table = torch.tensor([[1.0], [2.0]])
    weights = torch.ones(1, 2, requires_grad=True)
    sum_rows(table[None, :, None], torch.tensor([[1, 0]]), weights).sum().backward()
    assert torch.equal(weights.grad, torch.tensor([[2.0, 1.0]]))


def scattered(batch, dim=10, heads=1):
    """The rows of a map with its channels first, as (batch, positions, heads, dim), and what to read of them."""
    value = torch.randn(batch, heads, dim, 42).permute(0, 3, 1, 2)
    return value, torch.randint(batch * 42 * heads, (5, 4)), torch.rand(5, 4)


@pytest.mark.parametrize("batch", [1, 2])
def test_scattered_rows_are_not_kept_for_the_backward(batch):
    """What stays between forward and backward is the map itself, not a copy of it that is held in some other way."""
    value, rows, weights = scattered(batch)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        sums = sum_rows(value, rows, weights.requires_grad_())
    gc.collect()
    held = [tensor for tensor in gc.get_objects() if type(tensor) is torch.Tensor and tensor.shape[-1:] == (10,)]
    for tensor in (*kept, *held):
        assert tensor.data_ptr() == value.data_ptr() or tensor.numel() < value.numel()
    sums.sum().backward()
    torch.testing.assert_close(weights.grad, value.reshape(-1, 10)[rows].sum(-1))


@pytest.mark.parametrize(("batch", "heads", "width"), [(1, 1, 4), (2, 1, 4), (2, 3, 4), (2, 1, 5), (2, 1, 99)])
def test_scattered_rows_a_few_channels_at_a_time(monkeypatch, batch, heads, width):
    """Trap: the last of the 10 channels are fewer than 4, and images follow each other in the numbers of the rows."""
    monkeypatch.setattr(bags, "MIN_TABLE_DIM", 1)
    monkeypatch.setattr(bags, "TABLE_NUMBERS", width * batch * 42 * heads)
    value, rows, weights = scattered(batch, heads=heads)
    results = []
    for way in (sum_rows, lambda value, rows, weights: (value.reshape(-1, 10)[rows] * weights[..., None]).sum(1)):
        leaves = value.clone().requires_grad_(), weights.clone().requires_grad_()
        assert not leaves[0].is_contiguous()
        sums = way(leaves[0], rows, leaves[1])
        sums.sin().sum().backward()
        results.append((sums, *(leaf.grad for leaf in leaves)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_values_in_several_dimensions():
    value = torch.randn(2, 3, 1, 4, requires_grad=True)
    sum_rows(value, torch.tensor([[5, 0]]), torch.tensor([[2.0, 3.0]])).sum().backward()
    assert torch.equal(value.grad[:, :, 0, 0], torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
