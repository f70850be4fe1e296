"""How fast are video samples loaded, and how much of a training step is decoding?

Clips of moving shapes are written once; their records go through data set, collator and data loader as in training of
the tiny preset. Without loading processes the loading is part of the step, with one it runs beside it. The clock counts
wall time, since other processes work too: on a shared machine look at the ratios of one run.

    uv run --no-sync python benchmarks/video_loading.py --records 128
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lmms.building import build_model, build_processor
from lmms.collate import VideoCollator
from lmms.config import DataSettings, Settings, SyntheticSettings
from lmms.data import VideoDataset
from lmms.families import family_of
from lmms.model import VideoLMM
from lmms.records import read_texts
from lmms.rows import read_rows
from lmms.synthetic import write_world
from region_training.config_tree import settings_from_plain
from region_training.presets import load_preset
from stopwatch import Stopwatch, options_of
from torch.utils.data import DataLoader, Subset
from video_autoregressive.backends import available_backends

Batch = dict[str, object]
NOTES = ("record_ids", "decode_ms")


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = options_of(__doc__)
    parser.add_argument("--records", type=int, default=96, help="records of a pass")
    parser.add_argument("--rounds", type=int, default=3, help="passes; the middle one counts")
    options = parser.parse_args(words)
    if options.quick:
        options.records, options.rounds = 16, 1
    Stopwatch(options.device, options.threads)
    preset = settings_from_plain(Settings, load_preset("lmms.configs", "tiny"), "tiny")
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), SyntheticSettings(train_clips=options.records, eval_clips=1))
        data = replace(preset.data, root=folder, backend="auto", synthetic=None)
        rows = read_rows(folder, ["train.json"])
        processor = build_processor(preset.model, read_texts(rows))
        family = family_of(processor, preset.model.video_tokens)
        collate = VideoCollator(
            processor.tokenizer.pad_token_id, family, autoregressive=preset.model.autoregressive_config
        )

        def loader(data: DataSettings, num_workers: int) -> DataLoader:
            records = Subset(VideoDataset(rows, family, data), range(min(options.records, len(rows))))
            size = preset.training.micro_batch_size
            return DataLoader(
                records, size, collate_fn=collate, num_workers=num_workers, persistent_workers=num_workers > 0
            )

        print(f"{options.records} records of {data.max_frames} frames, {torch.__version__}\n")
        print("| backend | processes | samples/s | decoding, ms/sample | share of loading |\n|---|---:|---:|---:|---:|")
        for backend, lacks in available_backends().items():
            if lacks is None and backend != "decord":  # which refuses the clips of this world that are cut
                for num_workers in (0, 1):
                    measured = loader(replace(data, backend=backend), num_workers)
                    print(f"| {backend} | {num_workers} | {loading_row(measured, options)}")
        model = build_model(preset.model, processor, frozen_parts=["vision_tower"]).to(options.device).train()
        print("\n| processes | step, ms | waiting for data, ms | share of waiting |\n|---:|---:|---:|---:|")
        for num_workers in (0, 1):
            print(f"| {num_workers} | {step_row(model, loader(data, num_workers), options)}")


def loading_row(loader: DataLoader, options) -> str:
    """Samples per second, and the part of loading that is decoding, from the samples' own clocks."""
    list(loader)  # processes start, files get into the cache
    seconds, decode_ms, count = [], [], 0
    for _ in range(options.rounds):
        begin = time.perf_counter()
        notes = [batch["decode_ms"] for batch in loader]
        seconds.append(time.perf_counter() - begin)
        decode_ms.append(sum(sum(note) for note in notes))
        count = sum(len(note) for note in notes)
    pass_s, pass_ms = statistics.median(seconds), statistics.median(decode_ms)
    return f"{count / pass_s:.1f} | {pass_ms / count:.2f} | {pass_ms / 1000 / pass_s:.0%} |"


def step_row(model: VideoLMM, loader: DataLoader, options) -> str:
    """Time of a training step with its batch, and of waiting for the batch."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    list(loader)
    steps, waits = [], []
    for _ in range(options.rounds):
        batches: Iterator[Batch] = iter(loader)
        for _ in range(len(loader)):
            begin = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - begin)
            train_step(model, optimizer, batch, options.device)
            steps.append(time.perf_counter() - begin)
    step_s, wait_s = statistics.median(steps), statistics.median(waits)
    return f"{1000 * step_s:.0f} | {1000 * wait_s:.0f} | {sum(waits) / sum(steps):.0%} |"


def train_step(model: VideoLMM, optimizer: torch.optim.Optimizer, batch: Batch, device: str) -> None:
    """Forward, backward and the update; waits for the device."""
    model(**{name: moved(value, device) for name, value in batch.items() if name not in NOTES}).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def moved(value: object, device: str) -> object:
    """What a batch holds, on the device."""
    if isinstance(value, dict):
        return {name: moved(entry, device) for name, entry in value.items()}
    to: Callable | None = getattr(value, "to", None)  # tensors and the batch's frames have it
    return value if to is None else to(device)


if __name__ == "__main__":
    main()
