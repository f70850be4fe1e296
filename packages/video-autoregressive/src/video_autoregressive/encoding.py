"""Frames through a vision transformer, to features of their patches."""

from collections.abc import Callable

from jaxtyping import Float
from region_core.grids import TokenGrid
from torch import Tensor, nn

from video_autoregressive.features import FrameFeatures, Grid

Encoder = Callable[[nn.Module, Tensor], FrameFeatures]
"""A function from an encoder and frames that are normalised for it to features, for instance `encode_vit`."""


def encode_vit(
    tower: nn.Module, frames: Float[Tensor, "frames 3 height width"], layer: int = -1, grid: Grid | None = None
) -> FrameFeatures:
    """Encode frames with a vision transformer of transformers, or any module from frames to tokens.

    Args:
        tower: A module with a `config`, which is asked for its hidden states, or a plain one that returns
            (frames, tokens, dim).
        frames: Normalised for the tower; brought to the dtype of its weights.
        layer: Hidden state to take; -1 is the last (of transformers' towers before their final norm).
        grid: (height, width) in patches. None: the tower's `patch_size`, or without one the shape that the number of
            tokens allows at the frames' aspect. Tokens in front of the patches (class token, registers) are dropped.

    Raises:
        ValueError: The tower returns something else, or fewer tokens than the grid has.
    """
    weight = next(tower.parameters(), None)
    if weight is not None:
        frames = frames.to(weight.dtype)
    config = getattr(tower, "config", None)  # transformers' towers have one
    if config is not None:
        tokens = tower(frames, output_hidden_states=True).hidden_states[layer]
    elif layer == -1:
        tokens = tower(frames)
    else:
        raise ValueError(f"layer: got {layer} for {type(tower).__name__}, which has no hidden states to choose from")
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{type(tower).__name__}: got {got}, expected features of shape (frames, tokens, dim)")
    if grid is None:
        grid = _grid(getattr(config, "patch_size", None), frames, tokens.shape[1])
    num_prefix = tokens.shape[1] - grid[0] * grid[1]
    if num_prefix < 0:
        raise ValueError(f"{type(tower).__name__}: got {tokens.shape[1]} tokens per frame for a grid of {grid}")
    return FrameFeatures.uniform(tokens[:, num_prefix:], grid)


def _grid(
    patch_size: int | tuple[int, int] | list[int] | None,
    frames: Float[Tensor, "frames 3 height width"],
    num_tokens: int,
) -> Grid:
    height, width = frames.shape[2:]
    if patch_size is None:
        found = TokenGrid.infer(num_tokens, aspect=width / height)
        return found.height, found.width
    rows, columns = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    return height // rows, width // columns
