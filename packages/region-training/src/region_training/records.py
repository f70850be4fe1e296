"""Records on disk, read strictly: a JSON array or JSON lines, required fields, paths that stay under their root.

Python's own reader takes NaN, keeps the last of two equal keys and turns 1e999 into infinity; here each is an error
that names the file and the line or record.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeVar

Value = TypeVar("Value")

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*:")
_SPACE = re.compile(r"[ \t\r\n]*")


def read_records(path: Path | str) -> list[dict[str, object]]:
    """Read a file of records: a JSON array of objects, or one object per line.

    Args:
        path: The file; what it holds decides the form, not its name.

    Raises:
        ValueError: The file is not such a file; the message names the file and the line or record (from 0).
        OSError: The file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    return parse_records(text, str(path))


def parse_records(text: str, source: str) -> list[dict[str, object]]:
    """The records in a text; `source` names it in errors.

    Raises:
        ValueError: As `read_records`.
    """
    if text.lstrip(" \t\r\n").startswith("["):
        return list(_array_records(text, source))
    return list(_line_records(text, source))


def require(record: Mapping[str, object], key: str, kind: type[Value], where: str) -> Value:
    """A field that a record must have, of the type it must have.

    Args:
        record: The record.
        key: The field.
        kind: Its type; `float` also takes whole numbers, and `int` does not take true and false.
        where: Names the record in errors, e.g. `"train.json record 12"`.

    Raises:
        ValueError: The field is missing or has another type.
    """
    if key not in record:
        raise ValueError(
            f"{where}: {key!r} is missing, expected {kind.__name__}; it has {', '.join(record) or 'nothing'}"
        )
    value = record[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: {key!r} is {_short(value)} ({type(value).__name__}), expected {kind.__name__}")
    return value


def resolve_under(root: Path | str, relative: str, where: str) -> Path:
    """The path of a record's file, which must lie under the data's root.

    Args:
        root: The folder of the data.
        relative: The path as the record has it.
        where: Names the record in errors.

    Raises:
        ValueError: The path is a URL, absolute, empty, or leads out of the root (also through a symbolic link).
    """
    if not relative or "\0" in relative:
        raise ValueError(f"{where}: got the path {relative!r}, expected the name of a file under {str(root)!r}")
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).is_absolute():
        raise ValueError(f"{where}: got the absolute path {_short(relative)}, expected one relative to {str(root)!r}")
    if _URL.match(relative):
        raise ValueError(f"{where}: got the URL {_short(relative)}, expected a local path under {str(root)!r}")
    base = Path(root).resolve()
    resolved = (base / relative).resolve()
    if not resolved.is_relative_to(base):
        raise ValueError(f"{where}: the path {_short(relative)} leads out of {str(root)!r}")
    return resolved


def _array_records(text: str, source: str) -> Iterator[dict[str, object]]:
    """Decode element by element, so that an error knows its record."""
    decoder = _decoder()
    position = _after_space(text, _after_space(text, 0) + 1)
    closed = text.startswith("]", position)
    for index in itertools.count():
        if closed:
            break
        where = f"{source} record {index}"
        record, position = _decode(lambda start=position: decoder.raw_decode(text, start), where)
        yield _expect_object(record, where)
        position = _after_space(text, position)
        closed = text.startswith("]", position)
        if not closed and not text.startswith(",", position):
            raise ValueError(f"{where}: after it got {_short(text[position : position + 20])}, expected ',' or ']'")
        if not closed:
            position = _after_space(text, position + 1)
    rest = text[position + 1 :].strip()
    if rest:
        raise ValueError(f"{source}: after the array got {_short(rest[:20])}, expected the end of the file")


def _after_space(text: str, start: int) -> int:
    space = _SPACE.match(text, start)
    return start if space is None else space.end()


def _line_records(text: str, source: str) -> Iterator[dict[str, object]]:
    decoder = _decoder()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{source} line {number}"
            yield _expect_object(_decode(lambda line=line: decoder.decode(line), where), where)


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def _decode(decode: Callable[[], Value], where: str) -> Value:
    try:
        return decode()
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        # Not chained: the error carries the whole file.
        raise ValueError(f"{where}: {error.msg} at {line}column {error.colno}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _expect_object(record: object, where: str) -> dict[str, object]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: got {type(record).__name__} {_short(record)}, expected an object")
    return record


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return record


def _no_constant(name: str) -> float:
    raise ValueError(f"got {name}, expected a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"got {text}, which no float holds")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
