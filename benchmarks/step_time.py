"""Where the time of a training step of SpatialRGPT goes.

The preset's model with random weights trains on a small synthetic world: real files, the real dataset, collate function
and task-balanced order. Each part's forward is timed by hooks with a synchronised clock; "data" is reading and
collating a batch in this process, which the preset's workers do beside the step. AdamW works on the model's own
weights, without DeepSpeed: what the engine adds is `engine_overhead.py`'s question.

    uv run --no-sync python benchmarks/step_time.py --preset tiny --steps 10

Other words are settings of `spatialrgpt train`, such as `--training.micro_batch_size 8`. A preset with pretrained parts
needs their files.
"""

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import torch
from region_training.batches import mean_counts
from region_training.run_folder import RunFolder
from region_training.trainer import Movable
from spatialrgpt.config import Settings, SyntheticSettings
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from stopwatch import DTYPES, Stopwatch, options_of
from torch import nn
from transformers import AutoProcessor

NOTES = ("record_ids", "num_samples")  # in a batch, but not for the model
FORWARD = ("vision tower", "refinement and regions", "projector", "language model", "region heads")
QUICK = ("--training.micro_batch_size", "4")


class PartTimes:
    """Seconds of the parts in one step, added up.

    Args:
        watch: The clock.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._watch = watch
        self._begin = 0.0

    def begin(self, *_: object) -> None:
        """Start the clock; fits a forward pre-hook."""
        self._begin = self._watch.seconds()

    def end(self, part: str) -> None:
        """Add the time since `begin` to a part."""
        self.seconds[part] += self._watch.seconds() - self._begin

    def follow(self, module: nn.Module | None, part: str) -> None:
        """Count every forward of a module; modules that are followed never contain each other."""
        if module is not None:
            module.register_forward_pre_hook(self.begin)
            module.register_forward_hook(lambda *_: self.end(part))


def follow_parts(model: SpatialRGPTForConditionalGeneration, times: PartTimes) -> None:
    """Hang the clock on the parts of the model."""
    times.follow(model.vision_tower, FORWARD[0])
    if model.region_encoder is not None:
        # The model calls the refinement itself, before the rest of the region encoder.
        times.follow(model.region_encoder.refinement, FORWARD[1])
        times.follow(model.region_encoder, FORWARD[1])
    times.follow(model.projector, FORWARD[2])
    times.follow(model.language_model.base_model, FORWARD[3])
    times.follow(model.language_model.get_output_embeddings(), FORWARD[3])
    times.follow(model.head_geometry, FORWARD[4])
    times.follow(model.region_heads, FORWARD[4])


def resolve(options: argparse.Namespace, words: Sequence[str], folder: Path) -> Settings:
    """The preset's settings, on a world of this benchmark's own."""
    from region_training.command_line import resolve_settings
    from spatialrgpt.cli import APPLICATION

    quick = QUICK if options.quick else ()
    settings = resolve_settings(APPLICATION, "train", ["--preset", options.preset, *quick, *words])
    settings = cast("Settings", settings)
    world = SyntheticSettings(train_scenes=options.scenes, eval_scenes=1)
    data = replace(settings.data, root=str(folder / "world"), synthetic=world)
    return replace(settings, run_dir=str(folder / "run"), data=data)


def measure(settings: Settings, options: argparse.Namespace, watch: Stopwatch) -> list[dict[str, float]]:
    """Train some steps; seconds of each part in each step."""
    from spatialrgpt.data import RegionDataset
    from spatialrgpt.train import make_job, prepare_data, prepare_processor

    run = RunFolder(Path(str(settings.run_dir)))
    prepare_data(settings.data)
    prepare_processor(settings, run.path / "processor")
    processor = AutoProcessor.from_pretrained(run.path / "processor")
    data = RegionDataset(
        Path(settings.data.root), settings.data.train_split, processor, max_length=settings.data.max_length
    )
    job = make_job(settings, run, processor, data)
    torch.manual_seed(settings.training.seed)
    model = cast("SpatialRGPTForConditionalGeneration", job.build_model())
    model = model.to(options.device, DTYPES[options.dtype]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.training.learning_rate, fused=True)
    times = PartTimes(watch)
    follow_parts(model, times)
    print(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million parameters")
    rows = cycle(job.sampler or range(len(data)))

    def read_batch() -> dict:
        return job.collate([job.train_dataset[row] for row in islice(rows, settings.training.micro_batch_size)])

    steps = []
    for _ in range(options.steps + 2):
        times.seconds.clear()
        begin = watch.seconds()
        train_step(model, optimizer, times, read_batch)
        times.seconds["whole step"] = watch.seconds() - begin
        steps.append(dict(times.seconds))
    return steps[2:]  # without the first ones, which allocate


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, times: PartTimes, read_batch: Callable[[], dict]
) -> None:
    """One step on the next batch."""
    device = next(model.parameters()).device
    times.begin()
    batch = {name: value for name, value in read_batch().items() if name not in NOTES}
    batch["loss_counts"] = mean_counts([batch["loss_counts"]], 1)
    times.end("data")
    times.begin()
    batch = {name: to_device(value, device) for name, value in batch.items()}
    times.end("to the device")
    loss = model(**batch).loss
    times.begin()
    loss.backward()
    times.end("backward")
    times.begin()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    times.end("clipping and optimizer")


def to_device(value: object, device: torch.device) -> object:
    """Move tensors, also those inside of mappings."""
    if isinstance(value, dict):
        return {name: to_device(entry, device) for name, entry in value.items()}
    return value.to(device) if isinstance(value, Movable) else value


def print_table(steps: Sequence[dict[str, float]], batch_size: int) -> None:
    """Medians over the steps; what no hook saw is the rest of the forward."""
    total = statistics.median(step["whole step"] for step in steps)
    parts = [part for part in ("data", "to the device", *FORWARD) if part in steps[0]]
    rows = {part: statistics.median(step[part] for step in steps) for part in parts}
    rest = [2 * step["whole step"] - sum(step.values()) for step in steps]
    rows["embedding, splicing, losses"] = statistics.median(rest)
    rows |= {part: statistics.median(step[part] for step in steps) for part in ("backward", "clipping and optimizer")}
    print("| part | ms | share |")
    print("| :--- | ---: | ---: |")
    for part, seconds in rows.items():
        print(f"| {part} | {1000 * seconds:.2f} | {seconds / total:.1%} |")
    print(f"| whole step | {1000 * total:.2f} | {batch_size / total:.1f} samples/s |")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--dtype", default=None, choices=tuple(DTYPES), help="bfloat16 on CUDA, float32 on CPU")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--scenes", type=int, default=60, help="of the synthetic world")
    options, others = parser.parse_known_args(words)
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    if options.quick:
        options.steps, options.scenes = 1, 4
    watch = Stopwatch(options.device, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        settings = resolve(options, others, Path(folder))
        batch_size = settings.training.micro_batch_size
        print(f"{watch.describe()}; {options.dtype}, preset {options.preset}, batch {batch_size}")
        steps = measure(settings, options, watch)
    print_table(steps, batch_size)
    if options.device == "cuda":
        print(f"\npeak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
