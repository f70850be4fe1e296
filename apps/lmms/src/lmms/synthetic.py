"""The small world: clips of moving shapes with questions, as conversations in the guide's format.

    world.json                  the settings; written first
    videos/{split}/             MP4 clips, most of constant rate, some of variable rate, some cut from a longer clip
    images/{split}/             pictures
    {split}.json                records: `conversations`, and `video` or `image` or neither

A clip has a record for each of its questions, with their `kind`.

A split whose records are there is complete. A clip depends on the seed, its split and its number alone: the pixels that
are drawn and the labels, not the bytes that an encoder makes of them. A folder holds one world: where other settings
were written, or nobody knows which, nothing is written or reused.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from region_training.images import write_png
from region_training.run_folder import write_atomically
from region_training.worlds import claim_world
from rich.progress import track

from lmms.clip_files import write_clip, write_cut
from lmms.config import SyntheticSettings
from lmms.questions import Question, ask_about, ask_about_still, ask_without_looking
from lmms.scenes import DIRECTIONS, NUM_STEPS, Scene, Theme, sample_scene, sample_still

SPLITS = ("train", "val")
FRAMES_PER_STEP = 3
NUM_FRAMES = NUM_STEPS * FRAMES_PER_STEP + 1
"""Of a clip of constant rate: six frames taken evenly from first to last stand exactly a step apart."""

RATES_FPS = (8, 10)

THEMES: tuple[Theme, ...] = ("moving", "appearing", "moving", "counting")
"""Themes of clips in turn."""

VARIABLE_RATE, CUT, EVERY = 3, 5, 7
"""Of seven clips in a row (seven goes into no number of themes) one has a variable rate, and one is cut."""

PICTURE_SHARE, TEXT_SHARE = 0.10, 0.05
"""Of all records."""

Record = dict[str, object]


def write_world(root: Path, settings: SyntheticSettings, splits: tuple[str, str] = SPLITS) -> None:
    """Write a training and a held-out split; a split of the same world that is there is kept.

    Args:
        root: Folder of the world.
        settings: How many clips of which size; the same settings give the same world.
        splits: Names of the two splits.

    Raises:
        ValueError: The folder holds another world.
    """
    claim_world(root, asdict(settings), parts=("videos",))
    for number, (split, num_clips) in enumerate(zip(splits, (settings.train_clips, settings.eval_clips), strict=True)):
        if not (root / f"{split}.json").exists():
            records = list(_write_split(root, split, num_clips, settings, number))
            write_atomically(root / f"{split}.json", json.dumps(records, indent=1) + "\n")


def scene_of_clip(settings: SyntheticSettings, number: int, index: int) -> tuple[Scene, int, np.random.Generator]:
    """The scene of a clip, its frames per second, and the generator that chooses its questions.

    Args:
        settings: The world.
        number: Of the split.
        index: Of the clip in the split.
    """
    rng = np.random.default_rng([settings.seed, number, 0, index])
    round_number, turn = divmod(index, len(THEMES))
    rate = RATES_FPS[rng.integers(len(RATES_FPS))]
    theme = THEMES[turn]
    scene = sample_scene(
        rng,
        theme,
        size=settings.image_size,
        step_s=FRAMES_PER_STEP / rate,
        # Both moving clips of a round take the next of all directions, and counts come by turns: answers are balanced.
        direction=DIRECTIONS[(2 * round_number + turn // 2) % len(DIRECTIONS)],
        num_shapes=1 + round_number % 3 if theme == "counting" else None,
    )
    return scene, rate, rng


def write_scene(path: Path, scene: Scene, index: int, rate: int) -> None:
    """Write a clip in the manner that its number asks for; what is seen at which time is the same in all of them."""
    if index % EVERY == VARIABLE_RATE:
        # Twice the rate for one half of the time and two thirds of the rate for the other.
        halves = np.array([*range(NUM_FRAMES), *range(NUM_FRAMES + 2, 2 * NUM_FRAMES, 3)])
        times = (halves if index // EVERY % 2 else 2 * (NUM_FRAMES - 1) - halves[::-1]) / (2 * rate)
        write_clip(path, scene.render(times), times)
    elif index % EVERY == CUT:
        lead = NUM_FRAMES // 2 + index // EVERY % (NUM_FRAMES // 2)
        times = np.arange(lead + NUM_FRAMES) / rate
        write_cut(path, scene.render(times - lead / rate), times, begin_s=lead / rate)
    else:
        times = np.arange(NUM_FRAMES) / rate
        write_clip(path, scene.render(times), times)


def _write_split(root: Path, split: str, num_clips: int, settings: SyntheticSettings, number: int) -> Iterator[Record]:
    for media in ("videos", "images"):
        (root / media / split).mkdir(parents=True, exist_ok=True)

    def draw(index: int) -> list[Record]:
        scene, rate, rng = scene_of_clip(settings, number, index)
        name = f"videos/{split}/{index:06d}.mp4"
        write_scene(root / name, scene, index, rate)
        questions = ask_about(scene, rng)
        return [_record(f"{split}-{index:06d}-{place}", own, "video", name) for place, own in enumerate(questions)]

    num_records = 0
    # Threads: the encoder, which takes most of the time, does not hold the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(draw, range(num_clips))
        for records in track(drawn, total=num_clips, description=f"drawing {split} clips"):
            num_records += len(records)
            yield from records
    video_share = 1 - PICTURE_SHARE - TEXT_SHARE
    for index in range(round(num_records * PICTURE_SHARE / video_share)):
        rng = np.random.default_rng([settings.seed, number, 1, index])
        still = sample_still(rng, size=settings.image_size)
        name = f"images/{split}/{index:06d}.png"
        write_png(root / name, still.render(np.zeros(1))[0])
        yield _record(f"{split}-picture-{index:06d}", ask_about_still(still, rng), "image", name)
    for index in range(round(num_records * TEXT_SHARE / video_share)):
        rng = np.random.default_rng([settings.seed, number, 2, index])
        yield _record(f"{split}-text-{index:06d}", ask_without_looking(rng))


def _record(record_id: str, question: Question, media: str | None = None, name: str | None = None) -> Record:
    record: Record = {"id": record_id, "kind": question.kind}
    if media is not None:
        record[media] = name
    marker = "" if media is None else f"<{media}>\n"
    record["conversations"] = [
        {"from": "human", "value": marker + question.text},
        {"from": "gpt", "value": question.answer},
    ]
    return record
