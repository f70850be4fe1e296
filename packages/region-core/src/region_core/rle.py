"""COCO run-length encoding of masks, in numpy.

The format: the mask is read column by column, `counts` holds the lengths of its runs, starting with zeros (the first
count may be 0), `size` is [height, width]. Compressed counts are text: each number in groups of five bits, lowest
first, as characters from "0" on, with a sixth bit where another group follows and the sign in the last group's fifth
bit; from the fourth number on it is the difference to the number two before.

Public decoders read past their buffers when the counts are damaged and allocate whatever `size` claims. Here the size
is compared with the image's before anything is allocated, and every count is checked.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Int64, UInt8

_OFFSET = 48  # the character "0"
_MORE, _SIGN, _BITS = 0x20, 0x10, 0x1F
_MAX_GROUPS = 7  # thirty-five bits: more than any run of pixels


class Rle(TypedDict):
    """A mask in COCO's run-length encoding."""

    size: list[int]
    counts: str | list[int]


def decode_rle(
    rle: Mapping[str, object], *, height: int, width: int, where: str = "RLE"
) -> Bool[np.ndarray, "{height} {width}"]:
    """Mask of a COCO RLE, with compressed counts (str or bytes) or a list of them.

    Args:
        rle: `size` [height, width] and `counts`.
        height: Height of the image that the mask belongs to.
        width: Width of that image.
        where: Place of the RLE (file, record, key), for error messages.

    Returns:
        The mask; its memory runs down the columns, as the format does.

    Raises:
        ValueError: The RLE's size is not the image's, or its counts are damaged or do not cover the image.
    """
    counts = _checked_counts(rle, height, width, where)
    return np.repeat(_run_values(len(counts)), counts).reshape(width, height).T


def decode_rles(
    rles: Sequence[Mapping[str, object]], *, height: int, width: int, where: str = "RLE"
) -> Bool[np.ndarray, "{len(rles)} {height} {width}"]:
    """Masks of all RLEs of one image in one array, as `decode_rle` makes them one by one; none is legal."""
    counts = [_checked_counts(rle, height, width, f"{where}[{index}]") for index, rle in enumerate(rles)]
    if not counts:
        return np.zeros((0, height, width), dtype=bool)
    values = np.concatenate([_run_values(len(runs)) for runs in counts])
    return np.repeat(values, np.concatenate(counts)).reshape(len(counts), width, height).transpose(0, 2, 1)


def encode_rle(mask: Bool[np.ndarray, "height width"], *, compressed: bool = True) -> Rle:
    """COCO RLE of a mask, with text as counts or, not compressed, a list of numbers."""
    height, width = mask.shape
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0], starts, [pixels.size]])
    if pixels.size and pixels[0]:
        edges = np.concatenate([[0], edges])
    counts = np.diff(edges)
    return Rle(size=[height, width], counts=_write_text(counts) if compressed else counts.tolist())


def check_rle(rle: Mapping[str, object], *, height: int | None = None, width: int | None = None, where: str) -> None:
    """Check the form of an RLE and, where given, its size, without reading the counts.

    Raises:
        ValueError: `size` or `counts` is missing, of a wrong type, or the size is not the expected one.
    """
    if not rle.keys() >= {"size", "counts"}:
        raise ValueError(f"{where}: an RLE needs the keys 'size' and 'counts', got {sorted(map(str, rle))}")
    size = rle["size"]
    is_size = isinstance(size, list | tuple) and [type(side) for side in size] == [int, int] and min(size) >= 0
    if not is_size:
        raise ValueError(f"{where}: an RLE's 'size' is [height, width], got {size!r}")
    if height is not None and width is not None and tuple(size) != (height, width):
        raise ValueError(
            f"{where}: the RLE's size is {list(size)}, expected the image's [height, width] {[height, width]}"
        )
    if not isinstance(rle["counts"], str | bytes | list | tuple):
        kind = type(rle["counts"]).__name__
        raise ValueError(f"{where}: an RLE's 'counts' is text or a list of run lengths, got {kind}")


def _checked_counts(rle: Mapping[str, object], height: int, width: int, where: str) -> Int64[np.ndarray, " runs"]:
    check_rle(rle, height=height, width=width, where=where)
    counts = _read_counts(rle["counts"], where)
    out_of_range = (counts < 0) | (counts > height * width)
    if out_of_range.any():
        run = int(np.argmax(out_of_range))
        raise ValueError(f"{where}: run {run} of the counts has length {counts[run]}, expected 0 to {height * width}")
    total = int(counts.sum())
    if total != height * width:
        raise ValueError(
            f"{where}: the counts cover {total} pixels, expected {height * width} for a mask of {height} x {width}"
        )
    return counts


def _run_values(num_runs: int) -> Bool[np.ndarray, " {num_runs}"]:
    values = np.zeros(num_runs, dtype=bool)
    values[1::2] = True
    return values


def _read_counts(counts: object, where: str) -> Int64[np.ndarray, " runs"]:
    if isinstance(counts, str):
        counts = counts.encode("utf-8")
    if isinstance(counts, bytes):
        return _read_text(counts, where)
    try:
        numbers = np.asarray(counts)
    except (ValueError, OverflowError):
        numbers = np.empty((0, 0))
    if numbers.size == 0 and numbers.ndim == 1:
        return np.empty(0, dtype=np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or numbers.max() >= 2**62:
        raise ValueError(f"{where}: an RLE's counts are run lengths (whole numbers), got {counts!r:.80}")
    return numbers.astype(np.int64)


def _read_text(text: bytes, where: str) -> Int64[np.ndarray, " runs"]:
    """Decode all numbers of a compressed string at once."""
    if not text:
        return np.empty(0, dtype=np.int64)
    symbols = np.frombuffer(text, dtype=np.uint8) - np.uint8(_OFFSET)  # what lies below "0" wraps around to above 63
    if symbols.max() > _MORE | _BITS:
        position = int(np.argmax(symbols > _MORE | _BITS))
        raise ValueError(f"{where}: byte {position} of the RLE's counts is {text[position : position + 1]!r}, no code")
    is_last = symbols < _MORE
    if not is_last[-1]:
        raise ValueError(f"{where}: the RLE's counts are cut off inside their last number, after {len(text)} bytes")
    counts = _join_groups(symbols, is_last, where)
    # Differences to the number two before, from the fourth number on (and so from the third for the even ones).
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _join_groups(
    symbols: UInt8[np.ndarray, " symbols"], is_last: Bool[np.ndarray, " symbols"], where: str
) -> Int64[np.ndarray, " runs"]:
    ends = np.flatnonzero(is_last)
    num_groups = np.diff(ends, prepend=-1)
    longest = int(num_groups.max())
    if longest > _MAX_GROUPS:
        raise ValueError(
            f"{where}: number {int(num_groups.argmax())} of the RLE's counts has {longest} digits, garbage"
        )
    # Highest group first: start from the sign (-1 or 0) and shift the lower groups in, for all numbers at once.
    bits = symbols & _BITS
    numbers = -((symbols[ends] & _SIGN) != 0).astype(np.int64)
    for group in range(longest):
        present = num_groups > group
        numbers[present] = (numbers[present] << 5) | bits[ends[present] - group]
    return numbers


def _write_text(counts: Int64[np.ndarray, " runs"]) -> str:
    """Code all numbers at once: a table of numbers by groups, of which the needed ones are kept."""
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    needed = np.ones(len(numbers), dtype=np.int64)
    rest = numbers >> 4  # a number fits in its groups if only copies of its sign are left above them
    while ((rest != 0) & (rest != -1)).any():
        needed += (rest != 0) & (rest != -1)
        rest = rest >> 5
    group = np.arange(needed.max(initial=1))
    symbols = (numbers[:, None] >> (5 * group)) & _BITS
    symbols = symbols + _MORE * (group < needed[:, None] - 1) + _OFFSET
    return symbols[group < needed[:, None]].astype(np.uint8).tobytes().decode("ascii")
