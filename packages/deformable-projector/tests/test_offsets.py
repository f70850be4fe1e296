import torch
from deformable_projector.offsets import Float32Linear, star_offsets


def test_the_star_of_deformable_detr():
    """Eight heads look along the axes and diagonals, the k-th point k cells away in the larger direction."""
    offsets = star_offsets(8, 3, 4).view(8, 3, 4, 2)
    directions = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]).float()
    steps = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (directions[:, None, None] * steps[:, None]).expand(8, 3, 4, 2)
    torch.testing.assert_close(offsets, expected, atol=1e-5, rtol=0)


def test_the_offset_layer_stays_in_float32():
    layer = Float32Linear(8, 4)
    rows = torch.randn(2, 8)
    expected = layer(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(rows), expected)
    assert layer.bfloat16()(rows.bfloat16()).dtype == torch.float32
    assert layer.double()(rows.double()).dtype == torch.float64
