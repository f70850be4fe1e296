"""The autoregressive reconstruction loss: a video language model predicts the features of the next frame.

From the hidden states at the tokens of frame t, and of the frames just before it, a small transformer predicts what a
frozen vision encoder says about frame t + 1, patch by patch. The language model is causal, so nothing of frame t + 1 is
in those states; what is predicted well was understood from the past. Adjacent frames are nearly equal, so the error of
copying frame t is reported beside the model's: only `skill`, what is gained on that, says that anything is predicted.

Positions are never guessed: a `FrameBatch` says which hidden state belongs to which patch. Loss and target statistics
are float32 whatever autocast says.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Real
from region_core.losses import LossTerms
from torch import Tensor, nn

from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.encoding import encode_vit
from video_autoregressive.features import FrameFeatures
from video_autoregressive.layout import FrameBatch, FrameLayout, FrameSpan
from video_autoregressive.predictor import FramePredictor
from video_autoregressive.targets import COPY_TERM, Comparison, compare_frames, term_names
from video_autoregressive.teacher import SharedTeacher, SnapshotTeacher, Teacher
from video_autoregressive.teacher_cache import CachedTeacher
from video_autoregressive.towers import is_trained
from video_autoregressive.windows import plan_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AutoregressiveOutput:
    """What the module says about a batch.

    Attributes:
        losses: Sums and counts over compared tokens: `autoregressive`, or with two scales `autoregressive/stride1` and
            `autoregressive/stride<n>`, which share the weight; and `autoregressive_copy` with weight 0, the error at
            the first scale if the source frame's target were the prediction.
        num_targets: Compared tokens, summed over the scales.
        frame_errors: Mean error at the first scale of the prediction made *for* each frame, NaN where there is none;
            detached.
        copy_errors: The same for the copy.
    """

    losses: LossTerms
    num_targets: int
    frame_errors: Float[Tensor, " frames"]
    copy_errors: Float[Tensor, " frames"]

    @property
    def raw(self) -> Float[Tensor, ""]:
        """The loss before its weight: the mean over the scales of the mean per token; 0 without targets."""
        names = [name for name in self.losses if name != COPY_TERM]
        return torch.stack([self.losses.mean(name) for name in names]).mean()

    @property
    def weighted(self) -> Float[Tensor, ""]:
        """What is added to the language model's loss."""
        return self.losses.weighted_total()

    @property
    def copy(self) -> Float[Tensor, ""]:
        """Mean error per token of copying, at the first scale."""
        return self.losses.mean(COPY_TERM)

    @property
    def skill(self) -> Float[Tensor, ""]:
        """1 - error / error of copying, at the first scale: 0 is as good as copying, 1 perfect; detached.

        NaN without targets, and where a copy makes no error, as at horizon 0.
        """
        first = self.losses.mean(next(iter(self.losses))).detach()
        return torch.where(self.copy > 0, 1 - first / self.copy, torch.nan)


class AutoregressiveReconstructionModule(nn.Module):
    """Predicts teacher features of coming frames from hidden states; all its parameters take part in every call.

    Args:
        hidden_size: Width of the language model.
        config: Settings; `embedding_dim` is the width of the teacher's features.
        teacher: Gives targets where none are handed over; no part of it becomes part of this module.

    Attributes:
        loss_weight: Weight of the loss, unless a call names another.

    Raises:
        ValueError: The teacher is a module, or its features have another width than `embedding_dim`.
    """

    def __init__(self, hidden_size: int, config: AutoregressiveConfig, teacher: Teacher) -> None:
        super().__init__()
        if isinstance(teacher, nn.Module):
            raise ValueError(
                f"teacher: got the module {type(teacher).__name__}, whose weights would be trained and saved; wrap it "
                "in a SharedTeacher, SnapshotTeacher or ExternalTeacher"
            )
        if teacher.dim != config.embedding_dim:
            raise ValueError(
                f"embedding_dim: got {config.embedding_dim}, expected the width {teacher.dim} of the {teacher.kind} "
                "teacher's features"
            )
        self.config = config
        self.teacher = teacher
        self.loss_weight = config.loss_weight
        self.predictor = FramePredictor(hidden_size, config, config.embedding_dim)

    @property
    def enable_multiscale_pooling(self) -> bool:
        """Whether predictions are compared at two scales."""
        return self.config.enable_multiscale_pooling

    def forward(
        self,
        hidden: Float[Tensor, "batch length hidden"],
        frames: FrameBatch,
        targets: FrameFeatures | None = None,
        *,
        weight: float | int | None = None,
    ) -> AutoregressiveOutput:
        """Predict every frame's successor and compare.

        Args:
            hidden: States of the language model.
            frames: Which of them belong to which patch. Kept on the CPU, it makes no step wait for the device.
            targets: The teacher's features of the same frames in the same order. None only without frames.
            weight: Weight of the loss in this step; None is `loss_weight`.

        Returns:
            The losses. Without frames, or without any pair to compare, counts are 0 and the totals are zeros that
            depend on every parameter.

        Raises:
            ValueError: The layout is of other sequences, or the features are not those of the frames.
        """
        frames = frames.to("cpu")
        _check(hidden, frames, targets, self.config)
        windows = plan_windows(frames, self.config).to(hidden.device)
        predictions = self.predictor(hidden.flatten(0, 1).index_select(0, windows.rows), windows)
        if targets is None:
            targets = FrameFeatures(predictions.detach(), ())
        compared = compare_frames(predictions, windows.starts, frames, targets, self.config)
        return self._output(compared, self.loss_weight if weight is None else weight)

    def compute_autoregressive_loss(
        self,
        hidden_states: Float[Tensor, "batch length hidden"],
        video_frames: Real[Tensor, "batch frames 3 height width"] | Real[Tensor, "frames 3 height width"],
        layout: FrameBatch | None = None,
    ) -> Float[Tensor, ""]:
        """The weighted loss of hidden states, with targets that the teacher makes of the frames.

        Args:
            hidden_states: States of the language model.
            video_frames: Frames normalised for the teacher, in the order of the layout.
            layout: Which states belong to which patch. Without it the sequences have to consist of the teacher's
                patches of all frames and nothing else; frames then count as one second apart.

        Raises:
            ValueError: Positions are needed and not given, or the frames are not those of the layout.
        """
        packed = video_frames.flatten(0, 1) if video_frames.ndim == 5 else video_frames
        targets = self.teacher.encode(packed)
        if layout is None:
            layout = _bare_layout(hidden_states, video_frames, targets)
        return self(hidden_states, layout, targets).weighted

    def _output(self, compared: Comparison, weight: float | int) -> AutoregressiveOutput:
        losses = LossTerms()
        for name, total, count in zip(term_names(self.config), compared.totals, compared.counts, strict=True):
            losses.add(name, total, count, weight / len(compared.totals))
        losses.add(COPY_TERM, compared.copy_total, compared.counts[0], 0.0)
        return AutoregressiveOutput(losses, sum(compared.counts), compared.frame_errors, compared.copy_errors)


def create_autoregressive_reconstruction_module(
    vision_tower: nn.Module,
    hidden_size: int,
    config: Mapping[str, Any] | AutoregressiveConfig | None = None,
) -> AutoregressiveReconstructionModule:
    """Build the module for a model whose vision tower is also the teacher.

    Args:
        vision_tower: From normalised frames to features; shared if it is frozen, else copied as it is now. It becomes
            no part of the module. For an encoder of its own, give the module an `ExternalTeacher`.
        hidden_size: Width of the language model.
        config: Settings, for instance the guide's dictionary.

    Raises:
        ValueError: A key is not known, the tower has another width than `embedding_dim`, or it cannot be the teacher
            that the settings ask for.
    """
    settings = config if isinstance(config, AutoregressiveConfig) else AutoregressiveConfig.from_mapping(config or {})
    return AutoregressiveReconstructionModule(hidden_size, settings, _tower_teacher(vision_tower, settings))


def _tower_teacher(tower: nn.Module, config: AutoregressiveConfig) -> Teacher:
    """The teacher that the settings make of a vision tower."""
    if config.teacher == "external":
        raise ValueError(
            "teacher: 'external' is another encoder than the vision tower; build "
            "AutoregressiveReconstructionModule(hidden_size, config, ExternalTeacher(...))"
        )
    trained = is_trained(tower)
    if config.teacher == "shared" and trained:
        raise ValueError("teacher: 'shared' needs a frozen tower, got one that is trained; freeze it or use 'snapshot'")
    # A tower of transformers knows its width; that of another shows when it encodes.
    dim = getattr(getattr(tower, "config", None), "hidden_size", config.embedding_dim)
    encode = functools.partial(encode_vit, layer=-1 if config.teacher_layer is None else config.teacher_layer)
    teacher: Teacher
    if trained or config.teacher == "snapshot":
        teacher = SnapshotTeacher(tower, dim, encode=encode, chunk=config.teacher_chunk)
    else:
        teacher = SharedTeacher(dim, tower, encode=encode, chunk=config.teacher_chunk)
    logger.info("reconstruction targets: %s tower %s, %d wide", teacher.kind, type(tower).__name__, dim)
    if config.teacher == "cache":
        assert config.teacher_path is not None  # checked by the settings
        return CachedTeacher(teacher, config.teacher_path)
    return teacher


def _check(
    hidden: Float[Tensor, "batch length hidden"],
    frames: FrameBatch,
    targets: FrameFeatures | None,
    config: AutoregressiveConfig,
) -> None:
    """Refuse a layout of other sequences and features of other frames."""
    batch, length, _ = hidden.shape
    if frames.num_frames == 0:
        return
    if length != frames.sequence_length or int(frames.tokens.max()) >= batch * length:
        raise ValueError(
            f"hidden states: got {batch} sequences of {length} tokens, but the layout is of sequences of "
            f"{frames.sequence_length} and reaches token {int(frames.tokens.max())} of the batch"
        )
    if targets is None:
        raise ValueError(f"targets: got None for {frames.num_frames} frames, expected the teacher's features of them")
    if targets.num_frames != frames.num_frames:
        raise ValueError(f"targets: got features of {targets.num_frames} frames, the layout has {frames.num_frames}")
    if targets.dim != config.embedding_dim:
        raise ValueError(f"targets: got features {targets.dim} wide, expected embedding_dim = {config.embedding_dim}")


def _bare_layout(hidden: Float[Tensor, "batch length hidden"], frames: Tensor, targets: FrameFeatures) -> FrameBatch:
    """The layout of sequences that are patches of frames from end to end."""
    batch, length, _ = hidden.shape
    num_frames = frames.shape[1] if frames.ndim == 5 else frames.shape[0] // batch
    height, width = targets.grids[0]
    if num_frames * batch != targets.num_frames or length != num_frames * height * width:
        raise ValueError(
            f"layout: needed, since {batch} sequences of {length} tokens are not the {targets.num_frames} frames of "
            f"{height} x {width} patches and nothing else; a FrameBatch says where the patches are"
        )
    spans = [
        FrameSpan(index, float(index), index * height * width, height * width, (height, width))
        for index in range(num_frames)
    ]
    return FrameBatch.collate([FrameLayout(tuple(spans))] * batch, length)
