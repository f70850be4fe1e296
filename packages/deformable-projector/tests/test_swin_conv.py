import pytest
import torch
from deformable_projector import SwinConvProjector
from torch.nn import functional as F


def test_names_are_those_of_the_published_file():
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"layer1.0.{name}.weight" for name in ("conv1", "conv2", "downsample.0")}
    expected |= {f"layer1.0.{norm}.{name}" for norm in ("bn1", "bn2", "downsample.1") for name in statistics}
    assert set(SwinConvProjector(4, 6, 8).state_dict()) == expected | {"fc.weight", "fc.bias"}


def test_parameters_of_the_real_sizes():
    with torch.device("meta"):
        base, large = (SwinConvProjector(dim, 2048) for dim in (1024, 1536))
    assert sum(p.numel() for p in base.parameters()) == 62_928_896
    assert round(sum(p.numel() for p in large.parameters()) / 1e6, 2) == 73.41


@pytest.mark.parametrize("repeats", [1, 2])
def test_equals_the_block_written_out(repeats):
    """Trap: the published weights were trained with the second convolution applied twice, nothing in between."""
    projector = SwinConvProjector(4, 6, 8, repeats).eval()
    for name, buffer in projector.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    w = projector.state_dict()

    def normalise(x, name):
        mean, var, scale, shift = (
            w[f"layer1.0.{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    x = torch.randn(2, 4, 5, 6)
    out = normalise(F.conv2d(x, w["layer1.0.conv1.weight"], stride=2, padding=1), "bn1").relu()
    for _ in range(repeats):
        out = F.conv2d(out, w["layer1.0.conv2.weight"], padding=1)
    skip = normalise(F.conv2d(x, w["layer1.0.downsample.0.weight"], stride=2), "downsample.1")
    out = (normalise(out, "bn2") + skip).relu()
    expected = out.permute(0, 2, 3, 1).reshape(2, 9, 8) @ w["fc.weight"].T + w["fc.bias"]
    torch.testing.assert_close(projector(x), expected)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 8), (1, 1), (2, 7)])
def test_the_grid_is_that_of_the_tokens(height, width):
    projector = SwinConvProjector(4, 6, 8).eval()
    rows, columns = projector.grid(height, width)
    assert projector.layer1(torch.randn(1, 4, height, width)).shape[2:] == (rows, columns)
    assert projector(torch.randn(1, 4, height, width)).shape == (1, rows * columns, 6)


def test_one_token_in_the_batch_cannot_train_batch_normalisation():
    projector = SwinConvProjector(4, 6, 8)
    one = torch.randn(1, 4, 2, 2)
    with pytest.raises(ValueError, match="one map of 2 x 2; use a larger batch or image, or call eval"):
        projector(one)
    assert projector(one.expand(2, -1, -1, -1)).shape == (2, 1, 6)
    assert projector.eval()(one).shape == (1, 1, 6)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="conv2_repeats must be 1, or 2 for PSALM's published weights, got 3"):
        SwinConvProjector(4, 6, 8, 3)
    with pytest.raises(ValueError, match="at least 1, got 4, 0 and 8"):
        SwinConvProjector(4, 0, 8)
    with pytest.raises(ValueError, match="has 5 channels, the projector expects 4"):
        SwinConvProjector(4, 6, 8)(torch.randn(2, 5, 4, 4))
