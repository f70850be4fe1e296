"""A video's pooled features as tokens: which, in which order, and where the learned ones stand.

`VideoTokenLayout` counts without features, for the processor that writes placeholders, and arranges features, for the
model that replaces them. The layouts are those of LLaVA-NeXT and LLaVA-Video (`mm_newline_position`,
`add_faster_video`), and `one_token` is LLaVA-OneVision's:

    grid        every row of every frame ends with the newline
    frame       every frame ends with it
    one_token   the video ends with it; it belongs to no frame
    no_token    nowhere

With `faster_stride` n, frames 0, n, 2n, ... are slow and keep their tokens, the others are fast and pooled twice as
much, from the unpooled features; every frame ends with the learned faster token.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from video_autoregressive.config import VideoTokenConfig
from video_autoregressive.layout import FrameLayout, FrameSpan
from video_autoregressive.pooling import Grid, pooled_grid, spatial_pool


class VideoTokenLayout:
    """The token layout of videos under one configuration.

    Args:
        config: Its settings.
    """

    def __init__(self, config: VideoTokenConfig) -> None:
        self.config = config

    def num_tokens(self, num_frames: int, grid: Grid) -> int:
        """Tokens of a video, all learned ones included.

        Args:
            num_frames: Its frames; a video without any has no tokens.
            grid: (height, width) of a frame's patches before pooling.
        """
        stride = self.config.faster_stride
        num_fast = num_frames - -(-num_frames // stride) if stride else 0
        total = self._video_tail(num_frames)
        for is_fast, count in ((False, num_frames - num_fast), (True, num_fast)):
            if count:  # a fast frame's window may be larger than the grid where no frame is fast
                total += count * self._frame_tokens(self._pooled(grid, is_fast))
        return total

    def spans(
        self, times: Sequence[float | int], grid: Grid, *, start: int = 0, video: int = 0, sources: Sequence[int] = ()
    ) -> list[FrameSpan]:
        """The frames of a video.

        Args:
            times: Of its frames, in seconds and in order.
            grid: (height, width) of a frame's patches before pooling.
            start: Position of the video's first token.
            video: Number of the video within the sample.
            sources: Index of every frame in the file; without it they are numbered from 0.
        """
        spans: list[FrameSpan] = []
        for index, (time, source) in enumerate(zip(times, sources or range(len(times)), strict=True)):
            is_fast = self._is_fast(index)
            pooled = self._pooled(grid, is_fast)
            spans.append(
                FrameSpan(
                    index=index,
                    time_s=time,
                    token_start=start,
                    token_count=self._frame_tokens(pooled),
                    grid=pooled,
                    row_newline=self.config.newline == "grid",
                    tail_specials=self._tail_specials,
                    kind=("fast" if is_fast else "slow") if self.config.faster_stride else "frame",
                    source_frame=source,
                    video=video,
                )
            )
            start = spans[-1].token_end
        return spans

    def layout(
        self, times: Sequence[float | int], grid: Grid, *, start: int = 0, sources: Sequence[int] = ()
    ) -> FrameLayout:
        """The layout of a sample with one video, whose tokens begin at `start`."""
        return FrameLayout(tuple(self.spans(times, grid, start=start, sources=sources)))

    def arrange(
        self,
        features: Float[Tensor, "frames patches dim"],
        grid: Grid,
        newline: Float[Tensor, " dim"],
        faster: Float[Tensor, " dim"] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Pool a video's features and set the learned tokens among them.

        Args:
            features: Projected features of its frames, unpooled, patches row by row.
            grid: (height, width) of a frame's patches.
            newline: The learned newline; unused where the layout has none.
            faster: The learned token behind every frame, needed with `faster_stride`.

        Returns:
            The `num_tokens(frames, grid)` tokens, in the order of `spans`.

        Raises:
            ValueError: The patches are not those of the grid, or the faster token is missing.
        """
        config = self.config
        if not config.faster_stride:
            rows = spatial_pool(features, grid, config.pool_stride, config.pool_mode)
            tokens = self._with_newlines(rows, self._pooled(grid, False), newline).flatten(0, 1)
            return torch.cat([tokens, newline[None]]) if self._video_tail(len(features)) else tokens
        if faster is None:
            raise ValueError(f"faster: the learned token is needed with faster_stride {config.faster_stride}")
        frames: list[Tensor] = [features.new_empty(0)] * len(features)
        for is_fast in (False, True):
            chosen = [index for index in range(len(features)) if self._is_fast(index) == is_fast]
            if chosen:
                rows = spatial_pool(features[chosen], grid, config.pool_stride * (1 + is_fast), config.pool_mode)
                rows = self._with_newlines(rows, self._pooled(grid, is_fast), newline)
                rows = torch.cat([rows, faster.expand(len(rows), 1, -1)], dim=1)
                for index, tokens in zip(chosen, rows.unbind(), strict=True):
                    frames[index] = tokens
        return torch.cat(frames) if frames else features.new_zeros(0, features.shape[2])

    def _with_newlines(
        self, rows: Float[Tensor, "frames patches dim"], grid: Grid, newline: Float[Tensor, " dim"]
    ) -> Float[Tensor, "frames tokens dim"]:
        """Set the newlines that stand within or behind every frame."""
        if self.config.newline == "grid":
            rows = rows.unflatten(1, grid)
            return torch.cat([rows, newline.expand(*rows.shape[:2], 1, -1)], dim=2).flatten(1, 2)
        if self.config.newline == "frame":
            return torch.cat([rows, newline.expand(len(rows), 1, -1)], dim=1)
        return rows

    def _is_fast(self, index: int) -> bool:
        return self.config.faster_stride > 0 and index % self.config.faster_stride != 0

    def _pooled(self, grid: Grid, is_fast: bool) -> Grid:
        return pooled_grid(grid, self.config.pool_stride * (1 + is_fast), self.config.pool_mode)

    @property
    def _tail_specials(self) -> int:
        return int(self.config.newline == "frame" or self.config.faster_stride > 0)

    def _frame_tokens(self, pooled: Grid) -> int:
        height, width = pooled
        return height * (width + (self.config.newline == "grid")) + self._tail_specials

    def _video_tail(self, num_frames: int) -> int:
        return int(self.config.newline == "one_token" and num_frames > 0)
