import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from region_training.images import read_depth, read_image, write_png


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)


def jpeg(pixels, orientation=None):
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def outcome(path):
    """The picture, or None and the message of the ValueError; anything else is raised."""
    try:
        return read_image(path), ""
    except ValueError as error:
        return None, str(error)


def png_header_only(width, height):
    """A PNG of 1-bit grey whose pixels compress to almost nothing, or are absent."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_png_is_read_as_it_was_written(tmp_path, picture):
    path = tmp_path / "new" / "a.png"
    write_png(path, picture)
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.flags.writeable
    np.testing.assert_array_equal(read, picture)
    write_png(path, picture[..., 0])
    np.testing.assert_array_equal(read_image(path), np.repeat(picture[..., :1], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # a white corner top left
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(np.ascontiguousarray(turned[orientation]), orientation))
    read = read_image(path)
    assert read.shape == (16, 32, 3)
    assert np.abs(read.astype(int) - upright).max() < 16


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, picture, mode):
    path = tmp_path / "a.tiff"
    Image.fromarray(picture).convert(mode).save(path)
    assert read_image(path).shape == picture.shape


def test_transparent_pixels_are_white(tmp_path):
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(read[0, 0], (10, 20, 30))
    np.testing.assert_array_equal(read[1, 1], (255, 255, 255))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file, expected JPEG"),
        (b"<!doctype html><html>404</html>", "got no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "got no picture"),
        (png_header_only(13_000, 13_000), "got 13000 x 13000 pixels, expected at most 50000000"),
        (png_header_only(20_000, 20_000), "too large"),
        (png_header_only(30, 30), "damaged picture"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_depth])
def test_what_is_no_picture_is_named(tmp_path, content, message, read):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError):
        read_image(tmp_path)


def test_the_pixel_limit_is_the_caller_s(tmp_path, picture):
    write_png(tmp_path / "a.png", picture)
    assert read_image(tmp_path / "a.png", max_pixels=800).shape == (20, 40, 3)
    with pytest.raises(ValueError, match="got 40 x 20 pixels, expected at most 799"):
        read_image(tmp_path / "a.png", max_pixels=799)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_every_truncation_is_an_error_or_the_whole_picture(tmp_path, picture, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        write_png(path, picture)
    else:
        path.write_bytes(jpeg(picture))
    whole, content = read_image(path), path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        read, message = outcome(path)
        if read is None:
            assert str(path) in message
        else:
            np.testing.assert_array_equal(read, whole)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_random_damage_is_a_value_error_or_a_picture(tmp_path, picture, kind):
    path = tmp_path / "a"
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(buffer, kind, exif=exif)
    rng = np.random.default_rng(1)
    for _ in range(60):
        content = bytearray(buffer.getvalue())
        for position in rng.integers(0, min(len(content), 400), 6):
            content[position] = rng.integers(0, 256)
        path.write_bytes(content)
        read, message = outcome(path)
        assert (str(path) in message) if read is None else (read.shape[2] == 3)


def test_depth_of_8_bits_spans_0_to_1(tmp_path):
    pixels = np.array([[0, 51], [102, 255]], dtype=np.uint8)
    write_png(tmp_path / "a.png", pixels)
    depth = read_depth(tmp_path / "a.png")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[0, 0.2], [0.4, 1]], rtol=1e-6)
    write_png(tmp_path / "b.png", np.repeat(pixels[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_depth(tmp_path / "b.png"), depth)


def test_depth_of_16_bits_keeps_them(tmp_path):
    pixels = np.array([[0, 1], [300, 65_535]], dtype=np.uint16)
    write_png(tmp_path / "a.png", pixels)
    np.testing.assert_allclose(read_depth(tmp_path / "a.png"), pixels / 65_535, rtol=1e-6)
    with pytest.raises(ValueError, match="depth values span 0 to 65535, expected 0 to 10000"):
        read_depth(tmp_path / "a.png", full_scale=10_000)
    write_png(tmp_path / "a.png", np.array([[0, 5000]], dtype=np.uint16))
    np.testing.assert_allclose(read_depth(tmp_path / "a.png", full_scale=10_000), [[0, 0.5]])
    with pytest.raises(ValueError, match="full_scale is 0, expected 1 or more"):
        read_depth(tmp_path / "a.png", full_scale=0)


def test_depth_is_not_taken_from_colours_nor_pictures_from_16_bits(tmp_path, picture):
    write_png(tmp_path / "a.png", picture)
    with pytest.raises(ValueError, match="got a colour picture, expected depth"):
        read_depth(tmp_path / "a.png")
    Image.fromarray(picture).convert("P").save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="mode 'P', expected grey"):
        read_depth(tmp_path / "p.png")
    write_png(tmp_path / "d.png", np.array([[300]], dtype=np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        read_image(tmp_path / "d.png")
