"""Pairs of regions of a triplet: out of the box file (or OACIRR's own boxes), into the frame of the model's input."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from roi_region_loss.box_files import BoxFile
from roi_region_loss.box_formats import BoxFormat
from roi_region_loss.config import RegionLossConfig
from roi_region_loss.filtering import filter_pairs
from roi_region_loss.pairing import RegionPairs

from sprc.transforms import ImageTransform
from sprc.triplets import Triplet, TripletSplit

logger = logging.getLogger(__name__)

_SPARSE = ". If so few regions are meant, lower min_coverage (data.min_coverage)"


@dataclass(frozen=True)
class BoxOptions:
    """How boxes are read, paired and filtered.

    Attributes:
        grid: Patches of the model's input as (height, width); a region must not be smaller than a part of a patch.
        box_format: Coordinates of the box file.
        loss: Pairing rule, cap, and the limits below which a pair is dropped.
        min_coverage: Smallest share of the triplets that must have a pair of regions with a weight, and of the images
            (or triplets) that the box file must name.
    """

    grid: tuple[int, int] = (16, 16)
    box_format: BoxFormat = "xyxy_norm"
    loss: RegionLossConfig = field(default_factory=RegionLossConfig)
    min_coverage: float = 0.0


class PairedRegions(NamedTuple):
    """Corresponding regions in the frame of the model's input, row by row, and what was dropped on the way.

    `kept` says which of the triplet's original pairs these are; `dropped` counts by `DropReason`.
    """

    reference: Float64[np.ndarray, "pairs 4"]
    target: Float64[np.ndarray, "pairs 4"]
    weights: Float64[np.ndarray, " pairs"]
    kept: Bool[np.ndarray, " original"]
    dropped: dict[str, int]

    @classmethod
    def none(cls) -> "PairedRegions":
        """No regions."""
        return cls(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=bool), {})


class ImageSizes:
    """Width and height of a split's images by name, from their headers; each is read once.

    Args:
        split: Knows the files.
        transform: Knows how the images are turned.
    """

    def __init__(self, split: TripletSplit, transform: ImageTransform) -> None:
        self._split = split
        self._transform = transform
        self._sizes: dict[str, tuple[int, int]] = {}

    def __call__(self, name: str) -> tuple[int, int]:
        """The size of one image."""
        if name not in self._sizes:
            self._sizes[name] = self._transform.original_size(self._split.image_path(name))
        return self._sizes[name]


class RegionReader:
    """Reads the pairs of regions of triplets.

    Args:
        split: The triplets.
        transform: What the images go through; the boxes follow.
        box_file: Boxes by image or by pair; without it the triplets' own boxes are the pairs.
        options: How boxes are read, paired and filtered.

    Raises:
        ValueError: The box file is not as it should be; the message names its keys.
    """

    def __init__(
        self, split: TripletSplit, transform: ImageTransform, box_file: Path | str | None, options: BoxOptions
    ) -> None:
        self.transform = transform
        self.options = options
        self._sizes = ImageSizes(split, transform)
        self.box_file: BoxFile | None = None
        if box_file is not None:
            self.box_file = BoxFile.load(
                box_file,
                box_format=options.box_format,
                pairing=options.loss.pairing,
                use_changed_pairs=options.loss.use_changed_pairs,
                image_size=self._sizes,
            )

    def original(self, triplet: Triplet) -> RegionPairs:
        """Pairs of a triplet in its original images; none without a target.

        Raises:
            ValueError: Boxes in pixels reach outside their image.
        """
        if triplet.target is None:
            return RegionPairs()
        if self.box_file is not None:
            return self.box_file.pairs(triplet.pair_id, triplet.reference, triplet.target)
        if triplet.reference_box is None or triplet.target_box is None:
            return RegionPairs()
        return RegionPairs.of_one(triplet.reference_box, triplet.target_box, triplet.category or "")

    def read(self, triplet: Triplet) -> PairedRegions:
        """Pairs of a triplet in the frame of the model's input: those well visible there, up to the cap.

        Raises:
            ValueError: A box or an image is not as it should be.
            OSError: An image cannot be opened.
        """
        pairs = self.original(triplet)
        if triplet.target is None or len(pairs) == 0:
            return PairedRegions.none()._replace(dropped=dict(pairs.dropped))
        limits = self.options.loss
        found = filter_pairs(
            pairs.reference,
            pairs.target,
            self.transform.affine(*self._sizes(triplet.reference)),
            self.transform.affine(*self._sizes(triplet.target)),
            self.options.grid,
            min_visible=limits.min_visible,
            min_side_cells=limits.min_side_cells,
            max_pairs=limits.max_pairs_per_triplet,
            weights=pairs.weights,
        )
        dropped = {**pairs.dropped, **found.dropped}
        return PairedRegions(found.reference, found.target, pairs.weights[found.kept], found.kept, dropped)

    def check_coverage(self, split: TripletSplit, *, training: bool = False) -> str:
        """Say how much of a split has regions, and log it.

        Args:
            split: The triplets.
            training: Warn if there is nothing to train on.

        Raises:
            ValueError: It is less than `min_coverage`.
        """
        triplets = [triplet for triplet in split.triplets if triplet.target is not None]
        least = self.options.min_coverage
        where = f"{split.file}" if self.box_file is None else f"{self.box_file.path}"
        if self.box_file is not None:
            keys = [(triplet.pair_id, triplet.reference, str(triplet.target)) for triplet in triplets]
            coverage = self.box_file.coverage(keys)
            try:
                coverage.check(least)
            except ValueError as error:
                raise ValueError(f"{error}{_SPARSE}") from error
            num_with_pairs, said = coverage.num_triplets_with_pairs, coverage.describe()
        else:
            num_with_pairs = sum(len(self.original(triplet)) > 0 for triplet in triplets)
            said = f"{where}: {num_with_pairs} of {len(triplets)} triplets have a region pair"
        logger.info("%s", said)
        if triplets and num_with_pairs < least * len(triplets):
            raise ValueError(
                f"{said}; expected a share of {least:g} or more, got {num_with_pairs / len(triplets):.3f}{_SPARSE}"
            )
        if training and num_with_pairs == 0:
            logger.warning(
                "%s: no triplet of the split %r has regions: the region loss trains nothing", where, split.name
            )
        return said
