"""Settings of the region loss, without torch: a command line can show and check them before anything heavy loads."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Negatives = Literal["cross_region", "cross_image"]
"""Which regions a region is contrasted with: all others, also of its own two images, or those of other images only."""

Pairing = Literal["auto", "label", "index"]
"""How the boxes of two images become pairs where a file does not list pairs: `auto` takes labels if both have them."""

DropReason = Literal["no_partner", "not_visible", "too_small", "over_cap"]
"""Why a region (`no_partner`) or a pair of regions takes no part in the loss, in the order in which it is asked."""


@dataclass(frozen=True)
class RegionLossConfig:
    """Which pairs of regions are made, and how they are contrasted.

    Attributes:
        temperature: Initial temperature; the learned scale starts at its inverse.
        max_scale: Upper bound of the learned scale.
        negatives: `cross_region`: every other region, except where it shows (nearly) the same thing, see the two
            overlap limits; `cross_image`: only regions of images other than the pair's own two.
        overlap_iou: A region of the same triplet whose box has a larger intersection over union is no negative.
        overlap_containment: Nor is one of which more than this share lies inside the other, or the other way round.
        pairing: How the boxes of two images become pairs where the box file does not list pairs.
        max_pairs_per_triplet: Of the pairs that the limits below leave; the rest is dropped and counted.
        use_changed_pairs: Give pairs that the caption changes ("make the dog a cat") their full weight. Pulling such
            regions together fights the caption, so by default their weight is 0.
        min_visible: Share of a box's area that must be left after the image transform.
        min_side_cells: Length in cells of the token grid that each side of a box must have after the transform.
        start_epoch: Epoch, counted from 0, at which the region loss sets in (the second of two stages).
        ramp_epochs: Epochs over which its weight then rises from 0 to its full value.
    """

    temperature: float = 0.07
    max_scale: float = 100.0
    negatives: Negatives = "cross_region"
    overlap_iou: float = 0.5
    overlap_containment: float = 0.8
    pairing: Pairing = "auto"
    max_pairs_per_triplet: int = 4
    use_changed_pairs: bool = False
    min_visible: float = 0.3
    min_side_cells: float = 0.5
    start_epoch: float = 0.0
    ramp_epochs: float = 0.0

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_choice("negatives", self.negatives, get_args(Negatives))
        _check_choice("pairing", self.pairing, get_args(Pairing))
        if not 1.0 <= self.max_scale < math.inf:
            raise ValueError(f"max_scale must be a finite number of at least 1, got {self.max_scale!r}")
        if not 1.0 / self.max_scale <= self.temperature < math.inf:
            raise ValueError(
                f"temperature must be at least 1 / max_scale = {1.0 / self.max_scale:g} and finite, "
                f"got {self.temperature!r}"
            )
        for name in ("overlap_iou", "overlap_containment", "min_visible"):
            value = vars(self)[name]
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
        for name in ("min_side_cells", "start_epoch", "ramp_epochs"):
            value = vars(self)[name]
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
        if self.max_pairs_per_triplet < 1:
            raise ValueError(f"max_pairs_per_triplet must be at least 1, got {self.max_pairs_per_triplet!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
