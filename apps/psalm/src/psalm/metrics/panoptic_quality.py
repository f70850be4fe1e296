"""Panoptic quality (Kirillov et al. 2019): how many segments are found (RQ) and how well they are drawn (SQ).

A predicted and a true segment of the same class match where their IoU is above 0.5, which one pair at most can be.
Pixels of the void belong to nobody's union, and a predicted segment without a match that lies mostly in the void is not
counted against the model. A class that neither is there nor was predicted has no part in the means.

Crowds are void here for every class; COCO's tool forgives a segment on a crowd only where it has the crowd's class, and
keeps the crowd's pixels in unions. So where data have crowds, these figures are higher and not comparable with COCO's.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import fsum

import numpy as np
from jaxtyping import Bool, Integer


@dataclass
class ClassMatches:
    """What was found of one class.

    Attributes:
        is_thing: Whether it is countable.
        ious: IoU of every match; kept one by one, so that their sum does not depend on the order.
        false_positives: Predicted segments without a match.
        false_negatives: True segments without a match.
    """

    is_thing: bool
    ious: list[float] = field(default_factory=list)
    false_positives: int = 0
    false_negatives: int = 0

    def qualities(self) -> tuple[float, float, float]:
        """PQ, SQ and RQ, in [0, 1]; all 0 without a match."""
        matches, total = len(self.ious), fsum(self.ious)
        if matches == 0:
            return 0.0, 0.0, 0.0
        weight = matches + 0.5 * self.false_positives + 0.5 * self.false_negatives
        return total / weight, total / matches, matches / weight


@dataclass
class PanopticQuality:
    """Matches of the images so far.

    Attributes:
        classes: Matches by the class's name.
    """

    classes: dict[str, ClassMatches] = field(default_factory=dict)

    def update(
        self,
        predicted_map: Integer[np.ndarray, "height width"],
        predicted_classes: Sequence[str],
        true_map: Integer[np.ndarray, "height width"],
        true_classes: Sequence[str],
        *,
        things: Collection[str],
        void: Bool[np.ndarray, "height width"] | None = None,
    ) -> None:
        """Add one image.

        Args:
            predicted_map: 0 where nothing is predicted, else 1 + the position in `predicted_classes`.
            predicted_classes: Class of every predicted segment.
            true_map: 0 where nothing is, else 1 + the position in `true_classes`.
            true_classes: Class of every true segment.
            things: The classes that are countable.
            void: Pixels that do not count.
        """
        num_true, num_predicted = len(true_classes) + 1, len(predicted_classes) + 1
        pairs = true_map.astype(np.int64) * num_predicted + predicted_map
        outside = np.zeros(num_predicted, dtype=np.int64)
        if void is not None:
            outside = np.bincount(predicted_map[void].astype(np.int64), minlength=num_predicted)
            pairs = pairs[~void]
        shared = np.bincount(pairs.ravel(), minlength=num_true * num_predicted).reshape(num_true, num_predicted)
        unions = shared.sum(1)[:, None] + shared.sum(0) - shared
        same = np.array(list(true_classes), dtype=object)[:, None] == np.array(list(predicted_classes), dtype=object)
        is_match = same & (2 * shared[1:, 1:] > unions[1:, 1:])
        for row, column in np.argwhere(is_match):
            iou = shared[row + 1, column + 1] / unions[row + 1, column + 1]
            self._of(true_classes[row], things).ious.append(float(iou))
        # A segment that lies in the void alone has no pixel left that could be found.
        for row in np.flatnonzero(~is_match.any(1) & (shared[1:].sum(1) > 0)):
            self._of(true_classes[row], things).false_negatives += 1
        in_void = 2 * outside[1:] > outside[1:] + shared[:, 1:].sum(0)
        for column in np.flatnonzero(~is_match.any(0) & ~in_void):
            self._of(predicted_classes[column], things).false_positives += 1

    def _of(self, name: str, things: Collection[str]) -> ClassMatches:
        return self.classes.setdefault(name, ClassMatches(name in things))

    def merge(self, other: "PanopticQuality") -> None:
        """Add the images of another one."""
        for name, found in other.classes.items():
            own = self._of(name, (name,) if found.is_thing else ())
            own.ious.extend(found.ious)
            own.false_positives += found.false_positives
            own.false_negatives += found.false_negatives

    def compute(self) -> dict[str, float]:
        """PQ, SQ and RQ in percent, over all classes, things (`PQ_things`) and stuff; without classes no entry."""
        kinds = {
            "": list(self.classes.values()),
            "_things": [found for found in self.classes.values() if found.is_thing],
            "_stuff": [found for found in self.classes.values() if not found.is_thing],
        }
        scores: dict[str, float] = {}
        for kind, classes in kinds.items():
            qualities = [found.qualities() for found in classes]
            for position, name in enumerate(("PQ", "SQ", "RQ")):
                if qualities:
                    scores[name + kind] = 100 * fsum(values[position] for values in qualities) / len(qualities)
        return scores
