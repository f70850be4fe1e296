"""Token grids: a flat sequence of vision tokens as a feature map, and back.

A vision tower returns `(batch, tokens, dim)`: some prefix tokens (class token, registers), then the patches of the
image row by row. `TokenGrid` says how many of each; it is computed from the image or the sequence, never a constant.
"""

import math
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Layout of a token sequence: prefix tokens, then `height * width` patches in row-major order.

    Args:
        height: Patches from top to bottom.
        width: Patches from left to right.
        num_prefix_tokens: Tokens before the first patch (class token, registers).
    """

    height: int
    width: int
    num_prefix_tokens: int = 0

    def __post_init__(self) -> None:
        """Check the sizes."""
        if self.height < 1 or self.width < 1 or self.num_prefix_tokens < 0:
            raise ValueError(f"a token grid needs height, width >= 1 and num_prefix_tokens >= 0, got {self!r}")

    @property
    def num_patches(self) -> int:
        """Tokens that belong to the map."""
        return self.height * self.width

    @property
    def num_tokens(self) -> int:
        """Length of the whole sequence, prefix included."""
        return self.num_prefix_tokens + self.num_patches

    @classmethod
    def from_image(cls, height: int, width: int, patch_size: int, num_prefix_tokens: int = 0) -> "TokenGrid":
        """Grid of an image in pixels cut into whole patches, the remainder dropped as a strided convolution does.

        Raises:
            ValueError: The image is smaller than one patch.
        """
        if patch_size < 1 or height < patch_size or width < patch_size:
            raise ValueError(f"an image of {height} x {width} pixels holds no patch of {patch_size} pixels")
        return cls(height // patch_size, width // patch_size, num_prefix_tokens)

    @classmethod
    def infer(cls, num_tokens: int, num_prefix_tokens: int = 0, aspect: int | float | None = None) -> "TokenGrid":
        """Grid of a sequence of known length: square, or the one whose width / height is nearest to `aspect`.

        Args:
            num_tokens: Length of the sequence, prefix included.
            num_prefix_tokens: Tokens before the first patch.
            aspect: Width / height of the image. Only exact factorisations of the patch count are considered, and the
                nearest must lie within one patch of the ratio asked for; None means square.

        Raises:
            ValueError: No such grid has that many tokens.
        """
        num_patches = num_tokens - num_prefix_tokens
        got = f"{num_tokens} tokens with {num_prefix_tokens} prefix tokens"
        if num_patches < 1:
            raise ValueError(f"{got} leave no patch for a grid")
        if aspect is None:
            side = math.isqrt(num_patches)
            if side * side != num_patches:
                raise ValueError(
                    f"{got} leave {num_patches} patches, not a square; give the image's aspect (width / height), "
                    f"or another num_prefix_tokens"
                )
            return cls(side, side, num_prefix_tokens)
        if not 0 < aspect < math.inf:
            raise ValueError(f"aspect is width / height of the image, a positive number; got {aspect!r}")
        heights = (factor for factor in range(1, num_patches + 1) if num_patches % factor == 0)
        height = min(heights, key=lambda rows: abs(math.log(num_patches / (rows * rows * aspect))))
        width = num_patches // height
        if abs(width - aspect * height) > max(1.0, aspect):
            raise ValueError(
                f"{got} leave {num_patches} patches; the grid nearest to aspect {aspect:g} is {height} x {width} "
                f"(height x width), more than one patch away"
            )
        return cls(height, width, num_prefix_tokens)


def tokens_to_map(
    tokens: Shaped[Tensor, "batch tokens dim"], grid: TokenGrid
) -> Shaped[Tensor, "batch dim height width"]:
    """Drop the prefix tokens and lay the patches out as a feature map (a view, nothing is copied).

    Raises:
        ValueError: The sequence is not as long as the grid says.
    """
    if tokens.shape[1] != grid.num_tokens:
        raise ValueError(f"got {tokens.shape[1]} tokens, expected {grid.num_tokens} for {grid!r}")
    patches = tokens[:, grid.num_prefix_tokens :]
    return patches.unflatten(1, (grid.height, grid.width)).permute(0, 3, 1, 2)


def map_to_tokens(
    feature_map: Shaped[Tensor, "batch dim height width"],
) -> Shaped[Tensor, "batch patches dim"]:
    """Read a feature map row by row as a sequence of patches, without prefix tokens."""
    return feature_map.flatten(2).transpose(1, 2)
