"""Frame-causal attention masks: a patch sees all patches of its own frame and of earlier ones.

True means *may attend*, as in `scaled_dot_product_attention`; `to_blocked` is the one conversion to the opposite sense
of `nn.Transformer` and `nn.MultiheadAttention`. The masks are square over all patches, for small clips, references and
pictures: 32 frames of 196 patches already take 37 MiB, 64 take 150. `FramePredictor` never builds one; it works in
windows of frames.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from video_autoregressive.mask_pictures import visualize_mask


class FrameLevelMaskGenerator:
    """Builds masks over the patches of a clip, frame after frame in order of time.

    In all methods `num_patches_per_frame` is one number for all frames, or one per frame, and `device` is where the
    result is made (None: the default device).
    """

    @staticmethod
    def create_causal_frame_mask(
        num_frames: int, num_patches_per_frame: int | Sequence[int], device: torch.device | str | None = None
    ) -> Bool[Tensor, "queries keys"]:
        """Every frame sees itself and all earlier frames."""
        frames = torch.ones(num_frames, num_frames, dtype=torch.bool, device=device).tril()
        return _over_patches(frames, num_patches_per_frame)

    @staticmethod
    def create_sliding_window_frame_mask(
        num_frames: int,
        num_patches_per_frame: int | Sequence[int],
        window_size: int = 3,
        device: torch.device | str | None = None,
    ) -> Bool[Tensor, "queries keys"]:
        """Every frame sees itself and the `window_size - 1` frames before it.

        Raises:
            ValueError: The window does not hold the frame itself.
        """
        if window_size < 1:
            raise ValueError(f"window_size: got {window_size}, expected 1 or more")
        frames = torch.ones(num_frames, num_frames, dtype=torch.bool, device=device).tril().triu(1 - window_size)
        return _over_patches(frames, num_patches_per_frame)

    @staticmethod
    def create_fast_slow_frame_mask(
        num_fast: int,
        num_slow: int,
        num_patches_per_frame: int | Sequence[int],
        fast: Sequence[bool] | None = None,
        device: torch.device | str | None = None,
    ) -> Bool[Tensor, "queries keys"]:
        """Slow frames see the slow frames up to themselves, fast frames all frames up to themselves.

        No frame sees a later one: slow frames that all see each other would tell the fast frames between them what
        comes.

        Args:
            num_fast: Fast frames.
            num_slow: Slow frames.
            num_patches_per_frame: Patches of every frame, in order of time.
            fast: For every frame in order of time, whether it is a fast one. None: all slow frames, then the fast.
            device: Where the mask is made.

        Raises:
            ValueError: `fast` does not name that many fast and slow frames.
        """
        order = [False] * num_slow + [True] * num_fast if fast is None else [bool(is_fast) for is_fast in fast]
        if len(order) != num_fast + num_slow or sum(order) != num_fast:
            raise ValueError(
                f"fast: got {sum(order)} fast and {len(order) - sum(order)} slow frames, "
                f"expected {num_fast} and {num_slow}"
            )
        is_fast = torch.tensor(order, dtype=torch.bool, device=device)
        return _over_patches((is_fast[:, None] | ~is_fast[None, :]).tril(), num_patches_per_frame)

    @staticmethod
    def create_frame_position_ids(
        num_frames: int, num_patches_per_frame: int | Sequence[int], device: torch.device | str | None = None
    ) -> Int[Tensor, " patches"]:
        """Number of the frame that each patch belongs to, from 0."""
        return _frame_ids(num_frames, num_patches_per_frame, device)

    @staticmethod
    def visualize_mask(
        mask: Bool[Tensor, "queries keys"],
        title: str = "Frame Mask",
        path: Path | str | None = None,
        num_patches_per_frame: int | Sequence[int] | None = None,
    ) -> Path:
        """Draw a mask; without `path` into the working directory, named after the title (`frame_mask.png`).

        Without matplotlib it is written as text (`frame_mask.txt`). Returns the path of the file; see
        `video_autoregressive.mask_pictures.visualize_mask`.
        """
        path = f"{title.strip().lower().replace(' ', '_')}.png" if path is None else path
        return visualize_mask(mask, path, title=title, num_patches_per_frame=num_patches_per_frame)


def to_blocked(mask: Bool[Tensor, "*batch queries keys"]) -> Bool[Tensor, "*batch queries keys"]:
    """The same mask with True for *may not attend*, as `nn.Transformer` and `nn.MultiheadAttention` read it."""
    return ~mask


def _over_patches(
    frames: Bool[Tensor, "frames frames"], num_patches_per_frame: int | Sequence[int]
) -> Bool[Tensor, "queries keys"]:
    """Repeat a mask over frames for every pair of their patches."""
    ids = _frame_ids(len(frames), num_patches_per_frame, frames.device)
    return frames[ids][:, ids]


def _frame_ids(
    num_frames: int, num_patches_per_frame: int | Sequence[int], device: torch.device | str | None
) -> Int[Tensor, " patches"]:
    """Number of every patch's frame."""
    if isinstance(num_patches_per_frame, int):
        num_patches_per_frame = [num_patches_per_frame] * num_frames
    if len(num_patches_per_frame) != num_frames:
        raise ValueError(f"num_patches_per_frame: got {len(num_patches_per_frame)} counts for {num_frames} frames")
    counts = torch.tensor(list(num_patches_per_frame), dtype=torch.int64, device=device)
    return torch.repeat_interleave(counts, output_size=sum(num_patches_per_frame))
