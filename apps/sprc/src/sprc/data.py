"""Triplets on disk -> samples: a reference image, a target image, what shall be different, and pairs of regions.

`TripletSplit` is a split without pixels; CIRR, FashionIQ and OACIRR each have a reader of their own beside this module
(`cirr.py`, `fashioniq.py`, `oacirr.py`), and everything behind the readers is here and the same for all three.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from region_core.seeding import sample_rng
from torch import Tensor
from torch.utils.data import Dataset

from sprc.regions import BoxOptions, PairedRegions, RegionReader
from sprc.text import clean_caption, join_captions
from sprc.transforms import ImageTransform
from sprc.triplets import OnMissing, Triplet, TripletSplit, check_images

NO_IMAGE_ID = -1

Box = tuple[float, float, float, float]


class TripletSample(NamedTuple):
    """One triplet, ready to be collated; without a target its image is None and its id is -1.

    Images are pixels, or the frozen tower's tokens where those are cached. Boxes are paired rows in the frame of the
    model's input; `dropped` counts the regions left out by `roi_region_loss.DropReason`. Ids are the same for the same
    image in every process.
    """

    reference_image: UInt8[Tensor, "3 height width"] | Float[Tensor, "tokens channels"]
    target_image: UInt8[Tensor, "3 height width"] | Float[Tensor, "tokens channels"] | None
    caption: str
    reference_boxes: Float[Tensor, "pairs 4"]
    target_boxes: Float[Tensor, "pairs 4"]
    pair_weights: Float[Tensor, " pairs"]
    reference_id: int
    target_id: int
    pair_id: str
    index: int
    dropped: dict[str, int]


class TripletDataset(Dataset):
    """Samples of a split.

    Args:
        split: The records.
        transform: From an image file to the model's input.
        box_file: Boxes by image or by pair; without a file the triplets' own boxes, where they have any.
        box_options: How boxes are read, paired and filtered. Without it and without a file samples have no regions.
        tokens: Cached tokens of the frozen tower by image name; they take the place of pixels.
        training: Two captions are joined in one of four ways, drawn anew in every epoch; without it always as "a and
            b". Images of the gallery that no triplet names need not be there, since nothing is ranked.
        seed: The draws are a pure function of (seed, epoch, index).
        on_missing: What to do when image files are missing: stop and list them, or drop their triplets (and the images
            themselves from the gallery, so that scores are no longer comparable with others').

    Raises:
        ValueError: Image files are missing, the box file is faulty, or too few triplets have regions.
    """

    def __init__(
        self,
        split: TripletSplit,
        *,
        transform: ImageTransform,
        box_file: Path | str | None = None,
        box_options: BoxOptions | None = None,
        tokens: Mapping[str, Tensor] | None = None,
        training: bool = False,
        seed: int = 0,
        on_missing: OnMissing = "raise",
    ) -> None:
        self.split = check_images(split, whole_gallery=not training, on_missing=on_missing)
        self.transform = transform
        self.tokens = tokens
        self.training = training
        self.seed = seed
        self.epoch = 0
        self.regions: RegionReader | None = None
        has_own_boxes = any(triplet.reference_box is not None for triplet in self.split.triplets)
        if box_file is not None or (has_own_boxes and box_options is not None):
            self.regions = RegionReader(self.split, transform, box_file, box_options or BoxOptions())
            self.regions.check_coverage(self.split, training=training)

    def __len__(self) -> int:
        """Number of triplets."""
        return len(self.split.triplets)

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of this epoch."""
        self.epoch = epoch

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        return f"{self.split.file.name}, pair {self.split.triplets[index].pair_id!r}"

    def caption(self, index: int) -> str:
        """A record's caption as the model reads it in this epoch."""
        rng = sample_rng(self.seed, self.epoch, index) if self.training else None
        return clean_caption(join_captions(self.split.triplets[index].captions, rng))

    def evaluation_caption(self, triplet: Triplet) -> str:
        """A triplet's caption as it is asked in an evaluation, where nothing is drawn."""
        return clean_caption(join_captions(triplet.captions))

    def original_boxes(self, triplet: Triplet) -> tuple[tuple[Box, ...], tuple[Box, ...]]:
        """The pairs of regions that the loss uses, normalised in the original reference and target, for pictures."""
        if self.regions is None:
            return (), ()
        pairs, kept = self.regions.original(triplet), self.regions.read(triplet).kept
        return _as_tuples(pairs.reference[kept]), _as_tuples(pairs.target[kept])

    def read_input(self, name: str) -> UInt8[Tensor, "3 height width"] | Float[Tensor, "tokens channels"]:
        """An image of the split as the model takes it: its pixels, or its tokens where those are cached.

        Raises:
            ValueError: The split or the token cache has no such image, or its file cannot be read.
        """
        if self.tokens is not None:
            if name not in self.tokens:
                raise ValueError(f"{self.split.file.name}: the token cache has no image {name!r}")
            return self.tokens[name]
        try:
            return self.transform.read(self.split.image_path(name)).image
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.split.file.name}, image {name!r}: {error}") from error

    def __getitem__(self, index: int) -> TripletSample:
        """Read one triplet.

        Raises:
            ValueError: An image or a box is not as expected; the message names the record.
            OSError: An image cannot be opened.
        """
        triplet = self.split.triplets[index]
        pairs = self._pairs(index)
        return TripletSample(
            reference_image=self._image(index, triplet.reference),
            target_image=None if triplet.target is None else self._image(index, triplet.target),
            caption=self.caption(index),
            reference_boxes=torch.from_numpy(pairs.reference).float(),
            target_boxes=torch.from_numpy(pairs.target).float(),
            pair_weights=torch.from_numpy(pairs.weights).float(),
            reference_id=image_id(triplet.reference),
            target_id=NO_IMAGE_ID if triplet.target is None else image_id(triplet.target),
            pair_id=triplet.pair_id,
            index=index,
            dropped=pairs.dropped,
        )

    def _image(self, index: int, name: str) -> Tensor:
        try:
            return self.read_input(name)
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: {error}") from error

    def _pairs(self, index: int) -> PairedRegions:
        if self.regions is None:
            return PairedRegions.none()
        try:
            return self.regions.read(self.split.triplets[index])
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.where(index)}: {error}") from error


def image_id(name: str) -> int:
    """A number of 64 bits that stands for an image's name, the same in every process."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _as_tuples(boxes: Float64[np.ndarray, "regions 4"]) -> tuple[Box, ...]:
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist())
