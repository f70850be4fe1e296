import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from region_core import check_rle, decode_rle, decode_rles, encode_rle

PLUS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))


def plain_text(counts):
    """The published encoder's loop, one number and one group at a time."""
    text = ""
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group = number & 0x1F
            number >>= 5
            more = number != (-1 if group & 0x10 else 0)
            text += chr(48 + (group | (0x20 if more else 0)))
    return text


def plain_counts(mask):
    """Runs of a mask read column by column, starting with zeros."""
    counts, current = [0], False
    for pixel in mask.T.reshape(-1):
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    return counts


# contract


def test_shape_dtype_and_forms():
    for compressed in (True, False):
        rle = encode_rle(PLUS, compressed=compressed)
        assert rle["size"] == [3, 3]
        mask = decode_rle(rle, height=3, width=3)
        assert mask.dtype == bool
        assert np.array_equal(mask, PLUS)
    assert encode_rle(PLUS, compressed=False)["counts"] == [1, 1, 1, 3, 1, 1, 1]


def test_bytes_and_tuples_are_accepted():
    rle = encode_rle(PLUS)
    assert isinstance(rle["counts"], str)
    assert np.array_equal(decode_rle({"size": (3, 3), "counts": rle["counts"].encode()}, height=3, width=3), PLUS)
    assert np.array_equal(decode_rle({"size": (3, 3), "counts": (3, 3, 3)}, height=3, width=3)[:, 1], [True] * 3)


def test_no_rles_and_masks_without_pixels():
    assert decode_rles([], height=3, width=4).shape == (0, 3, 4)
    empty = np.zeros((0, 4), dtype=bool)
    for compressed in (True, False):
        assert decode_rle(encode_rle(empty, compressed=compressed), height=0, width=4).shape == (0, 4)


@pytest.mark.parametrize(
    ("rle", "expected"),
    [
        ({"counts": [9]}, r"needs the keys 'size' and 'counts', got \['counts'\]"),
        ({"size": [3, 3]}, "needs the keys 'size' and 'counts'"),
        ({"size": [3], "counts": [9]}, r"'size' is \[height, width\], got \[3\]"),
        ({"size": "33", "counts": [9]}, "'size' is"),
        ({"size": [3.0, 3], "counts": [9]}, "'size' is"),
        ({"size": [-3, -3], "counts": [9]}, "'size' is"),
        ({"size": [4, 3], "counts": [12]}, r"size is \[4, 3\], expected the image's \[height, width\] \[3, 3\]"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, r"size is \[1000000, 1000000\]"),
        ({"size": [3, 3], "counts": None}, "text or a list of run lengths, got NoneType"),
        ({"size": [3, 3], "counts": [3, 3]}, "cover 6 pixels, expected 9 for a mask of 3 x 3"),
        ({"size": [3, 3], "counts": []}, "cover 0 pixels, expected 9"),
        ({"size": [3, 3], "counts": ""}, "cover 0 pixels, expected 9"),
        ({"size": [3, 3], "counts": [8, 2]}, "cover 10 pixels, expected 9"),
        ({"size": [3, 3], "counts": [10, -1]}, "run 0 of the counts has length 10, expected 0 to 9"),
        ({"size": [3, 3], "counts": [5, -1, 5]}, "run 1 of the counts has length -1"),
        ({"size": [3, 3], "counts": [2**61] * 8}, "run 0 of the counts has length"),
        ({"size": [3, 3], "counts": [2**70]}, "whole numbers"),
        ({"size": [3, 3], "counts": [2**63 + 5]}, "whole numbers"),
        ({"size": [3, 3], "counts": [4.5, 4.5]}, "whole numbers"),
        ({"size": [3, 3], "counts": [True, False]}, "whole numbers"),
        ({"size": [3, 3], "counts": ["9"]}, "whole numbers"),
        ({"size": [3, 3], "counts": [[9]]}, "whole numbers"),
        ({"size": [3, 3], "counts": [[9], [1, 2]]}, "whole numbers"),
        ({"size": [3, 3], "counts": "9 "}, r"byte 1 of the RLE's counts is b' ', no code"),
        ({"size": [3, 3], "counts": "9~"}, "byte 1 of the RLE's counts is b'~', no code"),
        ({"size": [3, 3], "counts": "9é"}, "byte 1 of the RLE's counts"),
        ({"size": [3, 3], "counts": "\x00"}, "byte 0 of the RLE's counts"),
        ({"size": [3, 3], "counts": "9o"}, "cut off inside their last number, after 2 bytes"),
        ({"size": [3, 3], "counts": "o" * 40 + "0"}, "41 digits"),
        ({"size": [3, 3], "counts": "9M"}, "run 1 of the counts has length -3"),
    ],
)
def test_damaged_rle(rle, expected):
    with pytest.raises(ValueError, match=rf"train\.json\[5\]: .*{expected}"):
        decode_rle(rle, height=3, width=3, where="train.json[5]")


def test_several_name_the_damaged_one():
    good = encode_rle(PLUS)
    with pytest.raises(ValueError, match=r"rle\[1\]: the counts cover 8 pixels"):
        decode_rles([good, {"size": [3, 3], "counts": [8]}], height=3, width=3, where="rle")


def test_form_alone_can_be_checked_before_the_image_is_known():
    check_rle(encode_rle(PLUS), where="here")
    with pytest.raises(ValueError, match="here: an RLE needs the keys"):
        check_rle({"size": [3, 3]}, where="here")


# reference


def test_text_worked_out_by_hand():
    # One column of 100 pixels: 40 zeros, 5 ones, 50 zeros, 5 ones. 40 = 0b01_01000: low group 8 with "more" -> 88 "X",
    # then 1 -> "1"; 5 -> "5"; 50 = 1 * 32 + 18: 18 + 32 + 48 = 98 "b", then "1"; 5 - 5 = 0 -> "0".
    mask = np.zeros((100, 1), dtype=bool)
    mask[40:45] = mask[95:] = True
    assert encode_rle(mask) == {"size": [100, 1], "counts": "X15b10"}
    assert encode_rle(mask, compressed=False)["counts"] == [40, 5, 50, 5]


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_equals_plain_encoder(mask):
    counts = plain_counts(mask)
    assert encode_rle(mask, compressed=False)["counts"] == counts
    assert encode_rle(mask)["counts"] == plain_text(counts)


def test_long_runs_need_many_groups():
    mask = np.zeros((1500, 2000), dtype=bool)
    mask[700, 3] = mask[0, 1999] = True
    rle = encode_rle(mask)
    assert rle["counts"] == plain_text(encode_rle(mask, compressed=False)["counts"])
    assert np.array_equal(decode_rle(rle, height=1500, width=2000), mask)


def test_zero_runs_inside_are_legal():
    assert decode_rle({"size": [1, 5], "counts": [1, 2, 0, 2]}, height=1, width=5).tolist() == [[0, 1, 1, 1, 1]]


# properties


@settings(max_examples=60, deadline=None)
@given(st.lists(MASKS, min_size=1, max_size=3), st.booleans())
def test_round_trip_one_by_one_and_together(masks, compressed):
    height, width = masks[0].shape
    same_size = [np.resize(mask, (height, width)) for mask in masks]
    rles = [encode_rle(mask, compressed=compressed) for mask in same_size]
    assert np.array_equal(decode_rles(rles, height=height, width=width), np.stack(same_size))
    for rle, mask in zip(rles, same_size, strict=True):
        assert np.array_equal(decode_rle(rle, height=height, width=width), mask)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=30), st.text(max_size=30), st.lists(st.integers(-3, 30), max_size=8)))
def test_garbage_is_an_error_or_a_mask_of_the_right_size(counts):
    try:
        mask = decode_rle({"size": [4, 5], "counts": counts}, height=4, width=5)
    except ValueError as error:
        assert str(error).startswith("RLE: ")  # noqa: PT017
    else:
        assert mask.shape == (4, 5)
