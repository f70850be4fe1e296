"""The ways to decode a video file, and which of them can be used here."""

import importlib
import logging
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from video_autoregressive.frames import DecodedFrames, FrameChoice, VideoInfo

BackendName = Literal["auto", "torchcodec", "pyav", "decord"]

logger = logging.getLogger(__name__)


@runtime_checkable
class VideoBackend(Protocol):
    """Reads videos. Indices and times are those of presentation; all backends agree on them.

    Attributes:
        name: Its name, for messages.
    """

    name: str

    def probe(self, path: str | Path) -> VideoInfo:
        """What the video holds."""
        ...

    def frame_times(self, path: str | Path) -> Float[Tensor, " all"]:
        """Seconds of all frames after the first."""
        ...

    def read(
        self, path: str | Path, wanted: Int[Tensor, " frames"] | FrameChoice, size: tuple[int, int] | None = None
    ) -> DecodedFrames:
        """Decode the frames of strictly increasing indices, resized to (height, width) where a size is given.

        The indices may be chosen by the times of all frames, so that a file is opened once.
        """
        ...


def available_backends() -> dict[str, str | None]:
    """Every backend for files with the reason why it cannot be used here, or None where it can."""
    return {"torchcodec": _torchcodec_lacks(), "pyav": _lacks("av"), "decord": _lacks("decord") or _lacks("av")}


def backend_of(name: BackendName = "auto") -> VideoBackend:
    """The backend of a name; `auto` is torchcodec where its libraries are, else PyAV, which is said in the log.

    Raises:
        ImportError: It cannot be used here; the message says why, and what to install.
        ValueError: No backend has this name.
    """
    reasons = available_backends()
    if name == "auto":
        name = "torchcodec"
        if reasons["torchcodec"] is not None:
            name = "pyav"
            logger.info("videos are decoded with PyAV: %s", reasons["torchcodec"])
    if name not in reasons:
        raise ValueError(f"backend: got {name!r}, expected 'auto' or one of {', '.join(map(repr, reasons))}")
    if reasons[name] is not None:
        raise ImportError(f"the backend {name!r} cannot be used: {reasons[name]}")
    return _build(name)


def _build(name: str) -> VideoBackend:
    # Each backend imports its decoder at the top of its module, so only the chosen one may be imported.
    if name == "torchcodec":
        from video_autoregressive.torchcodec_backend import TorchcodecBackend

        return TorchcodecBackend()
    if name == "decord":
        from video_autoregressive.decord_backend import DecordBackend

        return DecordBackend()
    from video_autoregressive.pyav_backend import PyavBackend

    return PyavBackend()


def _torchcodec_lacks() -> str | None:
    lacks = _lacks("torchcodec") or _lacks("av")
    if lacks is not None:
        return lacks
    if importlib.import_module("torchcodec").ffmpeg_major_version is None:  # it imports without, and then fails
        return "torchcodec finds no FFmpeg libraries; install FFmpeg (apt install ffmpeg, brew install ffmpeg)"
    return None


def _lacks(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        extra = "decord" if module == "decord" else "decoders"
        return f"{error}; install video-autoregressive[{extra}]"
    except (RuntimeError, OSError) as error:  # shared libraries that are missing or do not fit torch
        return f"{module} cannot be loaded: {str(error).strip().splitlines()[0]}"
    return None
