"""What do windows instead of a mask save in the frame predictor, and a shared tower instead of a copy?

First table: attention of every frame's tokens to those of their own and the `num_hist - 1` frames before, forward and
backward. "dense mask" is torch's scaled dot product attention over all tokens of the clip under the boolean mask of
`FrameLevelMaskGenerator`; "windows" are the predictor's. By itself (queries, keys and values given), with its linear
layers, and as the whole predictor; a predictor under a dense mask has plain windowed blocks, which attend to half as
many keys as an equivalent to ours would. Mask memory is the boolean mask against the indices that windows consist of.

Second table: what targets cost beside the vision tower's own pass over the frames: nothing where the frozen tower's
features are handed over, a copy of the weights and a second pass where the tower is trained. A tower of SigLIP-B's size
with random weights.

Ways run in one process and in turn: medians, and the median of the ratios.

    uv run --no-sync python benchmarks/frame_predictor.py --repeats 3
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from stopwatch import Stopwatch, options_of
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch, FrameLayout, FrameSpan
from video_autoregressive.masks import FrameLevelMaskGenerator
from video_autoregressive.predictor import FramePredictor, WindowedAttention, attend_in_windows
from video_autoregressive.teacher import SharedTeacher, SnapshotTeacher
from video_autoregressive.windows import FrameGroup, FrameWindows, plan_windows

MIB = 2**20


class DenseAttention(WindowedAttention):
    """The same layers under a mask over all tokens.

    Args:
        attention: Whose layers to use.
        mask: True where a token may be attended.
    """

    def __init__(self, attention: WindowedAttention, mask: Tensor) -> None:
        nn.Module.__init__(self)
        self.num_heads = attention.num_heads
        self.query, self.key_value, self.out = attention.query, attention.key_value, attention.out
        self.mask = mask

    def forward(self, tokens: Tensor, memory: Tensor | None, groups: Sequence[FrameGroup]) -> Tensor:
        """Attend; memory and groups are not needed."""
        queries = self.query(tokens).unflatten(1, (self.num_heads, -1))
        return self.out(attend_densely(queries, self.key_value(tokens), self.mask))


def attend_densely(queries: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """Attention of all tokens to all tokens that the mask allows."""
    key, value = table.unflatten(1, (2, queries.shape[1], -1)).permute(1, 2, 0, 3)[:, None]
    mixed = F.scaled_dot_product_attention(queries.transpose(0, 1)[None], key, value, attn_mask=mask)
    return mixed[0].transpose(0, 1).flatten(1)


def clip_of(num_frames: int, side: int) -> FrameBatch:
    """One clip of square frames."""
    count = side * side
    spans = [FrameSpan(frame, float(frame), frame * count, count, (side, side)) for frame in range(num_frames)]
    return FrameBatch.collate([FrameLayout(tuple(spans))], num_frames * count)


def ways_of(
    windows: FrameWindows, mask: Tensor, config: AutoregressiveConfig, device: str
) -> dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]]:
    """Per part of the predictor: under a dense mask, in windows, and the input of both."""
    torch.manual_seed(0)
    dim, heads, groups = config.width, config.num_heads, windows.groups
    attention = WindowedAttention(dim, heads).to(device)
    dense = DenseAttention(attention, mask)
    predictor = FramePredictor(dim, config, dim).to(device)
    masked = FramePredictor(dim, config, dim).to(device)
    masked.load_state_dict(predictor.state_dict())
    for block in masked.blocks:
        block.attention = DenseAttention(block.attention, mask)
    tokens = torch.randn(len(windows.rows), dim, device=device)
    packed = torch.randn(len(windows.rows), 3 * dim, device=device)

    def split(packed: Tensor) -> tuple[Tensor, Tensor]:
        return packed[:, :dim].unflatten(1, (heads, -1)), packed[:, dim:]

    return {
        "attention": (
            lambda packed: attend_densely(*split(packed), mask),
            lambda packed: attend_in_windows(*split(packed), groups),
            packed,
        ),
        "with its layers": (
            lambda tokens: dense(tokens, None, groups),
            lambda tokens: attention(tokens, None, groups),
            tokens,
        ),
        "predictor": (lambda tokens: masked(tokens, windows), lambda tokens: predictor(tokens, windows), tokens),
    }


def compare_attention(num_frames: int, options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time both ways in turn and print a line per part."""
    config = AutoregressiveConfig(
        embedding_dim=options.dim, num_heads=options.heads, num_layers=options.layers, num_hist=options.num_hist
    )
    count = options.side**2
    masks = FrameLevelMaskGenerator()
    mask = masks.create_sliding_window_frame_mask(num_frames, count, options.num_hist, device=options.device)
    windows = plan_windows(clip_of(num_frames, options.side), config).to(torch.device(options.device))
    indices = sum(8 * group.others.numel() for group in windows.groups) + 8 * len(windows.rows)
    for part, (dense, windowed, given) in ways_of(windows, mask, config, options.device).items():
        given.requires_grad_()

        def seconds_of(way: Callable[[Tensor], Tensor], given: Tensor = given) -> float:
            given.grad = None
            start = watch.seconds()
            way(given).sum().backward()
            return watch.seconds() - start

        # Blocks behind the first are not the same function: see above.
        same = part != "predictor"
        difference = f"{(dense(given) - windowed(given)).abs().max().item():.0e}" if same else ""
        rounds = [[seconds_of(way) for way in (dense, windowed)] for _ in range(options.repeats)]
        slow, fast = (1000 * statistics.median(seconds) for seconds in zip(*rounds, strict=True))
        ratio = statistics.median(times[0] / times[1] for times in rounds)
        memory = f"{mask.numel() / MIB:.2f} | {indices / MIB:.2f} | {mask.numel() / indices:.0f}"
        print(f"| {num_frames} x {count} | {part} | {slow:.0f} | {fast:.0f} | {ratio:.1f} | {memory} | {difference} |")


def compare_teachers(options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time the tower's own pass and those of the teachers in turn and print a line each."""
    torch.manual_seed(0)
    tower = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=options.tower_dim,
            intermediate_size=4 * options.tower_dim,
            num_hidden_layers=options.tower_layers,
            num_attention_heads=options.tower_dim // 64,
            image_size=options.image_size,
            patch_size=16,
            vision_use_head=False,
        )
    ).to(options.device)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in tower.parameters())
    frames = torch.randn(options.tower_frames, 3, options.image_size, options.image_size, device=options.device)
    snapshot = SnapshotTeacher(tower, options.tower_dim)
    shared = SharedTeacher(options.tower_dim, tower.requires_grad_(False))
    ways: dict[str, tuple[Callable[[], object], float]] = {
        "the model's own pass": (lambda: tower(frames, output_hidden_states=True), 0),
        "shared, handed over": (lambda: None, 0),
        "shared, given frames": (lambda: shared.encode(frames), 0),
        "snapshot": (lambda: snapshot.encode(frames), weights / MIB),
    }

    def seconds_of(way: Callable[[], object]) -> float:
        start = watch.seconds()
        way()
        return watch.seconds() - start

    with torch.no_grad():
        rounds = [[seconds_of(way) for way, _ in ways.values()] for _ in range(options.repeats + 1)][1:]
    columns = list(zip(*rounds, strict=True))
    for (name, (_, extra)), column in zip(ways.items(), columns, strict=True):
        ratio = statistics.median(seconds / first for seconds, first in zip(column, columns[0], strict=True))
        print(f"| {name} | {extra:.0f} | {1000 * statistics.median(column):.0f} | {ratio:.2f} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = options_of(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=(8, 16, 32))
    parser.add_argument("--side", type=int, default=14, help="of a frame's grid of tokens")
    parser.add_argument("--num-hist", type=int, default=3)
    parser.add_argument("--dim", type=int, default=1152)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--tower-dim", type=int, default=768)
    parser.add_argument("--tower-layers", type=int, default=12)
    parser.add_argument("--tower-frames", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(words)
    if options.quick:
        options.frames, options.side, options.dim, options.heads, options.layers = (2, 4), 2, 8, 2, 2
        options.tower_dim, options.tower_layers, options.tower_frames, options.image_size = 64, 1, 2, 32
        options.repeats = 1
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; float32, {options.dim} wide, {options.heads} heads, num_hist {options.num_hist}")
    print()
    print(
        "| frames x tokens | part | dense mask ms | windows ms | ratio | mask MiB | indices MiB | ratio | difference |"
    )
    print("| ---: | :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for num_frames in options.frames:
        compare_attention(num_frames, options, watch)
    print()
    size = f"{options.tower_layers} layers {options.tower_dim} wide"
    print(f"{options.tower_frames} frames of {options.image_size}², {size}")
    print()
    print("| targets | extra weights MiB | ms | beside the own pass |")
    print("| :--- | ---: | ---: | ---: |")
    compare_teachers(options, watch)


if __name__ == "__main__":
    main()
