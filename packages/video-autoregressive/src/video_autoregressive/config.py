"""Settings of the reconstruction module and of the token layout of videos. No torch here: command lines read this.

The first block of `AutoregressiveConfig` holds the guide's keys with the guide's defaults. A key that is not known is
an error, and so are two keys that contradict each other.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

PoolMode = Literal["average", "max", "bilinear"]
Stream = Literal["uniform", "slowfast_pool", "recent_plus_global"]
Newline = Literal["grid", "frame", "one_token", "no_token"]
Loss = Literal["mse", "smooth_l1", "cosine"]
TargetNorm = Literal["layernorm", "l2", "none"]
TeacherKind = Literal["auto", "shared", "snapshot", "external", "cache"]
WeightSchedule = Literal["constant", "warmup"]

FASTER_STRIDE = 10
"""LLaVA-NeXT's default: every tenth frame keeps all its tokens."""


@dataclass(frozen=True)
class VideoTokenConfig:
    """How the pooled features of a video become tokens of the language model; LLaVA-OneVision's layout by default.

    Attributes:
        newline: Where the learned newline stands: after every row of every frame (`grid`), after every frame (`frame`),
            once after the video (`one_token`), nowhere (`no_token`).
        pool_stride: Side of the square of patches that becomes one token.
        pool_mode: How: `bilinear` (rounds sizes up, as LLaVA-OneVision does), `average` and `max` (round down, as
            LLaVA-NeXT does).
        faster_stride: 0 gives every frame the same tokens; n keeps them for every n-th frame only, the others are
            pooled twice as much, and every frame ends with a learned token (LLaVA-NeXT's `add_faster_video`).
    """

    newline: Newline = "one_token"
    pool_stride: int = 2
    pool_mode: PoolMode = "bilinear"
    faster_stride: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        _expect_one_of("newline", self.newline, Newline)
        _expect("pool_stride", self.pool_stride, self.pool_stride >= 1, "1 or more")
        _expect_one_of("pool_mode", self.pool_mode, PoolMode)
        _expect("faster_stride", self.faster_stride, self.faster_stride >= 0, "0 (off) or more")
        if self.faster_stride and self.newline not in ("grid", "no_token"):
            raise ValueError(
                f"newline: got {self.newline!r} with faster_stride {self.faster_stride}, expected 'grid' or "
                "'no_token': the faster stream ends every frame with a token of its own"
            )


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Settings of `AutoregressiveReconstructionModule`.

    Attributes:
        embedding_dim: Width of the teacher's features, which are predicted; also the predictor's, unless
            `predictor_dim` says another.
        num_hist: Frames that a prediction may look at, the current one included.
        loss_weight: Weight of the loss beside the language model's.
        num_heads: Attention heads of the predictor.
        num_layers: Its blocks.
        use_frame_causal_mask: Off lets a frame look at all frames, also later ones: an ablation that leaks, never a
            score.
        use_fast_slow_frames: Sample the last `num_fast` frames and `num_slow` frames of the whole clip (sets `stream`).
        fast_stride: Distance of the recent frames, in frames of the video: at 30 per second 8 is a quarter of a second.
        slow_stride: The guide's key for the distance of the frames of the whole clip, which `num_slow` decides; kept
            for its files, without effect.
        num_fast: Recent frames.
        num_slow: Frames spread over the whole clip.
        enable_multiscale_pooling: Compare at two scales: on the tokens' grid, and pooled by `mm_spatial_pool_stride`.
        mm_spatial_pool_stride: Stride of the second scale.
        mm_spatial_pool_mode: How the second scale is pooled.
        add_faster_video: LLaVA-NeXT's slow and fast tokens (sets `stream`).
        stream: `uniform`, `slowfast_pool` (all frames in time order, most pooled more) or `recent_plus_global`.
        faster_token_stride: With `slowfast_pool`, every n-th frame keeps all its tokens.
        predictor_dim: Width of the predictor; None is `embedding_dim`.
        dropout: Dropout of the predictor.
        horizon: How many frames ahead is predicted; 0 reconstructs the frame itself.
        loss: `mse`, `smooth_l1` or `cosine` (1 - cosine), in float32.
        target_norm: What is done to the target features: `layernorm` (without parameters, per token), `l2` or `none`.
        teacher: `shared` (the frozen tower of the model itself), `snapshot` (a copy of a tower that is trained),
            `external`, `cache`; `auto` is shared for a frozen tower, else snapshot.
        teacher_path: Folder of an external teacher, or of cached features.
        teacher_layer: Hidden state of the teacher that is predicted; None is the one that the model itself uses.
        teacher_chunk: Frames that a teacher of its own sees at once.
        hidden_layer: State of the language model that the predictor reads; -1 is the last, normed one.
        gap_tolerance: Only pairs of frames whose distance in time is within this fraction of the clip's usual distance
            are compared; 0 compares all.
        weight_schedule: `constant`, or `warmup`: the weight rises linearly over the first `weight_warmup` of training.
        weight_warmup: Share of training over which the weight rises.
        max_target_frames: Compare at most so many frames per clip, the last ones; 0 is all.
    """

    embedding_dim: int = 1152
    num_hist: int = 3
    loss_weight: float = 0.1
    num_heads: int = 8
    num_layers: int = 3
    use_frame_causal_mask: bool = True
    use_fast_slow_frames: bool = False
    fast_stride: int = 1
    slow_stride: int = 4
    num_fast: int = 8
    num_slow: int = 8
    enable_multiscale_pooling: bool = False
    mm_spatial_pool_stride: int = 2
    mm_spatial_pool_mode: PoolMode = "average"
    add_faster_video: bool = False

    stream: Stream = "uniform"
    faster_token_stride: int = FASTER_STRIDE
    predictor_dim: int | None = None
    dropout: float = 0.0
    horizon: int = 1
    loss: Loss = "mse"
    target_norm: TargetNorm = "layernorm"
    teacher: TeacherKind = "auto"
    teacher_path: str | None = None
    teacher_layer: int | None = None
    teacher_chunk: int = 16
    hidden_layer: int = -1
    gap_tolerance: float = 0.0
    weight_schedule: WeightSchedule = "constant"
    weight_warmup: float = 0.1
    max_target_frames: int = 0

    def __post_init__(self) -> None:
        """Check the values, and let the guide's two switches choose the stream."""
        for name, choices in _CHOICES.items():
            _expect_one_of(name, vars(self)[name], choices)
        for name in ("embedding_dim", "num_hist", "num_heads", "num_layers", "fast_stride", "slow_stride", "num_fast"):
            _expect(name, vars(self)[name], vars(self)[name] >= 1, "1 or more")
        for name in ("num_slow", "mm_spatial_pool_stride", "faster_token_stride", "teacher_chunk"):
            _expect(name, vars(self)[name], vars(self)[name] >= 1, "1 or more")
        for name in ("loss_weight", "horizon", "gap_tolerance", "max_target_frames"):
            _expect(name, vars(self)[name], vars(self)[name] >= 0, "0 or more")
        _expect("dropout", self.dropout, 0 <= self.dropout < 1, "a share below 1")
        _expect("weight_warmup", self.weight_warmup, 0 <= self.weight_warmup <= 1, "a share of training")
        _expect("predictor_dim", self.predictor_dim, self.predictor_dim is None or self.predictor_dim >= 1, "1 or more")
        if self.width % self.num_heads:
            raise ValueError(
                f"num_heads: got {self.num_heads}, which does not divide the predictor's width {self.width} "
                f"({'embedding_dim' if self.predictor_dim is None else 'predictor_dim'})"
            )
        if self.teacher in ("external", "cache") and self.teacher_path is None:
            raise ValueError(f"teacher_path: needed with teacher {self.teacher!r}")
        chosen = {"use_fast_slow_frames": "recent_plus_global", "add_faster_video": "slowfast_pool"}
        streams = {stream for key, stream in chosen.items() if vars(self)[key]}
        if self.stream != "uniform":
            streams.add(self.stream)
        if len(streams) > 1:
            raise ValueError(
                f"stream: got {self.stream!r}, use_fast_slow_frames {self.use_fast_slow_frames} and add_faster_video "
                f"{self.add_faster_video}, which ask for different streams ({', '.join(sorted(streams))})"
            )
        if streams:
            object.__setattr__(self, "stream", streams.pop())

    @property
    def width(self) -> int:
        """Width of the predictor."""
        return self.predictor_dim or self.embedding_dim

    @property
    def scales(self) -> tuple[int, ...]:
        """Strides at which predictions and targets are compared, each with an equal share of the weight."""
        if self.enable_multiscale_pooling and self.mm_spatial_pool_stride > 1:
            return (1, self.mm_spatial_pool_stride)
        return (1,)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "AutoregressiveConfig":
        """Settings from a mapping, for instance the guide's dictionary.

        Raises:
            ValueError: A key is not known (the message names the nearest), or a value cannot be.
        """
        known = [entry.name for entry in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
                raise ValueError(f"unknown key {key!r} of the autoregressive configuration{hint}")
        return cls(**values)


_CHOICES = {
    "mm_spatial_pool_mode": PoolMode,
    "stream": Stream,
    "loss": Loss,
    "target_norm": TargetNorm,
    "teacher": TeacherKind,
    "weight_schedule": WeightSchedule,
}


def _expect_one_of(name: str, value: str, choices: object) -> None:
    known = get_args(choices)
    _expect(name, value, value in known, f"one of {', '.join(known)}")


def _expect(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
