"""From an image file to the tower's square input, together with the map that its boxes must follow.

CLIP4Cir's preprocessing, which SPRC keeps: pad an elongated image up to a ratio of 1.25 (`TargetPad`) or to a square
(`SquarePad`), resize the shorter side, cut out the centre. At a ratio of 1.25 or more a tenth of the longer side is
cut off at either end, so a box of the original image is never a box of the model's input: every transform returns the
pixels and the affine from normalised coordinates of the original to normalised coordinates of the input.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image, ImageOps
from region_training.images import read_image
from torch import Tensor

from sprc.image_headers import open_image, stored_size, upright_size

TRANSFORM_KINDS = ("targetpad", "squarepad", "resize")
TARGET_RATIO = 1.25  # CLIP4Cir, Baldrati et al. 2022


class Transformed(NamedTuple):
    """An image at the tower's input size, and where its points went."""

    image: UInt8[Tensor, "3 size size"]
    affine: Float64[np.ndarray, "2 3"]


@dataclass(frozen=True)
class TargetPad:
    """Pad an image whose longer side is at least `ratio` times the shorter one up to that ratio, with black.

    Args:
        ratio: Longer side over shorter side of what comes out, up to rounding.
    """

    ratio: float = TARGET_RATIO

    def padding(self, width: int, height: int) -> tuple[int, int]:
        """Pixels added left and right (each), and above and below (each)."""
        longer = max(width, height)
        if longer / min(width, height) < self.ratio:
            return 0, 0
        wanted = longer / self.ratio
        return max(int((wanted - width) / 2), 0), max(int((wanted - height) / 2), 0)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the padded image."""
        return _pad(image, *self.padding(*image.size))


@dataclass(frozen=True)
class SquarePad:
    """Pad an image to a square with black; an odd difference leaves one pixel."""

    def padding(self, width: int, height: int) -> tuple[int, int]:
        """Pixels added left and right (each), and above and below (each)."""
        longer = max(width, height)
        return (longer - width) // 2, (longer - height) // 2

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the padded image."""
        return _pad(image, *self.padding(*image.size))


class _Geometry(NamedTuple):
    """Padding on each side, the size after resizing, and the corner of what is cut out (all in pixels)."""

    pad_x: int
    pad_y: int
    width: int
    height: int
    left: int
    top: int


@dataclass(frozen=True)
class ImageTransform:
    """Pad, resize (bicubic), and cut out the centre.

    Args:
        pad: How the image is padded first; None resizes both sides to `size`, whatever the ratio.
        size: Side of the model's input in pixels.
        upstream_order: Turn the image RGB last, and leave it as it is stored (not upright), as the published SPRC does;
            only palette and transparent images and those with an EXIF orientation differ.
    """

    pad: TargetPad | SquarePad | None
    size: int
    upstream_order: bool = False

    def __post_init__(self) -> None:
        """Check the size."""
        if self.size < 1:
            raise ValueError(f"size of the model's input is {self.size}, expected 1 pixel or more")

    @property
    def key(self) -> str:
        """Equal for transforms that give equal pixels; guards whatever is kept of transformed images."""
        return f"{self.pad!r} size={self.size} bicubic upstream_order={self.upstream_order}"

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "height width 3"]) -> Transformed:
        """Transform an image.

        Args:
            image: A Pillow image, or RGB pixels.
        """
        picture = image if isinstance(image, Image.Image) else Image.fromarray(np.ascontiguousarray(image))
        if not self.upstream_order:
            picture = picture.convert("RGB")
        affine = self.affine(*picture.size)
        geometry = self._geometry(*picture.size)
        padded = _pad(picture, geometry.pad_x, geometry.pad_y)
        resized = padded.resize((geometry.width, geometry.height), Image.Resampling.BICUBIC)
        corner = (geometry.left, geometry.top)
        cut = resized.crop((*corner, geometry.left + self.size, geometry.top + self.size)).convert("RGB")
        pixels = np.array(cut).transpose(2, 0, 1)
        return Transformed(torch.from_numpy(np.ascontiguousarray(pixels)), affine)

    def read(self, path: Path) -> Transformed:
        """Read and transform an image file.

        Raises:
            ValueError: The file is no image, or is damaged.
            OSError: The file cannot be opened.
        """
        if not self.upstream_order:
            return self(read_image(path))
        with open_image(path) as image:
            try:
                image.load()
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(f"{path}: damaged picture: {error}") from error
            return self(image)

    def original_size(self, path: Path) -> tuple[int, int]:
        """Width and height of the image as `read` sees it, from the file's header.

        Raises:
            ValueError: The file is no image, or its header is damaged.
            OSError: The file cannot be opened.
        """
        return stored_size(path) if self.upstream_order else upright_size(path)

    def affine(self, width: int, height: int) -> Float64[np.ndarray, "2 3"]:
        """Map from normalised coordinates of an image of this size to normalised coordinates of the model's input.

        What is cut off comes to lie outside [0, 1].
        """
        geometry = self._geometry(width, height)
        scale_x = geometry.width / (width + 2 * geometry.pad_x)
        scale_y = geometry.height / (height + 2 * geometry.pad_y)
        shift_x = geometry.pad_x * scale_x - geometry.left
        shift_y = geometry.pad_y * scale_y - geometry.top
        pixels = np.array([[width * scale_x, 0.0, shift_x], [0.0, height * scale_y, shift_y]])
        return pixels / self.size

    def _geometry(self, width: int, height: int) -> _Geometry:
        if width < 1 or height < 1:
            raise ValueError(f"got an image of {width} x {height} pixels, expected 1 x 1 or more")
        if self.pad is None:
            return _Geometry(0, 0, self.size, self.size, 0, 0)
        pad_x, pad_y = self.pad.padding(width, height)
        padded_width, padded_height = width + 2 * pad_x, height + 2 * pad_y
        if padded_width <= padded_height:
            new_width, new_height = self.size, int(self.size * padded_height / padded_width)
        else:
            new_width, new_height = int(self.size * padded_width / padded_height), self.size
        # Python's round, as torchvision's centre crop: halves go to the even number.
        left, top = round((new_width - self.size) / 2), round((new_height - self.size) / 2)
        return _Geometry(pad_x, pad_y, new_width, new_height, left, top)


def build_transform(kind: str, size: int, *, upstream_order: bool = False) -> ImageTransform:
    """Make a transform by its name.

    Args:
        kind: `targetpad` (ratio 1.25), `squarepad`, or `resize` (both sides to `size`, nothing cut off).
        size: Side of the model's input in pixels.
        upstream_order: See `ImageTransform`.

    Raises:
        ValueError: There is no transform of that name.
    """
    pads = {"targetpad": TargetPad(), "squarepad": SquarePad(), "resize": None}
    if kind not in pads:
        raise ValueError(f"got the transform {kind!r}, expected one of {', '.join(TRANSFORM_KINDS)}")
    return ImageTransform(pads[kind], size, upstream_order)


def _pad(image: Image.Image, pad_x: int, pad_y: int) -> Image.Image:
    if pad_x == 0 and pad_y == 0:
        return image
    return ImageOps.expand(image, border=(pad_x, pad_y), fill=0)
