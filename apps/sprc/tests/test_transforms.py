"""Preprocessing: CLIP4Cir's exact geometry, and boxes that follow the pixels."""

import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, WebPImagePlugin
from roi_region_loss.filtering import transform_boxes
from sprc.transforms import SquarePad, TargetPad, build_transform

FULL = np.array([[0.0, 0.0, 1.0, 1.0]])


def visible(kind: str, width: int, height: int) -> list[float]:
    """What part of the original the model's input shows, as a box of the original."""
    affine = build_transform(kind, 224).affine(width, height)
    scale, shift = np.diag(affine[:, :2]), affine[:, 2]
    return [*((0 - shift) / scale), *((1 - shift) / scale)]


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "padding"),
    [
        ((600, 400), (0, 40)),
        ((400, 600), (40, 0)),
        ((480, 400), (0, 0)),  # ratio 1.2
        ((1000, 300), (0, 250)),
        ((500, 400), (0, 0)),  # ratio 1.25 is already the target
        ((501, 400), (0, 0)),  # 400.8 wanted: less than one whole pixel on each side
    ],
)
def test_target_pad_adds_what_the_published_numbers_say(size, padding):
    assert TargetPad().padding(*size) == padding
    width, height = size[0] + 2 * padding[0], size[1] + 2 * padding[1]
    assert TargetPad()(Image.new("RGB", size, "white")).size == (width, height)


def test_square_pad_leaves_one_pixel_of_an_odd_difference():
    assert SquarePad().padding(10, 7) == (0, 1)
    assert SquarePad()(Image.new("RGB", (10, 7))).size == (10, 9)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((600, 400), (0.10, 0.90)),
        ((1000, 300), (0.10, 0.90)),
        ((480, 400), (0.0818, 0.9182)),  # 268 x 224, 22 cut off on either side
    ],
)
def test_visible_part_of_the_longer_side(size, expected):
    found = visible("targetpad", *size)
    np.testing.assert_allclose([found[0], found[2]], expected, atol=1e-3)
    upright = visible("targetpad", *size[::-1])
    np.testing.assert_allclose([upright[1], upright[3]], expected, atol=1e-3)


def test_resize_shows_everything_and_squarepad_too():
    np.testing.assert_allclose(visible("resize", 600, 400), FULL[0], atol=1e-12)
    left, top, right, bottom = visible("squarepad", 600, 400)
    np.testing.assert_allclose([left, right], [0, 1], atol=1e-12)
    np.testing.assert_allclose([top, bottom], [-0.25, 1.25], atol=1e-12)


@pytest.mark.parametrize("kind", ["targetpad", "squarepad"])
@pytest.mark.parametrize("size", [(60, 40), (40, 60), (48, 40), (51, 50), (100, 30), (40, 40)])
def test_pixels_equal_those_of_the_published_steps(kind, size):
    # The steps written with Pillow alone, as CLIP4Cir chains them.
    image = Image.fromarray(picture(*size))
    pad = TargetPad() if kind == "targetpad" else SquarePad()
    pad_x, pad_y = pad.padding(*size)
    canvas = Image.new("RGB", (size[0] + 2 * pad_x, size[1] + 2 * pad_y))
    canvas.paste(image, (pad_x, pad_y))
    short, long = min(canvas.size), max(canvas.size)
    sides = {short: 32, long: int(32 * long / short)}
    resized = canvas.resize((sides[canvas.size[0]], sides[canvas.size[1]]), Image.Resampling.BICUBIC)
    left, top = (round((side - 32) / 2.0) for side in resized.size)
    expected = np.array(resized.crop((left, top, left + 32, top + 32))).transpose(2, 0, 1)
    found = build_transform(kind, 32)(image)
    np.testing.assert_array_equal(found.image.numpy(), expected)
    assert found.image.dtype == torch.uint8
    assert found.affine.dtype == np.float64


@settings(max_examples=40, deadline=None)
@given(st.integers(60, 300), st.integers(60, 300), st.sampled_from(["targetpad", "squarepad", "resize"]), st.data())
def test_a_drawn_box_lands_where_its_numbers_say(width, height, kind, data):
    # Trap "flips, crops and pads without moving boxes": TargetPad moves every box.
    x0 = data.draw(st.integers(0, width - 30))
    y0 = data.draw(st.integers(0, height - 30))
    x1 = data.draw(st.integers(x0 + 25, width))
    y1 = data.draw(st.integers(y0 + 25, height))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y0:y1, x0:x1] = 255
    image, affine = build_transform(kind, 128)(pixels)
    box = np.array([[x0 / width, y0 / height, x1 / width, y1 / height]])
    expected = transform_boxes(box, affine)[0].clip(0, 1) * 128
    if (expected[2:] - expected[:2]).min() < 4:
        return  # cut away: nothing to measure
    column, row = ((expected[:2] + expected[2:]) / 2).astype(int)
    light = image[0].numpy() / 255
    # Edges to a fraction of a pixel: the light on either side of the box's middle.
    found = [column - light[row, :column].sum(), row - light[:row, column].sum()]
    found += [column + light[row, column:].sum(), row + light[row:, column].sum()]
    assert np.abs(np.array(found) - expected).max() <= 0.25


def test_a_palette_image_is_turned_rgb_before_it_is_resized(tmp_path):
    smooth = Image.fromarray(np.tile(np.linspace(0, 255, 60, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    smooth.quantize(16).save(tmp_path / "palette.png")
    ours = build_transform("targetpad", 32).read(tmp_path / "palette.png").image
    theirs = build_transform("targetpad", 32, upstream_order=True).read(tmp_path / "palette.png").image
    assert len(ours[0].unique()) > 16  # bicubic between colours
    assert len(theirs[0].unique()) <= 17  # a palette has no colours between (black padding comes on top)


def test_upstream_order_changes_nothing_for_plain_images(tmp_path):
    Image.fromarray(picture(60, 40)).save(tmp_path / "plain.png")
    found = [
        build_transform("targetpad", 32, upstream_order=order).read(tmp_path / "plain.png") for order in (False, True)
    ]
    assert torch.equal(found[0].image, found[1].image)


def test_size_from_the_header_is_that_of_the_upright_image(tmp_path):
    image = Image.fromarray(picture(60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    transform = build_transform("targetpad", 32)
    assert transform.original_size(tmp_path / "turned.jpg") == (40, 60)
    np.testing.assert_array_equal(transform.read(tmp_path / "turned.jpg").affine, transform.affine(40, 60))
    assert build_transform("targetpad", 32, upstream_order=True).original_size(tmp_path / "turned.jpg") == (60, 40)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["exif before", "exif behind", "xmp behind"])
def test_a_png_tells_its_orientation_wherever_it_stands(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = tmp_path / "whole.png"
    Image.fromarray(picture(60, 40)).save(whole, **({"exif": exif} if kind == "exif before" else {}))
    content = whole.read_bytes()
    chunk = {
        "exif before": b"",
        "exif behind": _chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")),
        "xmp behind": _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'),
    }[kind]
    whole.write_bytes(content[:-12] + chunk + content[-12:])
    transform = build_transform("targetpad", 32)
    assert transform.original_size(whole) == (40, 60)
    np.testing.assert_array_equal(transform.read(whole).affine, transform.affine(40, 60))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_the_size_is_read_without_decoding(tmp_path, monkeypatch, ending):
    # Every data worker asks for it in every epoch, also where tokens are cached.
    file = tmp_path / f"image.{ending}"
    Image.fromarray(picture(60, 40)).save(file)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail(f"decodes {image}"))
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "load", lambda image: pytest.fail(f"decodes {image}"))
    assert build_transform("targetpad", 32).original_size(file) == (60, 40)


def test_pixels_and_pictures_give_the_same():
    pixels = picture(50, 30)
    transform = build_transform("squarepad", 16)
    assert torch.equal(transform(pixels).image, transform(Image.fromarray(pixels)).image)


def test_keys_tell_transforms_apart():
    keys = {build_transform(kind, size).key for kind in ("targetpad", "squarepad", "resize") for size in (32, 64)}
    keys |= {build_transform("targetpad", 32, upstream_order=True).key}
    assert len(keys) == 7


@pytest.mark.parametrize("upstream_order", [False, True])
def test_what_is_no_image_is_named(tmp_path, upstream_order):
    transform = build_transform("targetpad", 32, upstream_order=upstream_order)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png"):
        transform.read(tmp_path / "text.png")
    Image.fromarray(picture(60, 40)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png: damaged"):
        transform.read(tmp_path / "cut.png")
    with pytest.raises(ValueError, match=r"text\.png: no picture"):
        transform.original_size(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError):
        transform.original_size(tmp_path / "nowhere.png")
    if upstream_order:
        assert transform.original_size(tmp_path / "cut.png") == (60, 40)
    else:
        with pytest.raises(ValueError, match=r"cut\.png: damaged"):
            transform.original_size(tmp_path / "cut.png")


def test_faulty_settings_are_named():
    with pytest.raises(ValueError, match="'crop', expected one of targetpad, squarepad, resize"):
        build_transform("crop", 32)
    with pytest.raises(ValueError, match="is 0, expected 1"):
        build_transform("resize", 0)
