"""Region pairs through the images' transforms: move both boxes, cut them to the frame, drop what is hardly left, cap.

A transform that crops, pads or flips moves every box. Its affine maps normalised coordinates of the original image to
normalised coordinates of the model's input, as a (2, 3) matrix; the boxes follow the pixels through it. Works on numpy
arrays, as the data side does, without torch.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True, eq=False)
class FilteredPairs:
    """Pairs of boxes in the model's input frame.

    Attributes:
        reference: Boxes of the references, cut to the frame.
        target: Their partners in the targets.
        kept: Which of the pairs given are left; use it on what else belongs to them (weights, labels).
        dropped: Number of pairs lost by reason: `not_visible`, `too_small` and `over_cap`.
    """

    reference: Float[np.ndarray, "kept 4"]
    target: Float[np.ndarray, "kept 4"]
    kept: Bool[np.ndarray, " pairs"]
    dropped: dict[str, int]


def filter_pairs(
    reference_boxes: Float[np.ndarray, "pairs 4"],
    target_boxes: Float[np.ndarray, "partners 4"],
    reference_affine: Float[np.ndarray, "2 3"],
    target_affine: Float[np.ndarray, "2 3"],
    grid: tuple[int, int],
    *,
    min_visible: float = 0.3,
    min_side_cells: float = 0.5,
    max_pairs: int | None = None,
    weights: Float[np.ndarray, " weights"] | None = None,
) -> FilteredPairs:
    """Move paired boxes into the model's input frame and keep the pairs that both images still show.

    Args:
        reference_boxes: Normalised boxes of the original reference image.
        target_boxes: Their partners, normalised boxes of the original target image.
        reference_affine: From the original reference image to the model's input, normalised both.
        target_affine: The same for the target.
        grid: Patches of the model's input as (height, width).
        min_visible: A pair is dropped if less than this share of either box's area is inside the frame.
        min_side_cells: Or if a side of either is then shorter than this many cells of the grid.
        max_pairs: Keep so many of the pairs that are left, the first ones; all by default. Capped any earlier, pairs
            that are cut away would take the place of others.
        weights: Weight of each pair in the loss; the cap takes pairs with a weight before those without.

    Raises:
        ValueError: The numbers of boxes or weights differ, or an affine is not finite.
    """
    if len(reference_boxes) != len(target_boxes):
        raise ValueError(
            f"pairs need a target box for each reference box, got {len(target_boxes)} for {len(reference_boxes)}"
        )
    if weights is not None and len(weights) != len(reference_boxes):
        raise ValueError(f"pairs need one weight each, got {len(weights)} for {len(reference_boxes)}")
    reference = transform_boxes(reference_boxes, reference_affine)
    target = transform_boxes(target_boxes, target_affine)
    visible = _is_visible(reference, min_visible) & _is_visible(target, min_visible)
    reference, target = reference.clip(0, 1), target.clip(0, 1)
    large = _is_large(reference, grid, min_side_cells) & _is_large(target, grid, min_side_cells)
    usable = visible & large
    kept = usable if max_pairs is None else _cap(usable, max_pairs, weights)
    dropped = {
        "not_visible": int((~visible).sum()),
        "too_small": int((visible & ~large).sum()),
        "over_cap": int((usable & ~kept).sum()),
    }
    return FilteredPairs(reference[kept], target[kept], kept, dropped)


def transform_boxes(
    boxes: Float[np.ndarray, "regions 4"], affine: Float[np.ndarray, "2 3"]
) -> Float[np.ndarray, "regions 4"]:
    """Move boxes through an affine: the box around the four moved corners, not cut to the frame; flips keep order.

    Raises:
        ValueError: The affine is not finite.
    """
    if not np.isfinite(affine).all():
        raise ValueError(f"an affine must be finite, got {affine.tolist()}")
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    moved = corners @ affine[:, :2].T + affine[:, 2]
    return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)


def _cap(
    usable: Bool[np.ndarray, " pairs"], max_pairs: int, weights: Float[np.ndarray, " pairs"] | None
) -> Bool[np.ndarray, " pairs"]:
    rows = np.flatnonzero(usable)
    if weights is not None:
        rows = rows[np.argsort(weights[rows] == 0, kind="stable")]
    kept = np.zeros_like(usable)
    kept[rows[:max_pairs]] = True
    return kept


def _is_visible(boxes: Float[np.ndarray, "pairs 4"], min_visible: float) -> Bool[np.ndarray, " pairs"]:
    return _area(boxes.clip(0, 1)) >= min_visible * _area(boxes)


def _is_large(
    boxes: Float[np.ndarray, "pairs 4"], grid: tuple[int, int], min_side_cells: float
) -> Bool[np.ndarray, " pairs"]:
    height, width = grid
    return ((boxes[:, 2:] - boxes[:, :2]) * [width, height] >= min_side_cells).all(axis=1)


def _area(boxes: Float[np.ndarray, "pairs 4"]) -> Float[np.ndarray, " pairs"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
