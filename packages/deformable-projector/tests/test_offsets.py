import torch
from deformable_projector.offsets import star_offsets


def test_the_star_of_deformable_detr():
    """Eight heads look along the axes and diagonals, the k-th point k cells away in the larger direction."""
    offsets = star_offsets(8, 3, 4).view(8, 3, 4, 2)
    directions = torch.tensor([[1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]]).float()
    steps = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = (directions[:, None, None] * steps[:, None]).expand(8, 3, 4, 2)
    torch.testing.assert_close(offsets, expected, atol=1e-5, rtol=0)
