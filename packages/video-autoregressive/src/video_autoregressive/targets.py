"""Targets of the reconstruction loss and the errors of predictions, per token and in float32.

Raw features of a vision transformer have a few channels that dwarf the rest, so that a squared error would be set by
those and a weight of the loss would mean something else for every encoder. By default targets are therefore normalised
per token, without parameters, as masked autoencoders do with pixels (He et al. 2022, arXiv:2111.06377).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.features import FrameFeatures, Grid
from video_autoregressive.layout import FrameBatch
from video_autoregressive.pooling import resample_to_grid, spatial_pool

PAIRS_AT_ONCE = 32
"""Pairs of frames compared in one go: bounds the float32 copies of the teacher's features."""

COPY_TERM = "autoregressive_copy"
"""Name of the error of copying the source frame's target; it has weight 0."""


def term_names(config: AutoregressiveConfig) -> tuple[str, ...]:
    """Names of the loss terms, one per scale: `autoregressive`, or with two scales `autoregressive/stride<n>`."""
    if len(config.scales) == 1:
        return ("autoregressive",)
    return tuple(f"autoregressive/stride{stride}" for stride in config.scales)


def term_counts(frames: FrameBatch, config: AutoregressiveConfig) -> dict[str, int]:
    """How many tokens each loss term compares in a batch, the copy's included; without any state or feature."""
    counts = frames.target_counts(config)
    return {**dict(zip(term_names(config), counts, strict=True)), COPY_TERM: counts[0]}


def normalise_targets(features: Float[Tensor, "*batch dim"], target_norm: str) -> Float[Tensor, "*batch dim"]:
    """Normalise each token's features, in float32.

    Args:
        features: Features of the teacher.
        target_norm: `layernorm` (mean 0, variance 1, no parameters), `l2` (length 1) or `none`.
    """
    features = features.float()
    match target_norm:
        case "layernorm":
            return F.layer_norm(features, features.shape[-1:])
        case "l2":
            return F.normalize(features, dim=-1)
        case "none":
            return features
    raise ValueError(f"target_norm: got {target_norm!r}, expected 'layernorm', 'l2' or 'none'")


def token_errors(
    predictions: Float[Tensor, "*batch dim"], targets: Float[Tensor, "*batch dim"], loss: str
) -> Float[Tensor, "*batch"]:
    """Error of every token, in float32.

    Args:
        predictions: Predicted features.
        targets: What they should be.
        loss: `mse` or `smooth_l1` (means over the channels) or `cosine` (1 - cosine).
    """
    predictions, targets = predictions.float(), targets.float()
    match loss:
        case "mse":
            return F.mse_loss(predictions, targets, reduction="none").mean(-1)
        case "smooth_l1":
            return F.smooth_l1_loss(predictions, targets, reduction="none").mean(-1)
        case "cosine":
            return 1 - F.cosine_similarity(predictions, targets, dim=-1)
    raise ValueError(f"loss: got {loss!r}, expected 'mse', 'smooth_l1' or 'cosine'")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictions against targets.

    Attributes:
        totals: Per scale the sum of the errors of all compared tokens, with its graph.
        counts: Per scale how many they are.
        copy_total: The sum at the first scale if the source frame's own target were the prediction, detached.
        frame_errors: Per frame the mean error of the prediction made for it, NaN without one, detached.
        copy_errors: The same for the copy.
    """

    totals: tuple[Float[Tensor, ""], ...]
    counts: tuple[int, ...]
    copy_total: Float[Tensor, ""]
    frame_errors: Float[Tensor, " frames"]
    copy_errors: Float[Tensor, " frames"]


def compare_frames(
    predictions: Float[Tensor, "tokens dim"],
    starts: Int[Tensor, " frames"],
    frames: FrameBatch,
    features: FrameFeatures,
    config: AutoregressiveConfig,
) -> Comparison:
    """Compare what was predicted at each frame with the features of the frame `horizon` later.

    A pair is compared on the coarser of its two grids, to which predictions and teacher features are averaged, and once
    more pooled where there is a second scale.

    Args:
        predictions: One vector per token of every frame.
        starts: First row of each frame in `predictions`.
        frames: The frames, at least one, on the CPU.
        features: The teacher's, of the same frames in the same order.
        config: Loss, normalisation, scales, and which pairs count.
    """
    source, target = frames.pairs(config.horizon, config.gap_tolerance, config.max_target_frames)
    totals = [[predictions[:0].float().sum()] for _ in config.scales]
    counts = [0 for _ in config.scales]
    frame_errors = predictions.new_full((frames.num_frames,), torch.nan, dtype=torch.float32)
    copy_errors = frame_errors.clone()
    copy_totals = [frame_errors[:0].sum()]
    with torch.autocast(predictions.device.type, enabled=False):
        for part in _alike(source, target, frames, features):
            errors, copied = _pair_errors(predictions, starts, frames, features, config, source[part], target[part])
            for scale, of_scale in enumerate(errors):
                totals[scale].append(of_scale.sum())
                counts[scale] += of_scale.numel()
            copy_totals.append(copied.sum())
            there = target[part].to(predictions.device)
            frame_errors[there] = errors[0].detach().mean(1)
            copy_errors[there] = copied.mean(1)
        sums = tuple(torch.stack(of_scale).sum() for of_scale in totals)
        return Comparison(sums, tuple(counts), torch.stack(copy_totals).sum(), frame_errors, copy_errors)


def _alike(
    source: Int[Tensor, " pairs"], target: Int[Tensor, " pairs"], frames: FrameBatch, features: FrameFeatures
) -> list[list[int]]:
    """Pairs in lists whose grids are the same, each list short enough to be compared in one go."""
    groups: dict[tuple[object, ...], list[int]] = {}
    grids = frames.grids.tolist()
    for pair, (before, after) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
        key = (*grids[before], *grids[after], features.grids[before], features.grids[after])
        groups.setdefault(key, []).append(pair)
    return [
        group[first : first + PAIRS_AT_ONCE]
        for group in groups.values()
        for first in range(0, len(group), PAIRS_AT_ONCE)
    ]


def _pair_errors(
    predictions: Float[Tensor, "tokens dim"],
    starts: Int[Tensor, " frames"],
    frames: FrameBatch,
    features: FrameFeatures,
    config: AutoregressiveConfig,
    source: Int[Tensor, " pairs"],
    target: Int[Tensor, " pairs"],
) -> tuple[list[Float[Tensor, "pairs _"]], Float[Tensor, "pairs _"]]:
    """Errors of the tokens of pairs with the same grids: per scale, and at the first scale for the copy."""
    height, width = frames.compared_grids(source[:1], target[:1])[0].tolist()
    grid = (height, width)
    from_height, from_width = frames.grids[source[0]].tolist()
    rows = (starts[source][:, None] + torch.arange(from_height * from_width)).to(predictions.device)
    predicted = resample_to_grid(predictions[rows].float(), (from_height, from_width), grid)
    with torch.no_grad():
        wanted = _targets(features, target.tolist(), grid, config)
        copied = token_errors(_targets(features, source.tolist(), grid, config), wanted, config.loss)
    errors = []
    for stride in config.scales:
        pooled = (
            spatial_pool(tokens, grid, stride, config.mm_spatial_pool_mode, ceil_mode=True)
            for tokens in (predicted, wanted)
        )
        errors.append(token_errors(*pooled, config.loss))
    return errors, copied


def _targets(
    features: FrameFeatures, frames: Sequence[int], grid: Grid, config: AutoregressiveConfig
) -> Float[Tensor, "frames _ dim"]:
    """Targets of frames whose features have one grid, on another."""
    rows = features.split()
    own = torch.stack([rows[frame] for frame in frames]).float()
    return normalise_targets(resample_to_grid(own, features.grids[frames[0]], grid), config.target_norm)
