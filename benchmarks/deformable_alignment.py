"""What does sampling before projecting save in the aligner of the deformable projector?

The aligner looks from 256 image tokens at the feature pyramid of Swin-B for an image of 1024 pixels, forward and
backward. "sample first" reads the raw features at the sampling points and projects the samples; "project first"
projects every position and samples then. "transformers" projects every position and samples with transformers'
function; "transformers' module" has the second value projection too that its attention module brings. A frozen tower
needs no gradient of its feature maps, a trained one does.

Times are taken in one process and in turn: medians, and the median of the ratios to "sample first". Memory is the rise
of the peak resident set over what was resident before, in a child process per form, in which one step was run at toy
size before. Maps have their channels first, as transformers' Swin gives them. The published tables are of one thread,
in CPU time, with five repeats, for one image and for two; with more threads times are wall times:

    uv run --no-sync python benchmarks/deformable_alignment.py --repeats 5
    uv run --no-sync python benchmarks/deformable_alignment.py --repeats 5 --batch 2
    uv run --no-sync python benchmarks/deformable_alignment.py --threads 2
"""

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from deformable_projector import MultiScaleDeformableCrossAttentionAlignment
from deformable_projector.values import PyramidValues
from stopwatch import Stopwatch, options_of
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import (
    multi_scale_deformable_attention as transformers_function,
)

FORMS = ("sample first", "project first", "transformers", "transformers' module")
SWIN_B = (128, 256, 512, 1024)
MIB = 2**20


class TransformersValues(nn.Module):
    """Projects every position, samples with transformers' function.

    Args:
        values: Whose weights to use.
        inner: Project a second time, as transformers' module does.
    """

    def __init__(self, values: PyramidValues, inner: bool) -> None:
        super().__init__()
        self.values = values
        hidden_dim = values.level_embed.shape[1]
        self.value_proj = nn.Linear(hidden_dim, hidden_dim) if inner else nn.Identity()

    def forward(
        self,
        feature_maps: Sequence[Tensor],
        locations: Tensor,
        weights: Tensor,
        *,
        valid_masks: None,
        region_maps: None,
    ) -> Tensor:
        """Sample; masks and regions are not measured."""
        projected = [
            projection(feature_map.flatten(2).mT) + tag
            for projection, feature_map, tag in zip(
                self.values.level_proj, feature_maps, self.values.level_embed, strict=True
            )
        ]
        value = self.value_proj(torch.cat(projected, dim=1)).unflatten(2, (self.values.num_heads, -1))
        shapes = [tuple(feature_map.shape[2:]) for feature_map in feature_maps]
        return transformers_function(value, shapes, locations, weights)


def step_of(form: str, side: int, trained_tower: bool, options: argparse.Namespace) -> Callable[[], Tensor]:
    """A forward and backward of the aligner, returning its tokens."""
    torch.manual_seed(0)
    align = MultiScaleDeformableCrossAttentionAlignment(
        options.dim, options.vision_dims, options.hidden_dim, options.heads, sample_first=form == "sample first"
    )
    with torch.no_grad():
        align.out_proj.weight.normal_(std=0.02)  # at zero nothing would flow back
    if form.startswith("transformers"):
        align.values = TransformersValues(align.values, inner=form == FORMS[3])
    queries = torch.randn(options.batch, options.queries, options.dim)
    maps = [
        torch.randn(options.batch, dim, side >> level, side >> level, requires_grad=trained_tower)
        for level, dim in enumerate(options.vision_dims)
    ]
    gradient = torch.randn_like(queries)
    learned = [*align.parameters(), *maps]

    def step() -> Tensor:
        for tensor in learned:
            tensor.grad = None
        tokens = align(queries, maps).tokens
        tokens.backward(gradient)
        return tokens.detach()

    return step


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure_peak(sender: Connection, form: str, trained_tower: bool, options: argparse.Namespace) -> None:
    """Send the rise of the peak over what is resident once the inputs exist."""
    torch.set_num_threads(options.threads)
    step_of(form, 16, trained_tower, options)()
    step = step_of(form, options.side, trained_tower, options)
    before = resident()
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    sender.send(max(peak - before, resource.getpagesize()))


def peak_of(form: str, trained_tower: bool, options: argparse.Namespace) -> float:
    """Bytes that a step of this form needs at its peak, measured in a child process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=measure_peak, args=(sender, form, trained_tower, options))
    child.start()
    sender.close()
    peak = receiver.recv()
    child.join()
    return peak


def compare(trained_tower: bool, peaks: Sequence[float], options: argparse.Namespace, watch: Stopwatch) -> None:
    """Time the forms in turn and print a line for each."""
    steps = [step_of(form, options.side, trained_tower, options) for form in FORMS]

    def seconds_of(step: Callable[[], Tensor]) -> float:
        start = watch.seconds()
        step()
        return watch.seconds() - start

    tokens = [step() for step in steps[:3]]  # the fourth has weights of its own
    differences = [(result - tokens[0]).abs().max().item() for result in tokens]
    rounds = [[seconds_of(step) for step in steps] for _ in range(options.repeats)]
    columns = list(zip(*rounds, strict=True))
    for index, (form, column, peak) in enumerate(zip(FORMS, columns, peaks, strict=True)):
        ratio = statistics.median(other / first for other, first in zip(column, columns[0], strict=True))
        difference = f"{differences[index]:.0e}" if index < len(differences) else ""
        print(
            f"| {'trained' if trained_tower else 'frozen'} | {form} | {1000 * statistics.median(column):.1f} "
            f"| {ratio:.1f} | {peak / MIB:.0f} | {peak / peaks[0]:.1f} | {difference} |"
        )


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument(
        "--side", type=int, default=256, help="of the finest level, in cells; an eighth for the coarsest"
    )
    parser.add_argument("--dim", type=int, default=2048, help="width of the language model")
    parser.add_argument("--vision-dims", type=int, nargs=4, default=SWIN_B)
    parser.add_argument("--hidden-dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(words)
    if options.device != "cpu":
        parser.error("the peak of the resident set says nothing about CUDA; this one is for CPUs")
    if options.quick:
        options.queries, options.side, options.dim, options.vision_dims = 4, 16, 8, (4, 4, 8, 8)
        options.hidden_dim, options.heads, options.repeats = 8, 2, 1
    # Children are forked before this process has started threads of its own.
    peaks = {trained: [peak_of(form, trained, options) for form in FORMS] for trained in (False, True)}
    watch = Stopwatch(options.device, options.threads)
    print(
        f"{watch.describe()}; float32, {options.batch} x {options.queries} queries, finest level {options.side}², "
        f"{options.heads} heads, {options.hidden_dim} wide"
    )
    print()
    print("| tower | form | ms | ratio | peak MiB | ratio | difference |")
    print("| :--- | :--- | ---: | ---: | ---: | ---: | ---: |")
    for trained_tower, of_forms in peaks.items():
        compare(trained_tower, of_forms, options, watch)


if __name__ == "__main__":
    main()
