import pytest
import torch

DIMS = (4, 6, 8, 10)
SHAPES = ((8, 12), (4, 6), (2, 3), (1, 1))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def pyramid():
    """Random feature maps, finest first, not square, the coarsest of one cell."""

    def draw(batch=2, *, shapes=SHAPES, dims=DIMS, dtype=torch.float32, requires_grad=False):
        return [
            torch.randn(batch, dim, *shape, dtype=dtype).requires_grad_(requires_grad)
            for dim, shape in zip(dims, shapes, strict=True)
        ]

    return draw


@pytest.fixture
def valid_masks():
    """Per level True in the top left part of each image, given its share of (height, width)."""

    def draw(shares, *, shapes=SHAPES):
        masks = [torch.zeros(len(shares), *shape, dtype=torch.bool) for shape in shapes]
        for (height, width), mask in zip(shapes, masks, strict=True):
            for image, (rows, columns) in enumerate(shares):
                mask[image, : max(1, round(rows * height)), : max(1, round(columns * width))] = True
        return masks

    return draw


@pytest.fixture
def wake():
    """Moves every parameter: at initialisation too much is zero to see anything."""

    def move(module):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return module

    return move
