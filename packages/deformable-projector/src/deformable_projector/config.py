"""Settings of the deformable projector, without torch: a command line can check them before anything heavy loads."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

SamplingBackend = Literal["auto", "reference", "bags"]
"""How the sampling core computes: by `grid_sample`, by weighted sums of rows, or by the faster of the two."""

ReferencePoints = Literal["grid", "similarity", "topk", "centre"]
"""Where a query looks: its own cell, where the image resembles it (on average or at its peaks), the image's centre."""


@dataclass(frozen=True)
class DeformableProjectorConfig:
    """Sizes and choices of the aligner inside a `DeformableProjector`.

    Attributes:
        hidden_dim: Width of queries and values inside the aligner (`--mm_hidden_dim`).
        num_heads: Heads that sample independently (`--mm_n_heads`); must divide `hidden_dim`.
        num_points: Sampling points per head and level (`--mm_n_points`).
        reference_points: How a query without a given point finds its place. A `DeformableProjector` always uses
            `grid` on its own image; between images and for extra queries it uses this choice, and `similarity` where
            this says `grid`, because there is no common grid.
        top_k: Most similar places per query with `topk`.
        similarity_temperature: Divides cosines before their softmax; small means few places count.
        sample_first: Sample the raw features and project the samples (True), or project every position first. None
            chooses the cheaper order for the sizes at hand; the numbers are the same.
        backend: How the sampling core computes.
    """

    hidden_dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    reference_points: ReferencePoints = "grid"
    top_k: int = 10
    similarity_temperature: float = 0.1
    sample_first: bool | None = None
    backend: SamplingBackend = "auto"

    def __post_init__(self) -> None:
        """Check ranges."""
        flags = {"hidden_dim": "--mm_hidden_dim", "num_heads": "--mm_n_heads", "num_points": "--mm_n_points"}
        for name in ("hidden_dim", "num_heads", "num_points", "top_k"):
            value = vars(self)[name]
            if value < 1:
                flag = f" ({flags[name]})" if name in flags else ""
                raise ValueError(f"{name}{flag} must be at least 1, got {value!r}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim (--mm_hidden_dim) must be a multiple of num_heads (--mm_n_heads), "
                f"got {self.hidden_dim} and {self.num_heads}"
            )
        if self.hidden_dim % 4:
            raise ValueError(
                "hidden_dim (--mm_hidden_dim) must be a multiple of 4, for sines and cosines of x and y, "
                f"got {self.hidden_dim}"
            )
        if not 0.0 < self.similarity_temperature < math.inf:
            raise ValueError(f"similarity_temperature must be finite and above 0, got {self.similarity_temperature!r}")
        for name, choices in (("reference_points", ReferencePoints), ("backend", SamplingBackend)):
            check_choice(name, vars(self)[name], get_args(choices))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the choices, by name."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
