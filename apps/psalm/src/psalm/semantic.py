"""Semantic segmentation from COCO's panoptic files: one target per class that an image shows.

The panoptic files are the one source: upstream's `panoptic_semseg_*` PNGs are made from them by a script that was
never published. A crowd has no members to count but has a class, so its pixels belong to the class's target; only
unlabelled pixels are void.
"""

from collections.abc import Collection

import numpy as np

from psalm.annotations import ImageId, one_hot
from psalm.modes import Mode
from psalm.panoptic import VOID, PanopticFile
from psalm.samples import Scene


class SemanticSource:
    """Semantic segmentation: one target per class, in the order of the label space.

    Args:
        panoptic: The split.
        excluded: Numbers of images to leave out.
    """

    mode: Mode = "semantic"

    def __init__(self, panoptic: PanopticFile, *, excluded: Collection[ImageId] = ()) -> None:
        self.name = "semantic"
        self.label_space = panoptic.label_space
        self._panoptic = panoptic
        self._indices = panoptic.keep(excluded)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._indices)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return self._panoptic.where(self._indices[index])

    def texts(self) -> list[str]:
        """The class names."""
        return list(self.label_space.names)

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one image; nothing is drawn.

        Raises:
            ValueError: The record is bad, see `PanopticFile.read`.
        """
        record = self._indices[index]
        found = self._panoptic.read(record)
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
            mode="semantic",
            image=found.image,
            masks=classes == present[:, None, None],
            conditions=self.label_space.names,
            target_conditions=one_hot(present.tolist(), len(self.label_space.names)),
            is_thing=self.label_space.is_thing,
            void=void,
            image_id=self._panoptic.image_id(record),
        )
