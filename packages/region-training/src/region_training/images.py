"""Pictures and depth maps on disk to arrays, with Pillow.

A picture is upright (its EXIF orientation is applied), RGB, and decoded in full: a truncated file is an error, never
a half-grey image. The size in the header is checked before anything is decoded, since a file of 20 kB can ask for
half a gigabyte. Depth keeps its 16 bits, which `convert("RGB")` would clip to white in silence.
"""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 50_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
_EIGHT_BITS, _SIXTEEN_BITS = 255, 65_535


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture: upright, RGB, 8 bits.

    Args:
        path: A JPEG, PNG, WebP, BMP or TIFF file.
        max_pixels: Larger pictures are refused from their header.

    Raises:
        ValueError: The file is no such picture, is damaged, is too large, or has more than 8 bits per channel.
        OSError: The file cannot be opened.
    """
    image = _read_upright(Path(path), max_pixels)
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path}: got a picture of mode {image.mode!r} (more than 8 bits), expected RGB or grey")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # What lies under transparent pixels is arbitrary; white is what a viewer shows.
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def read_depth(
    path: Path | str, *, full_scale: int | None = None, max_pixels: int = MAX_PIXELS
) -> Float32[np.ndarray, "height width"]:
    """Read a depth map into [0, 1].

    Args:
        path: A grey file of 8 or 16 bits, or an 8-bit one whose three channels are equal.
        full_scale: The stored value that becomes 1; 255 or 65535 by default, by the file's bits.
        max_pixels: Larger maps are refused from their header.

    Raises:
        ValueError: The file is no depth map, is damaged, is too large, or has values above `full_scale`.
        OSError: The file cannot be opened.
    """
    image = _read_upright(Path(path), max_pixels)
    if image.mode == "RGB":
        channels = np.array(image)
        if (channels != channels[..., :1]).any():
            raise ValueError(f"{path}: got a colour picture, expected depth: one channel, or three that are equal")
        values, bits_scale = channels[..., 0], _EIGHT_BITS
    elif image.mode == "L":
        values, bits_scale = np.array(image), _EIGHT_BITS
    elif image.mode == "I" or image.mode.startswith("I;16"):
        values, bits_scale = np.array(image), _SIXTEEN_BITS
    else:
        raise ValueError(f"{path}: got a picture of mode {image.mode!r}, expected grey with 8 or 16 bits")
    scale = bits_scale if full_scale is None else full_scale
    if scale < 1:
        raise ValueError(f"full_scale is {scale}, expected 1 or more")
    if values.min() < 0 or values.max() > scale:
        raise ValueError(f"{path}: depth values span {values.min()} to {values.max()}, expected 0 to {scale}")
    return values.astype(np.float32) / np.float32(scale)


def write_png(
    path: Path | str,
    pixels: UInt8[np.ndarray, "height width 3"]
    | UInt8[np.ndarray, "height width"]
    | UInt16[np.ndarray, "height width"],
) -> None:
    """Write RGB, 8-bit grey or 16-bit grey as PNG; the folder is made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="PNG")


def _read_upright(path: Path, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of its own, larger limit and of faulty EXIF, which viewers take as upright, as we do.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                if width * height <= max_pixels:
                    image.load()
                    return ImageOps.exif_transpose(image)
        except UnidentifiedImageError as error:
            found = "an empty file" if path.stat().st_size == 0 else "no picture"
            raise ValueError(f"{path}: got {found}, expected {', '.join(_FORMATS)}") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path}: too large: {error}") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the file system's own error names the path
            # Decoders of damaged files raise all sorts: SyntaxError, struct.error, IndexError, ...
            raise ValueError(f"{path}: damaged picture: {error}") from error
    raise ValueError(f"{path}: got {width} x {height} pixels, expected at most {max_pixels}")
