"""From a scene at its original size to a sample at the model's square input.

The longer side is resized to the square's and the rest is padded right and below: the image with grey 128 before it is
normalised, as PSALM pads it, masks with nothing. Augmentation changes scale and place, not the recipe: large-scale
jitter for class names (Ghiasi et al. 2021), a mild one for sentences and regions, flips where words do not forbid them.

Masks are read at the pixel centres of the new grid (torchvision's resize of masks reads half a pixel beside them).
What falls between all centres keeps the pixels it lies in, so that only a crop can make a mask vanish. Where the mild
jitter would crop away a whole target or prompt, the sample goes without it; with class names such a target leaves the
sample and is counted.
"""

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as image_functional

from psalm.annotations import as_dropped
from psalm.modes import BACKGROUND, KIND_OF_MODE, Mode
from psalm.samples import Scene, SegmentationSample

IMAGE_PADDING = 128
LARGE_JITTER = (0.1, 2.0)
MILD_JITTER = (0.8, 1.2)
FLIP_PROBABILITY = 0.5

_SIDE_WORDS = re.compile(r"\b(?:(?:left|right|lft|rgt)\w*|l|r|lt|rt)\b", re.IGNORECASE)
"""Left and right in any form, and RefCOCO's short forms; "bright" and "upright" are none."""


class Geometry(NamedTuple):
    """What happens to an image of one size: resize, cut out at most a square, flip, pad.

    Attributes:
        height: After the resize.
        width: After the resize.
        top: First row that is kept.
        left: First column that is kept.
        flip: Whether what is kept is mirrored.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0
    flip: bool = False

    def content_size(self, side: int) -> tuple[int, int]:
        """Height and width of the image inside the square."""
        return min(self.height - self.top, side), min(self.width - self.left, side)


class SegmentationTransform:
    """Makes samples of scenes.

    Args:
        side: Side of the model's input in pixels.
        augment: In training, jitter the scale and flip.

    Raises:
        ValueError: The side is less than a pixel.
    """

    def __init__(self, side: int, *, augment: bool = False) -> None:
        if side < 1:
            raise ValueError(f"data.image_size is {side}, expected 1 pixel or more")
        self.side = side
        self.augment = augment

    def __call__(self, scene: Scene, rng: np.random.Generator | None = None) -> SegmentationSample:
        """Transform a scene.

        In training (with `rng`) class names are shuffled, regions whose prompt is empty leave the sample with the
        targets that only they mean, and the scene is augmented if that is on. In evaluation classes and regions stay
        as they are, so that they are the scene's own: a region that cannot be shown is one the model misses.

        Args:
            scene: The scene.
            rng: Source of all draws; None is evaluation.
        """
        geometry, reference_geometry = self._geometries(scene, rng)
        masks = place_masks(scene.masks, geometry, self.side)
        prompts = None
        if scene.prompts is not None:
            prompts = place_masks(scene.prompts, reference_geometry or geometry, self.side)
        conditions, dropped = self._choose(scene, masks, prompts, rng)
        belongs = torch.from_numpy(scene.target_conditions)[:, conditions]
        keep = masks.flatten(1).any(1)
        if prompts is not None:
            keep &= belongs.any(1)
        names = tuple(scene.conditions[position] for position in conditions)
        is_class = KIND_OF_MODE[scene.mode] == "class_name"
        reference = scene.reference_image
        return SegmentationSample(
            record_id=scene.record_id,
            mode=scene.mode,
            image=place_image(scene.image, geometry, self.side),
            content_size=geometry.content_size(self.side),
            original_size=_size(scene.image),
            masks=masks[keep],
            conditions=(*names, BACKGROUND) if is_class else names,
            target_conditions=belongs[keep],
            is_thing=tuple(scene.is_thing[position] for position in conditions),
            prompts=None if prompts is None else prompts[conditions],
            prompts_bound=scene.prompts_bound,
            reference_image=None
            if reference is None or reference_geometry is None
            else place_image(reference, reference_geometry, self.side),
            reference_size=None if reference_geometry is None else reference_geometry.content_size(self.side),
            dropped=as_dropped(dropped),
        )

    def _choose(
        self,
        scene: Scene,
        masks: Bool[Tensor, "targets side side"],
        prompts: Bool[Tensor, "conditions side side"] | None,
        rng: np.random.Generator | None,
    ) -> tuple[list[int], Counter[str]]:
        """The conditions of the sample, in its order, and what is dropped."""
        dropped = Counter(dict(scene.dropped))
        dropped["vanished target"] += int((~masks.flatten(1).any(1)).sum())
        conditions = list(range(len(scene.conditions)))
        if prompts is not None:
            shown = prompts.flatten(1).any(1).tolist()
            dropped["empty prompt"] += shown.count(False)
            if rng is not None:
                conditions = [position for position in conditions if shown[position]]
        elif rng is not None and KIND_OF_MODE[scene.mode] == "class_name":
            conditions = rng.permutation(len(conditions)).tolist()
        return conditions, dropped

    def _geometries(self, scene: Scene, rng: np.random.Generator | None) -> tuple[Geometry, Geometry | None]:
        """Geometry of the image and of the reference image, drawn independently."""
        plain = plain_geometry(_size(scene.image), self.side)
        reference = None if scene.reference_image is None else _size(scene.reference_image)
        plain_reference = None if reference is None else plain_geometry(reference, self.side)
        if rng is None or not self.augment:
            return plain, plain_reference
        drawn = self._draw(scene.mode, plain, scene.conditions, rng)
        drawn_reference = None if plain_reference is None else self._draw(scene.mode, plain_reference, (), rng)
        if KIND_OF_MODE[scene.mode] == "class_name":
            return drawn, drawn_reference
        shown_on = drawn if drawn_reference is None else drawn_reference
        lost = _loses_one(scene.masks, drawn, self.side) or (
            scene.prompts is not None and _loses_one(scene.prompts, shown_on, self.side)
        )
        return (plain, plain_reference) if lost else (drawn, drawn_reference)

    def _draw(self, mode: Mode, plain: Geometry, words: tuple[str, ...], rng: np.random.Generator) -> Geometry:
        kind = KIND_OF_MODE[mode]
        scale = rng.uniform(*(LARGE_JITTER if kind == "class_name" else MILD_JITTER))
        height, width = max(round(plain.height * scale), 1), max(round(plain.width * scale), 1)
        top = int(rng.integers(max(height - self.side, 0) + 1))
        left = int(rng.integers(max(width - self.side, 0) + 1))
        flip = bool(rng.random() < FLIP_PROBABILITY)
        may_flip = kind != "sentence" or not any(names_a_side(text) for text in words)
        return Geometry(height, width, top, left, flip and may_flip)


def plain_geometry(size: tuple[int, int], side: int) -> Geometry:
    """The longer side becomes the square's, with no crop and no flip.

    Args:
        size: Height and width of the image.
        side: Of the square.
    """
    scale = side / max(size)
    height, width = (max(int(length * scale + 0.5), 1) for length in size)
    return Geometry(height, width)


def names_a_side(text: str) -> bool:
    """Whether a sentence says left or right, in any form: mirrored, it would be wrong."""
    return _SIDE_WORDS.search(text) is not None


def place_image(
    image: UInt8[np.ndarray, "height width 3"], geometry: Geometry, side: int
) -> UInt8[Tensor, "3 {side} {side}"]:
    """Image on the square, padded right and below."""
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    resized = image_functional.resize(pixels, [geometry.height, geometry.width], antialias=True)
    height, width = geometry.content_size(side)
    content = resized[:, geometry.top : geometry.top + height, geometry.left : geometry.left + width]
    square = torch.full((3, side, side), IMAGE_PADDING, dtype=torch.uint8)
    square[:, :height, :width] = content.flip(-1) if geometry.flip else content
    return square


def place_masks(
    masks: Bool[np.ndarray, "masks height width"], geometry: Geometry, side: int
) -> Bool[Tensor, "masks {side} {side}"]:
    """Masks on the square; nothing in the padding."""
    height, width = geometry.content_size(side)
    rows = _sources(masks.shape[1], geometry.height, geometry.top, height)
    columns = _sources(masks.shape[2], geometry.width, geometry.left, width)
    square = np.zeros((len(masks), side, side), dtype=bool)
    square[:, :height, :width] = masks[:, rows[:, None], columns]
    for index in np.flatnonzero(masks.any(axis=(1, 2)) & ~square.any(axis=(1, 2))):
        row, column = np.nonzero(masks[index])
        row = (row + 0.5) * geometry.height // masks.shape[1] - geometry.top
        column = (column + 0.5) * geometry.width // masks.shape[2] - geometry.left
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        square[index, row[inside].astype(int), column[inside].astype(int)] = True
    if geometry.flip:
        square[:, :height, :width] = square[:, :height, :width][:, :, ::-1].copy()
    return torch.from_numpy(square)


def _sources(size: int, resized: int, first: int, count: int) -> Int64[np.ndarray, " {count}"]:
    """Source pixel under the centre of each pixel that is kept, along one side."""
    return ((np.arange(first, first + count) + 0.5) * size / resized).astype(np.int64)


def _loses_one(masks: Bool[np.ndarray, "masks height width"], geometry: Geometry, side: int) -> bool:
    placed = place_masks(masks, geometry, side).flatten(1).any(1).numpy()
    return bool((masks.any(axis=(1, 2)) & ~placed).any())


def _size(image: UInt8[np.ndarray, "height width 3"]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
