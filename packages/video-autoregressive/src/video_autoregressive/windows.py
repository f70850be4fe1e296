"""Which tokens a frame may look at, as gathered windows instead of a mask.

A mask over all tokens of a clip is mostly "no": 37.5 MB of booleans for 32 frames of 196 tokens, 150 MB for 64, and
attention computes what it then throws away. Here frames that have equally many tokens and see equally many form a
group; tokens are packed group after group, so the queries of a group are a slice, and what they see is gathered.
Nothing is padded and nothing masked, whatever the sizes of the frames.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch


@dataclass(frozen=True, eq=False)
class FrameGroup:
    """Frames that follow each other in the packing and need tensors of the same shape.

    Attributes:
        num_tokens: Tokens per frame.
        others: Per frame the packed rows of the tokens of other frames that it looks at, besides all of its own.
    """

    num_tokens: int
    others: Int[Tensor, "frames keys"]

    @property
    def num_frames(self) -> int:
        """Frames of the group."""
        return self.others.shape[0]


@dataclass(frozen=True, eq=False)
class FrameWindows:
    """The frames of a batch, packed for windowed attention.

    Attributes:
        rows: Position of every packed token in `hidden.flatten(0, 1)`.
        places: Row and column of its patch's centre in [0, 1], its frame's time, and the seconds to the frame that is
            predicted.
        groups: The groups, in the order of packing.
        starts: First packed row of every frame, in the order of the batch; on the CPU.
    """

    rows: Int[Tensor, " tokens"]
    places: Float[Tensor, "tokens 4"]
    groups: tuple[FrameGroup, ...]
    starts: Int[Tensor, " frames"]

    def to(self, device: torch.device) -> "FrameWindows":
        """The same windows with what the predictor reads on `device`."""
        groups = tuple(FrameGroup(group.num_tokens, group.others.to(device)) for group in self.groups)
        return FrameWindows(self.rows.to(device), self.places.to(device), groups, self.starts)


def plan_windows(frames: FrameBatch, config: AutoregressiveConfig) -> FrameWindows:
    """Pack the frames of a batch.

    Args:
        frames: Frames on the CPU; on another device every step would wait for it.
        config: `num_hist` frames are seen, the current one included; without `use_frame_causal_mask` all of the video.

    Returns:
        The windows, on the CPU.
    """
    if frames.num_frames == 0:
        return FrameWindows(frames.tokens.flatten(), frames.times.new_zeros(0, 4), (), frames.num_patches)
    counts = frames.num_patches
    seen = frames.history(config.num_hist) if config.use_frame_causal_mask else _whole_videos(frames)
    other = (seen >= 0) & (seen != torch.arange(frames.num_frames)[:, None])
    num_keys = (counts[seen.clamp(min=0)] * other).sum(1)
    shapes, group_of = torch.stack([counts, num_keys], dim=1).unique(dim=0, return_inverse=True)
    order = group_of.argsort(stable=True)
    starts = torch.empty_like(counts)
    starts[order] = counts[order].cumsum(0) - counts[order]
    groups = []
    for index, (num_tokens, _) in enumerate(shapes.tolist()):
        member = group_of == index
        looked_at = seen[member][other[member]]
        others = _ranges(starts[looked_at], counts[looked_at])
        groups.append(FrameGroup(num_tokens, others.view(int(member.sum()), -1)))
    tokens = frames.tokens[order]
    return FrameWindows(tokens[tokens >= 0], _places(frames, order, config.horizon), tuple(groups), starts)


def _whole_videos(frames: FrameBatch) -> Int[Tensor, "frames history"]:
    """Every valid frame of each frame's video, and itself; -1 behind the last."""
    index = torch.arange(frames.num_frames)
    same = (frames.video[:, None] == frames.video) & (frames.valid | (index[:, None] == index))
    most = int(same.sum(1).max())
    first = (~same).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return first.masked_fill(~same.gather(1, first), -1)


def _ranges(starts: Int[Tensor, " frames"], counts: Int[Tensor, " frames"]) -> Int[Tensor, " tokens"]:
    """The numbers from each start on, as many as its count."""
    step = torch.arange(int(counts.max()) if len(counts) else 0)
    return (starts[:, None] + step)[step < counts[:, None]]


def _places(frames: FrameBatch, order: Int[Tensor, " frames"], horizon: int) -> Float[Tensor, "tokens 4"]:
    """Positions of the tokens of the frames in `order`."""
    source, target = frames.pairs(horizon)
    lead = torch.zeros_like(frames.times)
    lead[source] = frames.times[target] - frames.times[source]
    counts = frames.num_patches[order]
    height, width = (side[:, None] for side in frames.grids[order].unbind(1))
    patch = torch.arange(int(counts.max()))
    row = (torch.div(patch, width, rounding_mode="floor") + 0.5) / height
    column = (patch % width + 0.5) / width
    time, ahead = (part[order, None].expand_as(row) for part in (frames.times, lead))
    return torch.stack([row, column, time, ahead], dim=2)[patch < counts[:, None]]
