"""The size of a picture as it will be seen, from its file's header: no pixel is decoded.

Which way up a picture is stands in its EXIF or XMP data. JPEG and WebP have these in front of the pixels. A PNG may
have them behind (PNG, third edition, 11.3.3.4), where Pillow gets to them only by decoding, so its chunks are walked.
"""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image
from region_training.images import MAX_PIXELS

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"IHDR", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
_CHUNK_HEAD, _CHUNK_CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")


def open_image(path: Path) -> Image.Image:
    """Open a picture without decoding it; the caller closes it.

    Raises:
        ValueError: The file is no picture, or too large.
        OSError: The file cannot be opened.
    """
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: too large: {error}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the file system's own error names the path
        raise ValueError(f"{path}: no picture: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ValueError(f"{path}: got {width} x {height} pixels, expected at most {MAX_PIXELS}")
    return image


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is stored.

    Raises:
        ValueError: The file is no picture, or too large.
        OSError: The file cannot be opened.
    """
    with open_image(path) as image:
        return image.size


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture once its EXIF orientation is applied.

    Raises:
        ValueError: The file is no picture, too large, or its header is damaged; of a PNG also if its end is missing.
        OSError: The file cannot be opened.
    """
    with open_image(path) as image:
        width, height = image.size
        try:
            orientation = _metadata(image, path).get(_EXIF_ORIENTATION)
        except Exception as error:
            # Decoders of damaged files raise all sorts: OSError, SyntaxError, struct.error, ...
            raise ValueError(f"{path}: damaged picture: {error}") from error
    return (height, width) if orientation in _SIDEWAYS else (width, height)


def _metadata(image: Image.Image, path: Path) -> Image.Exif:
    if image.format != "PNG" or "exif" in image.info:
        return image.getexif()
    with Image.open(_without_pixels(path)) as header:
        # The PNG reader's own method would decode what is not there; this is the one that it then calls.
        return Image.Image.getexif(header)


def _without_pixels(path: Path) -> io.BytesIO:
    """A PNG's header and metadata, all of it in front, and no pixels; these are stepped over."""
    kept = bytearray(_PNG_SIGNATURE)
    with path.open("rb") as file:
        file.seek(len(_PNG_SIGNATURE))
        kind = b""
        while kind != b"IEND":
            head = file.read(_CHUNK_HEAD.size)
            if len(head) < _CHUNK_HEAD.size:
                raise ValueError("the file ends before its last chunk")
            length, kind = _CHUNK_HEAD.unpack(head)
            if kind in _PNG_METADATA:
                kept += head + file.read(length + _CHUNK_CHECKSUM.size)
            else:
                file.seek(length + _CHUNK_CHECKSUM.size, io.SEEK_CUR)
    for empty in (b"IDAT", b"IEND"):
        kept += _CHUNK_HEAD.pack(0, empty) + _CHUNK_CHECKSUM.pack(zlib.crc32(empty))
    return io.BytesIO(kept)
