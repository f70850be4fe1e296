import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from region_core import TokenGrid, map_to_tokens, tokens_to_map

# contract


def test_counts():
    grid = TokenGrid(3, 5, num_prefix_tokens=2)
    assert (grid.num_patches, grid.num_tokens) == (15, 17)


@pytest.mark.parametrize("sizes", [(0, 3, 0), (3, 0, 0), (3, 3, -1)])
def test_impossible_grid(sizes):
    with pytest.raises(ValueError, match="height, width >= 1 and num_prefix_tokens >= 0, got TokenGrid"):
        TokenGrid(*sizes)


def test_wrong_number_of_tokens():
    with pytest.raises(ValueError, match=r"got 16 tokens, expected 17 for TokenGrid\(height=4, width=4, num_prefix"):
        tokens_to_map(torch.zeros(2, 16, 8), TokenGrid(4, 4, 1))


def test_from_image_drops_the_remainder_as_a_patch_convolution_does():  # T45
    grid = TokenGrid.from_image(392, 500, 14)
    convolved = torch.nn.Conv2d(1, 1, 14, 14)(torch.zeros(1, 1, 392, 500))
    assert (grid.height, grid.width) == tuple(convolved.shape[2:]) == (28, 35)
    with pytest.raises(ValueError, match="13 x 500 pixels holds no patch of 14"):
        TokenGrid.from_image(13, 500, 14)


def test_infer_square_grids():
    assert TokenGrid.infer(729) == TokenGrid(27, 27)
    assert TokenGrid.infer(257, num_prefix_tokens=1) == TokenGrid(16, 16, 1)
    with pytest.raises(ValueError, match="728 tokens with 0 prefix tokens leave 728 patches, not a square"):
        TokenGrid.infer(728)
    with pytest.raises(ValueError, match="leave no patch"):
        TokenGrid.infer(1, num_prefix_tokens=1)


def test_infer_from_aspect():
    assert TokenGrid.infer(28 * 35, aspect=500 / 392) == TokenGrid(28, 35)
    assert TokenGrid.infer(36, aspect=4 / 9) == TokenGrid(9, 4)
    assert TokenGrid.infer(36, aspect=1) == TokenGrid(6, 6)
    with pytest.raises(ValueError, match=r"13 patches; the grid nearest to aspect 1 is .* more than one patch away"):
        TokenGrid.infer(13, aspect=1.0)
    with pytest.raises(ValueError, match="aspect is width / height"):
        TokenGrid.infer(36, aspect=-1.0)


# reference


def test_map_holds_the_patches_row_by_row():
    grid = TokenGrid(2, 3, num_prefix_tokens=1)
    tokens = torch.arange(2 * 7 * 4).reshape(2, 7, 4)
    feature_map = tokens_to_map(tokens, grid)
    for batch in range(2):
        for row in range(2):
            for column in range(3):
                assert torch.equal(feature_map[batch, :, row, column], tokens[batch, 1 + 3 * row + column])


# properties and gradients


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(8, 32))
def test_infer_finds_the_grid_of_any_image(rows, columns, patch_size):
    grid = TokenGrid.from_image(rows * patch_size, columns * patch_size, patch_size, 1)
    assert TokenGrid.infer(grid.num_tokens, 1, aspect=columns / rows) == grid


def test_round_trip_and_gradient():
    grid = TokenGrid(2, 3, num_prefix_tokens=1)
    tokens = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    assert torch.equal(map_to_tokens(tokens_to_map(tokens, grid)), tokens[:, 1:])
    tokens_to_map(tokens, grid).sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[:, 0] == 0).all(), "a prefix token is no part of the map"
    assert (tokens.grad[:, 1:] == 1).all()
