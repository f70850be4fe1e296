"""The manifest of a data set's videos: what `check-data` found out, so that nobody need find it out again.

One JSON object per line: `path` below the root, `bytes` and `modified` of the file as it was checked, `frames` that
were asked for (0: all), and either `info` or `error`. An entry counts for a file of that size and time only: a file
that has changed since is as if it had never been checked.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from region_training.records import read_records, require
from region_training.run_folder import write_atomically
from video_autoregressive.frames import VideoInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileState:
    """What shows that a file has not changed.

    Attributes:
        bytes: Size of a file; of a folder, the number of files in it.
        modified: Time of the last change, in whole seconds: copies keep no more on some file systems.
    """

    bytes: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """The state of a file or folder.

        Raises:
            OSError: There is none.
        """
        status = path.stat()
        size = sum(1 for _ in path.iterdir()) if path.is_dir() else status.st_size
        return cls(size, int(status.st_mtime))


@dataclass(frozen=True)
class ManifestEntry:
    """One video.

    Attributes:
        path: As records name it.
        state: Of the file when it was checked; None where there was none.
        frames: Frames that were asked for; 0 stands for all.
        info: What it is; None for a bad video.
        error: What is wrong with it.
    """

    path: str
    state: FileState | None
    frames: int
    info: VideoInfo | None = None
    error: str | None = None

    def to_line(self) -> str:
        """The entry as a line of the file."""
        state = {} if self.state is None else asdict(self.state)
        found = {"error": self.error} if self.info is None else {"info": asdict(self.info)}
        return json.dumps({"path": self.path, **state, "frames": self.frames, **found}, ensure_ascii=False) + "\n"

    @classmethod
    def from_row(cls, row: Mapping[str, object], where: str) -> "ManifestEntry":
        """The entry of a line.

        Raises:
            ValueError: It is not one; the message names `where` and the key.
        """
        state = None
        if "bytes" in row:
            state = FileState(require(row, "bytes", int, where), require(row, "modified", int, where))
        info, error = None, None
        if "info" in row:
            try:
                info = VideoInfo(**require(row, "info", dict, where))
            except TypeError as fault:
                raise ValueError(f"{where}, key 'info': {fault}") from None
        else:
            error = require(row, "error", str, where)
        return cls(require(row, "path", str, where), state, require(row, "frames", int, where), info, error)


class Manifest:
    """Entries by path.

    Args:
        entries: One per video.
        name: What to call the manifest in messages.
    """

    def __init__(self, entries: Iterable[ManifestEntry], name: str = "manifest") -> None:
        self.entries = {entry.path: entry for entry in entries}
        self.name = name
        self._warned = False

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            ValueError: It is not one; the message names the line.
            OSError: It cannot be read.
        """
        rows = read_records(path)
        return cls((ManifestEntry.from_row(row, f"{path} entry {at}") for at, row in enumerate(rows)), str(path))

    def write(self, path: Path) -> None:
        """Write all entries, sorted by path; the folder is made if need be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(self.entries[name].to_line() for name in sorted(self.entries)))

    def find(self, name: str, file: Path) -> ManifestEntry | None:
        """The entry of a video, if it was checked and its file has not changed since; bad ones have an `error`.

        Args:
            name: As the record has it.
            file: The file or folder itself.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        try:
            state = FileState.of(file)
        except OSError:
            state = None
        if state == entry.state:
            return entry
        if not self._warned:
            self._warned = True
            logger.warning("%s: %r has changed since it was checked; run check-data again", self.name, name)
        return None

    def is_bad(self, name: str, file: Path) -> bool:
        """Whether a video was found to be bad, and has not changed since."""
        entry = self.entries.get(name)
        return entry is not None and entry.error is not None and self.find(name, file) is not None
