"""Where the tokens of video frames stand in the sequences of a language model.

The processor writes placeholders, the model replaces them, the reconstruction module reads hidden states back: all
three speak of the same positions, and none of them guesses. A `FrameSpan` is one frame's run of tokens, a `FrameLayout`
the frames of one sample, a `FrameBatch` the frames of a batch as tensors of indices.

Patches of a frame are in row-major order. With `row_newline` one extra token follows every row, and `tail_specials`
extra tokens follow the frame; none of them belongs to a patch, so none is ever read as one. Times are seconds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from video_autoregressive.config import AutoregressiveConfig


@dataclass(frozen=True)
class FrameSpan:
    """The tokens of one frame.

    Attributes:
        index: Number of the frame among the sampled frames of its video, from 0.
        time_s: Its time in the video.
        token_start: Position of its first token.
        token_count: All its tokens: patches, row newlines and trailing ones.
        grid: (height, width) of its patches, as the language model sees them.
        row_newline: Whether a token follows every row of patches.
        tail_specials: Tokens behind the last row that belong to the frame.
        kind: `slow` frames keep more tokens than `fast` ones; `frame` where all are alike.
        valid: False for a frame that only fills up: nothing is compared with it or read from it.
        source_frame: Index of the frame in the file, or of the first of those merged into it.
        video: Number of the video within the sample.
    """

    index: int
    time_s: float | int
    token_start: int
    token_count: int
    grid: tuple[int, int]
    row_newline: bool = False
    tail_specials: int = 0
    kind: Literal["frame", "slow", "fast"] = "frame"
    valid: bool = True
    source_frame: int = 0
    video: int = 0

    def __post_init__(self) -> None:
        """Check that the count is that of the grid and its extra tokens."""
        height, width = self.grid
        if min(height, width) < 1 or self.tail_specials < 0 or self.token_start < 0:
            raise ValueError(f"a frame needs a grid of at least 1 x 1 and no negative position or count, got {self!r}")
        expected = height * (width + self.row_newline) + self.tail_specials
        if self.token_count != expected:
            raise ValueError(f"token_count: got {self.token_count}, expected {expected} for {self!r}")

    @property
    def token_end(self) -> int:
        """Position behind its last token."""
        return self.token_start + self.token_count

    def patch_indices(self) -> Int[Tensor, " patches"]:
        """Positions of the patch tokens, row by row, without the extra tokens."""
        height, width = self.grid
        patch = torch.arange(height * width)
        return self.token_start + patch + (patch // width if self.row_newline else 0)

    def shifted(self, offset: int) -> "FrameSpan":
        """The same frame `offset` tokens later."""
        return replace(self, token_start=self.token_start + offset)


@dataclass(frozen=True)
class FrameLayout:
    """The frames of one sample, in the order of their tokens.

    Attributes:
        spans: Disjoint, ordered by position; within a video also by time.
    """

    spans: tuple[FrameSpan, ...] = ()

    def __post_init__(self) -> None:
        """Check the order."""
        for before, after in zip(self.spans, self.spans[1:], strict=False):
            if after.token_start < before.token_end:
                raise ValueError(f"frames overlap or are out of order: {before!r} and then {after!r}")
            if after.video < before.video:
                raise ValueError(f"the frames of a video must follow each other: {before!r} and then {after!r}")
            if after.video == before.video and after.time_s < before.time_s:
                raise ValueError(f"frames must be ordered by time: {before!r} and then {after!r}")

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.spans)

    @property
    def token_end(self) -> int:
        """Position behind the last frame's last token; 0 without frames."""
        return self.spans[-1].token_end if self.spans else 0

    @classmethod
    def empty(cls) -> "FrameLayout":
        """The layout of a sample without video."""
        return cls(())

    def shifted(self, offset: int) -> "FrameLayout":
        """The same frames `offset` tokens later, for instance behind left padding."""
        return FrameLayout(tuple(span.shifted(offset) for span in self.spans))

    def concatenated(self, *others: "FrameLayout") -> "FrameLayout":
        """These frames and those of `others` behind them, positions as they are; videos stay different videos."""
        spans: list[FrameSpan] = []
        for layout in (self, *others):
            first = spans[-1].video + 1 if spans else 0
            spans += [replace(span, video=first + span.video) for span in layout.spans]
        return FrameLayout(tuple(spans))

    def truncated(self, length: int) -> "FrameLayout":
        """The frames that lie whole within the first `length` tokens."""
        return FrameLayout(tuple(span for span in self.spans if span.token_end <= length))

    @classmethod
    def from_placeholder_ids(
        cls,
        ids: Int[Tensor, " tokens"] | Sequence[int],
        token_id: int,
        videos: Sequence[Sequence[FrameSpan]],
        counts: Sequence[int] | None = None,
    ) -> "FrameLayout":
        """Place the frames of the videos at the placeholders of a sequence.

        Args:
            ids: Token ids of the sample.
            token_id: The placeholder of a video's tokens.
            videos: Per video, in the order of the text, its frames; their `token_start` counts the placeholders of
                that video from 0. Text may stand between frames, not within one.
            counts: Per video, how many placeholders it has. None: it ends with its last frame.

        Raises:
            ValueError: The sequence holds another number of placeholders, or other tokens within a frame.
        """
        placeholders = (torch.as_tensor(ids) == token_id).nonzero().flatten().tolist()
        if counts is None:
            counts = [spans[-1].token_end if spans else 0 for spans in videos]
        if len(placeholders) != sum(counts):
            raise ValueError(
                f"token {token_id}: found {len(placeholders)} placeholders, expected {sum(counts)} "
                f"for {len(videos)} videos of {list(counts)} tokens"
            )
        placed: list[FrameSpan] = []
        first = 0
        for video, (spans, count) in enumerate(zip(videos, counts, strict=True)):
            for span in spans:
                if span.token_end > count:
                    raise ValueError(f"video {video}: has {count} placeholders, which end before {span!r}")
                start, last = placeholders[first + span.token_start], placeholders[first + span.token_end - 1]
                if last - start != span.token_count - 1:
                    raise ValueError(f"video {video}: other tokens stand within {span!r}, at positions {start}-{last}")
                placed.append(replace(span, token_start=start, video=video))
            first += count
        return cls(tuple(placed))

    @classmethod
    def qwen_vl(
        cls,
        grid_thw: Sequence[int],
        times: Sequence[float | int],
        *,
        merge: int = 2,
        temporal_merge: int = 2,
        start: int = 0,
        video: int = 0,
    ) -> "FrameLayout":
        """The steps of a Qwen-VL video, as if no text stood between them (`from_placeholder_ids` adds it).

        Args:
            grid_thw: Steps in time, then rows and columns of patches before merging.
            times: Of the sampled frames; a step of several frames has their mean time.
            merge: Side of the square of patches that becomes one token.
            temporal_merge: Sampled frames that become one step; the last one counts again where the clip is too short.
            start: Position of the first token.
            video: Number of the video within the sample.

        Raises:
            ValueError: The grid does not divide by `merge`, or the times are not those of that many steps.
        """
        steps, rows, columns = grid_thw
        if rows % merge or columns % merge:
            raise ValueError(f"grid_thw: got {rows} x {columns} patches, which do not divide into squares of {merge}")
        if not (steps - 1) * temporal_merge < len(times) <= steps * temporal_merge:
            raise ValueError(
                f"times: got {len(times)} frames, which do not make {steps} steps of {temporal_merge} frames"
            )
        grid = (rows // merge, columns // merge)
        count = grid[0] * grid[1]
        padded = [*times, *[times[-1]] * (steps * temporal_merge - len(times))]
        spans = []
        for step in range(steps):
            merged = padded[step * temporal_merge : (step + 1) * temporal_merge]
            spans.append(
                FrameSpan(
                    index=step,
                    time_s=sum(merged) / temporal_merge,
                    token_start=start + step * count,
                    token_count=count,
                    grid=grid,
                    source_frame=step * temporal_merge,
                    video=video,
                )
            )
        return cls(tuple(spans))


@dataclass(frozen=True, eq=False)
class FrameBatch:
    """The frames of a batch, videos one after another and each in order of time.

    Attributes:
        tokens: Positions of every frame's patch tokens in `hidden.flatten(0, 1)`, row by row, -1 behind a frame's last.
        times: Seconds within the frame's video.
        sample: Sample of the batch that a frame belongs to.
        video: Its video, numbered over the whole batch.
        grids: (height, width) of its patches.
        valid: False for frames that only fill up.
        sequence_length: Tokens per row of the batch, padding included.
    """

    tokens: Int[Tensor, "frames patches"]
    times: Float[Tensor, " frames"]
    sample: Int[Tensor, " frames"]
    video: Int[Tensor, " frames"]
    grids: Int[Tensor, "frames 2"]
    valid: Bool[Tensor, " frames"]
    sequence_length: int

    @classmethod
    def collate(
        cls,
        layouts: Sequence[FrameLayout],
        sequence_length: int,
        offsets: Sequence[int] | None = None,
        rows: Sequence[int] | None = None,
    ) -> "FrameBatch":
        """Join the layouts of a batch's samples.

        Args:
            layouts: One per sample, positions counted from the sample's first token.
            sequence_length: Tokens per row of the batch.
            offsets: Where each sample starts in its row (left padding, packing); None is 0 everywhere.
            rows: The row of each sample; None is one row per sample. Packed samples share one.

        Raises:
            ValueError: A frame ends behind its row, or the arguments do not fit together.
        """
        offsets = [0] * len(layouts) if offsets is None else offsets
        rows = range(len(layouts)) if rows is None else rows
        if not len(layouts) == len(offsets) == len(rows):
            raise ValueError(f"got {len(layouts)} layouts, {len(offsets)} offsets and {len(rows)} rows: one each")
        columns: list[tuple[int, ...]] = []
        times: list[float] = []
        video, previous = -1, None
        for sample, (layout, offset, row) in enumerate(zip(layouts, offsets, rows, strict=True)):
            if offset < 0 or offset + layout.token_end > sequence_length:
                raise ValueError(
                    f"sample {sample}: its frames end at token {layout.token_end}, which with offset {offset} does "
                    f"not fit a row of {sequence_length} tokens"
                )
            for span in layout.spans:
                video += previous != (sample, span.video)
                previous = (sample, span.video)
                start = row * sequence_length + offset + span.token_start
                columns.append((start, *span.grid, span.row_newline, span.valid, sample, video))
                times.append(float(span.time_s))
        table = torch.tensor(columns, dtype=torch.int64).reshape(-1, 7)
        start, height, width, newline, valid, samples, videos = table.unbind(1)
        num_patches = height * width
        patch = torch.arange(int(num_patches.max()) if len(columns) else 0)
        skipped = newline[:, None] * torch.div(patch, width[:, None], rounding_mode="floor")
        return cls(
            tokens=(start[:, None] + patch + skipped).masked_fill(patch >= num_patches[:, None], -1),
            times=torch.tensor(times, dtype=torch.float32),
            sample=samples.contiguous(),
            video=videos.contiguous(),
            grids=table[:, 1:3].contiguous(),
            valid=valid.bool(),
            sequence_length=sequence_length,
        )

    @property
    def num_frames(self) -> int:
        """Frames of the batch."""
        return self.tokens.shape[0]

    @property
    def num_patches(self) -> Int[Tensor, " frames"]:
        """Patch tokens per frame."""
        return self.grids.prod(1)

    @property
    def token_mask(self) -> Bool[Tensor, "frames patches"]:
        """True where `tokens` holds a position."""
        return self.tokens >= 0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "FrameBatch":
        """The same frames with the tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "FrameBatch":
        """The same frames in page-locked memory, as a data loader asks for."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "FrameBatch":
        tensors = {entry.name: vars(self)[entry.name] for entry in fields(self) if entry.name != "sequence_length"}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def gather(self, hidden: Float[Tensor, "rows length dim"]) -> Float[Tensor, "frames patches dim"]:
        """Read the states of every frame's patches; zeros behind a frame's last, without gradient.

        Raises:
            ValueError: The rows have another length than the layout.
        """
        if hidden.shape[1] != self.sequence_length:
            raise ValueError(
                f"hidden states: got rows of {hidden.shape[1]} tokens, expected {self.sequence_length} as in the layout"
            )
        states = hidden.flatten(0, 1)[self.tokens.clamp(min=0)]
        return states.masked_fill(~self.token_mask[:, :, None], 0)

    def history(self, num_hist: int) -> Int[Tensor, "frames history"]:
        """Frames that each frame may look at: itself (last column) and up to `num_hist - 1` before it.

        Only frames of the same video that are valid; -1 where there is none. A frame always sees itself.
        """
        back = torch.arange(num_hist - 1, -1, -1, device=self.video.device)
        frame = torch.arange(self.num_frames, device=self.video.device)[:, None] - back
        known = frame.clamp(min=0)
        seen = (frame >= 0) & (self.video[known] == self.video[:, None]) & (self.valid[known] | (back == 0))
        return frame.masked_fill(~seen, -1)

    def pairs(
        self, horizon: int, gap_tolerance: float | int = 0, max_target_frames: int = 0
    ) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Frames that are compared: the source, whose prediction it is, and the target `horizon` frames later.

        Args:
            horizon: Frames ahead; with 0 source and target are the same frame.
            gap_tolerance: Keep only pairs whose distance in time is within this fraction of the usual one of their
                video, which is the lower median over its pairs; 0 keeps all.
            max_target_frames: Keep the last so many pairs of every video; 0 keeps all.

        Returns:
            Indices of frames, both valid and of one video, in order.
        """
        count = max(self.num_frames - horizon, 0)
        video, valid = self.video, self.valid
        kept = (video[:count] == video[horizon:]) & valid[:count] & valid[horizon:]
        source = kept.nonzero().flatten()
        if gap_tolerance:
            gap = self.times[source + horizon] - self.times[source]
            usual = _lower_median(gap, video[source])
            source = source[(gap - usual).abs() <= gap_tolerance * usual]
        if max_target_frames:
            _, group, sizes = torch.unique_consecutive(video[source], return_inverse=True, return_counts=True)
            place = torch.arange(len(source), device=source.device)
            source = source[sizes.cumsum(0)[group] - place <= max_target_frames]
        return source, source + horizon

    def compared_grids(
        self, source: Int[Tensor, " pairs"], target: Int[Tensor, " pairs"], stride: int = 1
    ) -> Int[Tensor, "pairs 2"]:
        """Grid on which each pair is compared: the coarser of the two, and pooled by `stride`, rounded up."""
        coarser = torch.minimum(self.grids[source], self.grids[target])
        return torch.div(coarser + stride - 1, stride, rounding_mode="floor")

    def target_counts(self, config: AutoregressiveConfig) -> tuple[int, ...]:
        """Tokens that the loss compares, per scale of `config.scales`."""
        source, target = self.pairs(config.horizon, config.gap_tolerance, config.max_target_frames)
        grids = [self.compared_grids(source, target, stride) for stride in config.scales]
        return tuple(int(grid.prod(1).sum()) for grid in grids)

    def num_targets(self, config: AutoregressiveConfig) -> int:
        """Tokens that the loss compares, summed over its scales."""
        return sum(self.target_counts(config))


def _lower_median(values: Float[Tensor, " pairs"], groups: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Every value's median of its group; groups are runs of equal numbers in ascending order."""
    _, group, sizes = torch.unique_consecutive(groups, return_inverse=True, return_counts=True)
    by_value = values.argsort(stable=True)
    order = by_value[group[by_value].argsort(stable=True)]
    middle = sizes.cumsum(0) - sizes + torch.div(sizes - 1, 2, rounding_mode="floor")
    return values[order][middle[group]] if len(values) else values
