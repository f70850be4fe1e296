"""Semantic segmentation from COCO's panoptic files: one target per class that an image shows.

The panoptic files are the one source: upstream's `panoptic_semseg_*` PNGs are made from them by a script that was
never published. A crowd has no members to count but has a class, so its pixels belong to the class's target; only
unlabelled pixels are void.
"""

import numpy as np

from psalm.annotations import one_hot
from psalm.modes import Mode
from psalm.panoptic import VOID, PanopticFileSource
from psalm.samples import Scene


class SemanticSource(PanopticFileSource):
    """Semantic segmentation: one target per class, in the order of the label space."""

    mode: Mode = "semantic"

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one image; nothing is drawn.

        Raises:
            ValueError: The record is bad, see `PanopticFile.read`.
        """
        record = self.indices[index]
        found = self.panoptic.read(record)
        void = found.numbers == VOID
        # From a segment's number to its class: both sorted, then looked up for all pixels at once.
        segments = sorted(found.segments)
        numbers = np.array([segment.number for segment in segments], dtype=np.int64)
        positions = np.array([segment.position for segment in segments], dtype=np.int64)
        classes = np.full(found.numbers.shape, -1, dtype=np.int64)
        if segments:
            classes[~void] = positions[np.searchsorted(numbers, found.numbers[~void])]
        present = np.unique(positions)
        return Scene(
            record_id=self.where(index),
            mode=self.mode,
            image=found.image,
            masks=classes == present[:, None, None],
            conditions=self.label_space.names,
            target_conditions=one_hot(present.tolist(), len(self.label_space.names)),
            is_thing=self.label_space.is_thing,
            void=void,
            image_id=self.panoptic.image_id(record),
        )
