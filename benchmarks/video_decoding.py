"""How fast are clips read, beside decord and the reader of transformers?

Every way opens a file, takes frames that are spread evenly over it, and returns them in RGB at full size. "decord" is
its `get_batch` on one thread; "transformers" is `transformers.video_utils.load_video` with its default backend and the
same frames; the others are `MultiScaleVideoFrameLoader.load_clip`, which also reads the times of all frames and checks
what it returns. Files are written anew: a camera moves over a textured plane. All ways run in one process and in turn;
the table gives the median of each, the medians of the ratios to torchcodec, and the largest difference of a pixel from
decord's.

    uv run --no-sync python benchmarks/video_decoding.py
    uv run --no-sync python benchmarks/video_decoding.py --frames 64 --repeats 7
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import decord
import numpy as np
import torch
from stopwatch import Stopwatch, options_of
from torch import Tensor
from transformers.video_utils import load_video
from video_autoregressive.loader import MultiScaleVideoFrameLoader
from video_autoregressive.testing import write_clip


class Clip(NamedTuple):
    """A file to write: height and width in pixels, seconds, frames from one key frame to the next, encoder, options."""

    name: str
    size: tuple[int, int]
    seconds: int
    gop: int
    codec: str = "libx264"
    suffix: str = "mp4"
    options: tuple[tuple[str, str], ...] = (("preset", "veryfast"),)


CLIPS = (
    Clip("H.264, 224 x 224, 10 s, key frame every 1 s", (224, 224), 10, 30),
    Clip("H.264, 640 x 360, 20 s, key frame every 8 s", (360, 640), 20, 250),
    Clip("H.264, 1280 x 720, 10 s, key frame every 0.4 s", (720, 1280), 10, 12),
    Clip("MPEG-4, 640 x 360, 20 s, key frame every 0.4 s", (360, 640), 20, 12, "mpeg4", "avi", ()),
    Clip(
        "VP9, 640 x 360, 10 s, key frame every 4 s",
        (360, 640),
        10,
        128,
        "libvpx-vp9",
        "webm",
        (("deadline", "realtime"), ("cpu-used", "8")),
    ),
)
QUICK = (Clip("H.264, 64 x 48, 1 s, key frame every 1 s", (48, 64), 1, 30),)
FPS = 30


def pictures(clip: Clip) -> Iterator[np.ndarray]:
    """What a camera sees that moves over a textured plane, with some noise of its sensor."""
    generator = np.random.default_rng(0)
    height, width = clip.size
    coarse = generator.integers(0, 256, (height // 16 + 40, width // 16 + 40, 3), np.uint8)
    plane = coarse.repeat(16, axis=0).repeat(16, axis=1)
    noise = generator.integers(0, 8, (height, width, 3), np.uint8)
    for number in range(clip.seconds * FPS):
        row, column = int(150 * (1 + np.sin(number / 40))), int(150 * (1 + np.cos(number / 55)))
        seen = plane[row : row + height, column : column + width] // 2
        yield seen + np.roll(noise, number, axis=1)


def ways_of(path: Path, num_frames: int) -> dict[str, Callable[[], Tensor]]:
    """Each way to read `num_frames` frames of a file, as (frames, 3, height, width)."""

    def indices(count: int) -> np.ndarray:
        return np.arange(num_frames) * (count - 1) // (num_frames - 1)

    def by_decord() -> Tensor:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        return torch.from_numpy(reader.get_batch(indices(len(reader))).asnumpy()).permute(0, 3, 1, 2)

    def by_transformers() -> Tensor:
        frames, _ = load_video(str(path), sample_indices_fn=lambda metadata, **_: indices(metadata.total_num_frames))
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def by_loader(loader: MultiScaleVideoFrameLoader) -> Tensor:
        path.touch()  # what the loader remembers of the file counts no more
        return loader.load_clip(path, max_frames=num_frames).frames

    loaders = {name: MultiScaleVideoFrameLoader(name) for name in ("torchcodec", "pyav")}
    return {
        "decord": by_decord,
        "transformers": by_transformers,
        "torchcodec": lambda: by_loader(loaders["torchcodec"]),
        "pyav": lambda: by_loader(loaders["pyav"]),
    }


def compare(clip: Clip, path: Path, num_frames: int, repeats: int, watch: Stopwatch) -> None:
    """Time every way in turn and print their line."""
    ways = ways_of(path, num_frames)

    def seconds_of(read: Callable[[], Tensor]) -> float:
        start = watch.seconds()
        read()
        return watch.seconds() - start

    try:
        ways["transformers"]()
    except ValueError:  # WebM does not say how many frames it has, and its reader takes that for none
        del ways["transformers"]
    frames = {name: read() for name, read in ways.items() if name != "transformers"}
    difference = max(int((frames["decord"].int() - frames[name].int()).abs().max()) for name in ("torchcodec", "pyav"))
    del frames
    rounds = [{name: seconds_of(read) for name, read in ways.items()} for _ in range(repeats)]

    def median(of: Callable[[dict[str, float]], float], name: str, digits: int) -> str:
        return f"{statistics.median(map(of, rounds)):.{digits}f}" if name in ways else "fails"

    cells = [
        median(lambda times, name=name: 1000 * times[name], name, 0)
        for name in ("decord", "transformers", "torchcodec", "pyav")
    ]
    cells += [
        median(lambda times, name=name: times[name] / times["torchcodec"], name, 2)
        for name in ("decord", "transformers", "pyav")
    ]
    print("|", " | ".join([clip.name, str(num_frames), *cells, str(difference)]), "|")


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = options_of(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=(8, 32), help="frames of a clip")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(words)
    clips = CLIPS
    if options.quick:
        clips, options.frames, options.repeats = QUICK, (2, 4), 1
    watch = Stopwatch(options.device, options.threads)
    print(f"{watch.describe()}; {FPS} frames per second, ms per clip")
    print()
    print(
        "| file | frames | decord | transformers | torchcodec | PyAV "
        "| decord / torchcodec | transformers / torchcodec | PyAV / torchcodec | difference |"
    )
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for number, clip in enumerate(clips):
            path = write_clip(
                Path(folder) / f"{number}.{clip.suffix}",
                size=clip.size,
                fps=FPS,
                codec=clip.codec,
                gop=clip.gop,
                options=dict(clip.options),
                pictures=pictures(clip),
            )
            for num_frames in options.frames:
                compare(clip, path, num_frames, options.repeats, watch)


if __name__ == "__main__":
    main()
