"""Do predictions of the next frame rest on the order of the frames before it?

    uv run --no-sync python benchmarks/lmms_frame_order.py runs/ablations/lmms/tiny-preset-?

For finished runs of `lmms train`: the error of predicting the last frame of every held-out clip, and of copying the
newest frame that is known, with the frames as they are and with those before the newest one in another order. The
target and what would be copied are the same both times, so that only what the prediction makes of the history differs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from lmms.config import Settings
from lmms.controls import RememberingReader, ShufflingReader, reading_with, shuffle_frames
from lmms.data import VideoDataset
from lmms.families import Family
from lmms.frame_errors import errors_of
from lmms.loading import load_model
from lmms.model import VideoLMM
from region_training.run_folder import RunFolder
from rich.progress import track
from video_autoregressive.loader import VideoClip


def shuffle_history(clip: VideoClip, name: str) -> VideoClip:
    """A clip with its frames in another order but for the last one and the newest before it."""
    history = shuffle_frames(replace(clip, frames=clip.frames[:-2]), name)
    return replace(clip, frames=torch.cat([history.frames, clip.frames[-2:]]))


def errors_at_the_end(model: VideoLMM, family: Family, dataset: VideoDataset, title: str) -> tuple[float, float]:
    """Mean error of predicting the last frame, and of copying, over the records with one video."""
    chosen = [index for index in range(len(dataset)) if len(dataset.record(index).videos) == 1]
    ends = []
    for index in track(chosen, title, transient=True):
        predicted, copied = (errors[-1] for errors in errors_of(model, family, dataset[index]))
        if predicted is not None and copied is not None:
            ends.append((predicted, copied))
    predictions, copies = zip(*ends, strict=True)
    return sum(predictions) / len(ends), sum(copies) / len(ends)


def measure(folder: Path) -> tuple[float, float, float]:
    """Errors of copying, of predicting, and of predicting with a shuffled history."""
    run = RunFolder.open(folder)
    settings = run.load_settings(Settings)
    model, family = load_model(run.path, "cpu")
    module = settings.model.autoregressive_config
    dataset = VideoDataset.open(settings.data, settings.data.eval_files, family, autoregressive=module)
    reader = RememberingReader(dataset.reader)
    in_order, shuffled = (
        errors_at_the_end(model, family, reading_with(dataset, used, with_answers=True), title)
        for title, used in (("in order", reader), ("history shuffled", ShufflingReader(reader, shuffle_history)))
    )
    return in_order[1], in_order[0], shuffled[0]


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="folders of finished runs with the reconstruction loss and a shared teacher"
    )
    options = parser.parse_args(words)
    print("| run | error of copying | of predicting | history shuffled | skill | history shuffled |")
    print("|---|---:|---:|---:|---:|---:|")
    for folder in options.runs:
        copied, predicted, shuffled = measure(folder)
        errors = f"{copied:.4f} | {predicted:.4f} | {shuffled:.4f}"
        print(f"| {folder.name} | {errors} | {1 - predicted / copied:.3f} | {1 - shuffled / copied:.3f} |", flush=True)


if __name__ == "__main__":
    main()
