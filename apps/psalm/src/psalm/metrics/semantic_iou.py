"""Mean IoU over classes, from one confusion matrix over all pixels of all images.

A class that is neither true nor predicted anywhere has no part in the mean; pixels of the void count for nobody.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum

import numpy as np
from jaxtyping import Bool, Integer


@dataclass
class ClassPixels:
    """Pixels of one class: predicted and true, true, predicted."""

    shared: int = 0
    true: int = 0
    predicted: int = 0


@dataclass
class SemanticIoU:
    """Pixels of the images so far; of the confusion matrix only what the IoU needs is kept.

    Attributes:
        classes: Pixels by the class's name.
        num_pixels: Pixels that belong to a class.
    """

    classes: dict[str, ClassPixels] = field(default_factory=dict)
    num_pixels: int = 0

    def update(
        self,
        predicted_map: Integer[np.ndarray, "height width"],
        true_map: Integer[np.ndarray, "height width"],
        names: Sequence[str],
        *,
        void: Bool[np.ndarray, "height width"] | None = None,
    ) -> None:
        """Add one image.

        Args:
            predicted_map: 0 where nothing is predicted, else 1 + the position in `names`.
            true_map: 0 where no class is, else 1 + the position in `names`; what is predicted at 0 is wrong.
            names: The candidate classes.
            void: Pixels that do not count.
        """
        size = len(names) + 1
        pairs = true_map.astype(np.int64) * size + predicted_map
        if void is not None:
            pairs = pairs[~void]
        confusion = np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)
        self.num_pixels += int(confusion[1:].sum())
        for position, name in enumerate(names, 1):
            own = self.classes.setdefault(name, ClassPixels())
            own.shared += int(confusion[position, position])
            own.true += int(confusion[position].sum())
            own.predicted += int(confusion[:, position].sum())

    def merge(self, other: "SemanticIoU") -> None:
        """Add the images of another one."""
        self.num_pixels += other.num_pixels
        for name, found in other.classes.items():
            own = self.classes.setdefault(name, ClassPixels())
            own.shared += found.shared
            own.true += found.true
            own.predicted += found.predicted

    def compute(self) -> dict[str, float]:
        """`mIoU` and `pixel_accuracy` in percent; empty where no class was true or predicted."""
        unions = {name: found.true + found.predicted - found.shared for name, found in self.classes.items()}
        ious = [found.shared / unions[name] for name, found in self.classes.items() if unions[name]]
        scores = {"mIoU": 100 * fsum(ious) / len(ious)} if ious else {}
        if self.num_pixels:
            correct = sum(found.shared for found in self.classes.values())
            scores["pixel_accuracy"] = 100 * correct / self.num_pixels
        return scores
