"""Teachers: who gives the features that are predicted.

The model's own tower while it is frozen, a copy of a tower that is trained, or another encoder. A teacher is not a
module and registers nothing, so none of its tensors is ever trained, saved, partitioned or counted; it runs without
gradient, in eval mode, a few frames at once. The live output of a tower that is trained is never a target: both would
agree on a constant.
"""

import functools
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Real
from torch import Tensor, nn

from video_autoregressive.encoding import Encoder, encode_vit
from video_autoregressive.features import FrameFeatures
from video_autoregressive.towers import evaluating, frozen_copy, is_trained, weights_hash

CHUNK = 16
"""Frames encoded at once."""


@runtime_checkable
class Teacher(Protocol):
    """Gives target features.

    Attributes:
        kind: `shared`, `snapshot`, `external` or `cache`.
        dim: Width of its features.
    """

    kind: str
    dim: int

    def encode(self, frames: Real[Tensor, "frames 3 height width"]) -> FrameFeatures:
        """Features of frames, without gradient, on the frames' device."""
        ...

    def fingerprint(self) -> str:
        """Equal for teachers that give equal features: a hash of weights, and how they are used."""
        ...

    def cast(self, dtype: torch.dtype) -> None:
        """Bring weights of its own to the precision of a run; the fingerprint stays that of the weights as given."""
        ...


class SharedTeacher:
    """The frozen tower of the model itself: no second copy of the weights, and usually no second pass.

    A forward that has read the frames already hands its features over as `FrameFeatures`; `encode` is for callers that
    only have frames.

    Args:
        dim: Width of the features.
        tower: The live tower, which is not copied; None if features are always handed over.
        encode: From tower and frames to features.
        chunk: Frames encoded at once.
    """

    kind = "shared"

    def __init__(
        self, dim: int, tower: nn.Module | None = None, *, encode: Encoder = encode_vit, chunk: int = CHUNK
    ) -> None:
        self.dim = dim
        self._tower = tower
        self._encode = encode
        self._chunk = chunk

    def encode(self, frames: Real[Tensor, "frames 3 height width"]) -> FrameFeatures:
        """Encode frames with the live tower.

        Raises:
            ValueError: There is none, or it is trained.
        """
        if self._tower is None:
            raise ValueError("a shared teacher without a tower: hand its features over as targets")
        if is_trained(self._tower):
            raise ValueError("the shared teacher's tower is trained: freeze it, or use teacher 'snapshot'")
        return _in_chunks(self._tower, self._encode, frames, self._chunk)

    def fingerprint(self) -> str:
        """Hash of the tower's weights; `shared` without a tower, whose model's own checkpoints hold them."""
        return "shared" if self._tower is None else f"{weights_hash(self._tower)}:{_describe(self._encode)}"

    def cast(self, dtype: torch.dtype) -> None:
        """Nothing: the tower is the model's, and has its precision."""


class SnapshotTeacher:
    """A copy of a tower that is trained, as it is now.

    Args:
        tower: Copied with its dtype, without its hooks. Under ZeRO-3 its weights have to be whole.
        dim: Width of the features.
        encode: From tower and frames to features.
        chunk: Frames encoded at once.

    Raises:
        ValueError: The tower's weights are partitioned.
    """

    kind = "snapshot"

    def __init__(self, tower: nn.Module, dim: int, *, encode: Encoder = encode_vit, chunk: int = CHUNK) -> None:
        self.dim = dim
        self._tower = frozen_copy(tower)
        self._encode = encode
        self._chunk = chunk
        self._cast_from: str | None = None

    def encode(self, frames: Real[Tensor, "frames 3 height width"]) -> FrameFeatures:
        """Encode frames with the copy, which moves to their device."""
        self._tower.to(frames.device)
        return _in_chunks(self._tower, self._encode, frames, self._chunk)

    def fingerprint(self) -> str:
        """Hash of the weights as they were copied, and how they are used."""
        return self._cast_from or f"{weights_hash(self._tower)}:{_describe(self._encode)}"

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the copy to the precision of a run."""
        self._cast_from = self.fingerprint()
        self._tower.to(dtype)


class ExternalTeacher:
    """An encoder that is no part of the model, with its own preprocessing.

    Args:
        encoder: Not copied; it is frozen, put in eval mode and follows the frames' device.
        dim: Width of the features.
        encode: From encoder and frames to features.
        preprocess: From the frames given to what the encoder expects; None leaves them.
        chunk: Frames encoded at once.
    """

    kind = "external"

    def __init__(
        self,
        encoder: nn.Module,
        dim: int,
        *,
        encode: Encoder = encode_vit,
        preprocess: Callable[[Tensor], Tensor] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        self.dim = dim
        self._encoder = encoder.requires_grad_(False).eval()
        self._encode = encode
        self._preprocess = preprocess
        self._chunk = chunk
        self._cast_from: str | None = None

    def encode(self, frames: Real[Tensor, "frames 3 height width"]) -> FrameFeatures:
        """Encode frames."""
        self._encoder.to(frames.device)
        return _in_chunks(self._encoder, self._encode, frames, self._chunk, self._preprocess)

    def fingerprint(self) -> str:
        """Hash of the encoder's weights as they were given, and how they are used."""
        steps = [self._encode] if self._preprocess is None else [self._preprocess, self._encode]
        return self._cast_from or ":".join([weights_hash(self._encoder), *map(_describe, steps)])

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the encoder to the precision of a run."""
        self._cast_from = self.fingerprint()
        self._encoder.to(dtype)


def _in_chunks(
    tower: nn.Module,
    encode: Encoder,
    frames: Real[Tensor, "frames 3 height width"],
    chunk: int,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> FrameFeatures:
    """Encode some frames after the other, without gradient, in eval mode; at least one frame."""
    parts = []
    with torch.no_grad(), evaluating(tower):
        for some in frames.split(chunk):
            ready = some if preprocess is None else preprocess(some)
            if not ready.is_floating_point():
                raise ValueError(f"frames: got {ready.dtype}, expected frames normalised for the teacher")
            parts.append(encode(tower, ready))
    return FrameFeatures.concatenated(parts)


def _describe(function: Callable[..., object]) -> str:
    """Name of a function with the arguments that a `partial` fixes, or a method with its object as that prints itself.

    The code is not looked at.
    """
    if isinstance(function, functools.partial):
        arguments = [f"{key}={value!r}" for key, value in sorted(function.keywords.items())]
        return f"{_describe(function.func)}({', '.join([*map(repr, function.args), *arguments])})"
    if isinstance(function, MethodType):
        return f"{_describe(function.__func__)}({function.__self__!r})"
    named = function if isinstance(function, FunctionType) else type(function)
    return f"{named.__module__}.{named.__qualname__}"
