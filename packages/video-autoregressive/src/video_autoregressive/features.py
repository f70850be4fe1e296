"""Teacher features of frames whose grids may differ, packed row after row without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int]
"""(height, width) in patches."""


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Features of the patches of several frames.

    Attributes:
        rows: Frame after frame, within a frame row by row of its grid.
        grids: (height, width) of every frame.
    """

    rows: Float[Tensor, "tokens dim"]
    grids: tuple[Grid, ...]

    def __post_init__(self) -> None:
        """Check that the grids account for all rows."""
        expected = sum(height * width for height, width in self.grids)
        if self.rows.shape[0] != expected:
            raise ValueError(
                f"got {self.rows.shape[0]} rows of features for {len(self.grids)} frames whose grids have {expected} "
                "patches"
            )

    @classmethod
    def uniform(cls, features: Float[Tensor, "frames patches dim"], grid: Grid) -> "FrameFeatures":
        """Frames that all have the same grid.

        Raises:
            ValueError: The grid has another number of patches.
        """
        return cls(features.flatten(0, 1), (grid,) * features.shape[0])

    @classmethod
    def concatenated(cls, parts: Sequence["FrameFeatures"]) -> "FrameFeatures":
        """The frames of all parts (at least one), in order."""
        return cls(torch.cat([part.rows for part in parts]), tuple(grid for part in parts for grid in part.grids))

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return len(self.grids)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.rows.shape[1]

    def split(self) -> list[Float[Tensor, "patches dim"]]:
        """The rows of each frame (views)."""
        return list(self.rows.split([height * width for height, width in self.grids]))
