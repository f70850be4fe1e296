"""What can be wrong with a video. Every error carries the path and the backend that met it, and survives pickling."""

from pathlib import Path


class VideoError(ValueError):
    """A video cannot be read as it was asked for.

    Args:
        path: The video, or a word for one that has no path.
        backend: Name of the backend that met it.
        reason: What was got, and what was expected.

    Attributes:
        path: As given, as text.
        backend: As given.
        reason: As given.
    """

    def __init__(self, path: str | Path, backend: str, reason: str) -> None:
        self.path, self.backend, self.reason = str(path), backend, reason
        super().__init__(self.describe())

    def describe(self) -> str:
        """The message."""
        return f"{self.path} ({self.backend}): {self.reason}"

    def __reduce__(self) -> tuple[type["VideoError"], tuple[object, ...]]:
        """Built again from what it was built from, in another process too."""
        return type(self), (self.path, self.backend, self.reason)


class VideoOpenError(VideoError):
    """There is no such file, it is no video, or the backend does not know its format."""


class VideoEmptyError(VideoError):
    """The video is there but has no frames."""


class VideoTimeoutError(VideoError):
    """Reading took longer than it may, and the process that read was stopped."""


class VideoDecodeError(VideoError):
    """A frame is missing or broken, or the backend would have returned another one.

    Args:
        path: The video.
        backend: Name of the backend.
        reason: What was got, and what was expected.
        index: The frame, in order of presentation, where one can be named.
        time_s: Its time in seconds after the first frame.

    Attributes:
        index: As given.
        time_s: As given.
    """

    def __init__(
        self, path: str | Path, backend: str, reason: str, index: int | None = None, time_s: float | None = None
    ) -> None:
        self.index, self.time_s = index, time_s
        super().__init__(path, backend, reason)

    def describe(self) -> str:
        """The message, with the frame where one is known."""
        if self.index is None:
            return super().describe()
        time_s = "" if self.time_s is None else f" at {self.time_s:.3f} s"
        return f"{self.path} ({self.backend}), frame {self.index}{time_s}: {self.reason}"

    def __reduce__(self) -> tuple[type[VideoError], tuple[object, ...]]:
        """Built again from what it was built from, in another process too."""
        return type(self), (self.path, self.backend, self.reason, self.index, self.time_s)


def brief(error: Exception) -> str:
    """The first line of what a decoder says, which may go on with a stack of its own."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else f"{line[:200]}..."
