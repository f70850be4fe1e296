"""Rows of record files: JSON arrays, JSON lines and parquet, of several files behind each other.

Rows stay packed as bytes and are parsed when they are asked for: a list of dictionaries would be copied into every
loading process, page by page, as reading it counts references.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from region_training.records import read_records
from region_training.settings import ConfigError

Row = Mapping[str, object]

KEYS = ("id", "conversations", "messages", "video", "videos", "image", "images", "kind")
"""What a record is made of; other keys are not kept."""


class Rows:
    """The rows of several files, packed; only the keys that a record is made of are kept.

    Args:
        rows: Where a row stands, and the row.
    """

    def __init__(self, rows: Iterable[tuple[str, Row]]) -> None:
        packed = bytearray()
        ends: list[int] = []
        places: list[int] = []
        self._sources: list[str] = []
        for source, row in rows:
            kept = {key: row[key] for key in KEYS if row.get(key) is not None}
            if not self._sources or self._sources[-1] != source:
                self._sources.append(source)
                places.append(len(ends))
            try:
                packed += json.dumps(kept, ensure_ascii=False).encode()
            except TypeError as error:
                raise ValueError(f"{source} record {len(ends) - places[-1]}: {error}") from error
            ends.append(len(packed))
        self._packed = bytes(packed)
        self._ends = np.array([0, *ends], dtype=np.int64)
        self._places = np.array(places, dtype=np.int64)

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Row:
        """One row."""
        return json.loads(self._packed[self._ends[index] : self._ends[index + 1]])

    @property
    def fingerprint(self) -> str:
        """Hash of all rows in order."""
        return hashlib.sha256(self._packed).hexdigest()

    def where(self, index: int) -> str:
        """What to call a row in an error: its file, its position in it, its id."""
        source = int(np.searchsorted(self._places, index, side="right")) - 1
        return f"{self._sources[source]} record {index - self._places[source]} (id {self[index].get('id')!r})"


def read_rows(root: Path | str, files: Sequence[str]) -> Rows:
    """Read all rows of some files.

    Args:
        root: Folder that names of files are relative to.
        files: Names or patterns of `.json`, `.jsonl` and `.parquet` files.

    Raises:
        ConfigError: A name or pattern finds nothing.
        ValueError: A file is not such a file; the message names it and the line, record or row.
    """
    return Rows(row for path in find_files(root, files) for row in _rows_of(path))


def find_files(root: Path | str, files: Sequence[str]) -> list[Path]:
    """The files that names and patterns stand for, in the order given, each pattern's sorted.

    Raises:
        ConfigError: Names and patterns that find nothing, all of them.
    """
    found = {name: sorted(Path(root).glob(name)) if _is_pattern(name) else [Path(root) / name] for name in files}
    missing = [name for name, paths in found.items() if not any(path.is_file() for path in paths)]
    if missing:
        raise ConfigError(f"record files not found below {str(root)!r}: {', '.join(map(repr, missing))}")
    return [path for name in files for path in found[name] if path.is_file()]


def _rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".parquet":
        yield from ((path.name, row) for row in _parquet_rows(path))
    elif path.suffix in (".json", ".jsonl"):
        yield from ((path.name, row) for row in read_records(path))
    else:
        raise ConfigError(f"{path}: expected a file of records that ends with .json, .jsonl or .parquet")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in KEYS]
            for batch in file.iter_batches(columns=columns):
                yield from ({key: _without_missing(value) for key, value in row.items()} for row in batch.to_pylist())
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file that can be read: {error}") from error


def _without_missing(value: object) -> object:
    """Parquet gives every object all keys of its column, with None where a row has none."""
    if isinstance(value, dict):
        return {key: _without_missing(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_missing(entry) for entry in value]
    return value


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")
