"""Which region of the reference corresponds to which of the target.

Boxes that are keyed by image say nothing about that: the same image is the reference of one triplet and the target of
another, with other partners. So, in order of trust: a file that lists pairs per triplet (see `box_files`); labels,
equal ones matched from the largest box down; or the bare order of the boxes. What finds no partner is counted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float64

from roi_region_loss.config import Pairing


@dataclass(frozen=True, eq=False)
class ImageBoxes:
    """The boxes of one image.

    Attributes:
        boxes: Normalised boxes of the original image.
        labels: Name of what each box shows, or None for boxes without labels.
    """

    boxes: Float64[np.ndarray, "regions 4"] = field(default_factory=lambda: np.zeros((0, 4)))
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that every box has a label or none has."""
        if self.labels is not None and len(self.labels) != len(self.boxes):
            raise ValueError(f"got {len(self.labels)} labels for {len(self.boxes)} boxes")


@dataclass(frozen=True, eq=False)
class RegionPairs:
    """Corresponding regions of a reference and a target image.

    Attributes:
        reference: Normalised boxes of the original reference image.
        target: Row by row their partners in the original target image.
        weights: Weight of each pair in the region loss, 0 or more.
        labels: What each pair shows; an empty text where that is not known.
        dropped: Number of boxes left out by reason: `no_partner`.
    """

    reference: Float64[np.ndarray, "pairs 4"] = field(default_factory=lambda: np.zeros((0, 4)))
    target: Float64[np.ndarray, "pairs 4"] = field(default_factory=lambda: np.zeros((0, 4)))
    weights: Float64[np.ndarray, " pairs"] = field(default_factory=lambda: np.zeros(0))
    labels: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.weights)

    @classmethod
    def of_one(cls, reference_box: Sequence[float], target_box: Sequence[float], label: str = "") -> "RegionPairs":
        """Pair of two boxes, for data that anchors one instance in both images (OACIRR)."""
        reference, target = (np.asarray(box, dtype=np.float64).reshape(1, 4) for box in (reference_box, target_box))
        return cls(reference, target, np.ones(1), (label,))


def pair_boxes(reference: ImageBoxes, target: ImageBoxes, *, pairing: Pairing = "auto") -> RegionPairs:
    """Match the boxes of two images, each at most once.

    Args:
        reference: Boxes of the reference image.
        target: Boxes of the target image.
        pairing: `label`: equal labels, from the largest area down (without labels nothing matches); `index`: the k-th
            with the k-th; `auto`: by label if both images have labels, else by index.

    Returns:
        The pairs, all with weight 1: by label the largest first, by index in order.
    """
    by_label = pairing == "label" or (pairing == "auto" and None not in (reference.labels, target.labels))
    if by_label:
        rows, columns = _match_labels(reference, target)
    else:
        rows = columns = np.arange(min(len(reference.boxes), len(target.boxes)))
    labels = reference.labels or target.labels
    unpaired = len(reference.boxes) + len(target.boxes) - 2 * len(rows)
    return RegionPairs(
        reference.boxes[rows],
        target.boxes[columns],
        np.ones(len(rows)),
        tuple("" if labels is None else labels[row] for row in rows),
        {"no_partner": unpaired} if unpaired else {},
    )


def _match_labels(reference: ImageBoxes, target: ImageBoxes) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reference and of the target that belong together, by falling area of the reference's."""
    matches = []
    if reference.labels is not None and target.labels is not None:
        waiting: dict[str, list[int]] = defaultdict(list)
        for index in _by_falling_area(target.boxes):
            waiting[target.labels[index]].append(index)
        for index in _by_falling_area(reference.boxes):
            candidates = waiting[reference.labels[index]]
            if candidates:
                matches.append((index, candidates.pop(0)))
    pairs = np.array(matches, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _by_falling_area(boxes: Float[np.ndarray, "regions 4"]) -> list[int]:
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return np.argsort(-areas, kind="stable").tolist()
