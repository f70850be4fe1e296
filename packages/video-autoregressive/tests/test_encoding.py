import pytest
import torch
from torch import nn
from video_autoregressive.encoding import encode_vit


class Patches(nn.Module):
    """A plain tower: the mean colour of patches of 4 pixels, behind some prefix tokens."""

    def __init__(self, num_prefix=0, patch=4):
        super().__init__()
        self.num_prefix = num_prefix
        self.convolution = nn.Conv2d(3, 5, patch, stride=patch)

    def forward(self, frames):
        patches = self.convolution(frames).flatten(2).transpose(1, 2)
        return torch.cat([patches.new_full((len(frames), self.num_prefix, 5), 100.0), patches], dim=1)


class Config:
    patch_size = 4


class Output:
    def __init__(self, hidden_states):
        self.hidden_states = hidden_states


class Tower(Patches):
    """A tower as transformers has them: a config, and hidden states on demand."""

    def __init__(self, num_prefix=0, patch_size=4):
        super().__init__(num_prefix)
        self.config = Config()
        self.config.patch_size = patch_size

    def forward(self, pixel_values, output_hidden_states=False):
        assert output_hidden_states
        tokens = super().forward(pixel_values)
        return Output((tokens, tokens + 1, tokens + 2))


def test_a_plain_module():
    tower, frames = Patches(), torch.randn(2, 3, 8, 12)
    features = encode_vit(tower, frames)
    assert features.grids == ((2, 3), (2, 3))
    assert torch.equal(torch.stack(features.split()), tower(frames))


@pytest.mark.parametrize(("layer", "plus"), [(-1, 2), (-2, 1), (0, 0)])
@pytest.mark.parametrize("num_prefix", [0, 1, 5])
@pytest.mark.parametrize("patch_size", [4, (4, 4)])
def test_a_tower_with_hidden_states(layer, plus, num_prefix, patch_size):
    """Trap: class token and registers have no place on the grid; 577 tokens are no square."""
    tower, frames = Tower(num_prefix, patch_size), torch.randn(2, 3, 8, 12)
    features = encode_vit(tower, frames, layer)
    assert features.grids == ((2, 3), (2, 3))
    expected = tower.convolution(frames).flatten(2).transpose(1, 2) + plus
    torch.testing.assert_close(torch.stack(features.split()), expected)


def test_pixels_that_fill_no_patch_are_dropped():
    assert encode_vit(Tower(), torch.randn(1, 3, 11, 9)).grids == ((2, 2),)


def test_a_grid_that_is_given():
    assert encode_vit(Patches(num_prefix=2), torch.randn(1, 3, 8, 12), grid=(2, 3)).rows.shape == (6, 5)


def test_frames_take_the_dtype_of_the_weights():
    features = encode_vit(Patches().bfloat16(), torch.randn(1, 3, 8, 8))
    assert features.rows.dtype == torch.bfloat16
    assert encode_vit(nn.Flatten(2, 3), torch.randn(1, 3, 2, 2), grid=(1, 3)).dim == 4


def test_what_is_not_tokens_is_refused():
    frames = torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"Identity: got shape \(1, 3, 8, 8\), expected features of shape"):
        encode_vit(nn.Identity(), frames)
    with pytest.raises(ValueError, match="Patches: got 4 tokens per frame for a grid of"):
        encode_vit(Patches(), frames, grid=(3, 3))
    with pytest.raises(ValueError, match="layer: got -2 for Patches"):
        encode_vit(Patches(), frames, layer=-2)
    with pytest.raises(ValueError, match="grid nearest to aspect"):
        encode_vit(Patches(num_prefix=1), frames)
