"""The small world: warehouse scenes with questions, written in exactly the warehouse format."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from region_core.rle import encode_rle
from region_training.images import write_png
from region_training.worlds import claim_world
from rich.progress import track

from spatialrgpt.config import SyntheticSettings
from spatialrgpt.questions import Question, ask_about
from spatialrgpt.scenes import MAX_DEPTH_M, Scene, sample_scene


def write_world(root: Path, settings: SyntheticSettings, *, splits: tuple[str, str] = ("train", "val")) -> None:
    """Write a training and a held-out split; a split of the same world that is there is kept.

    `world.json` holds the settings and appears first. A split's JSON file appears last, so a split that has one is
    complete.

    Args:
        root: Folder of the data set.
        settings: How many scenes and questions; the same settings give the same files.
        splits: Names of the two splits.

    Raises:
        ValueError: The folder holds another world, or data of which nobody knows where they come from.
    """
    claim_world(root, asdict(settings), parts=[name for split in splits for name in (split, f"{split}.json")])
    sizes = (settings.train_scenes, settings.eval_scenes)
    for number, (split, num_scenes) in enumerate(zip(splits, sizes, strict=True)):
        if not (root / f"{split}.json").exists():
            _write_split(root / split, num_scenes, settings, number)


def _write_split(folder: Path, num_scenes: int, settings: SyntheticSettings, number: int) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "depths").mkdir(parents=True, exist_ok=True)
    write_scene = partial(_write_scene, folder=folder, settings=settings, number=number)
    # Fresh processes: forking one that already runs torch's threads may hang.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        scenes = pool.map(write_scene, range(num_scenes), chunksize=16)
        drawn = list(track(scenes, total=num_scenes, description=f"drawing {folder.name} scenes"))
    records = [record for scene in drawn for record in scene]
    unfinished = folder.with_suffix(".json.partial")
    unfinished.write_text(json.dumps(records))
    unfinished.replace(folder.with_suffix(".json"))


def _write_scene(index: int, *, folder: Path, settings: SyntheticSettings, number: int) -> list[dict[str, object]]:
    rng = np.random.default_rng([settings.seed, number, index])
    scene = sample_scene(rng)
    stem = f"{index:06d}"
    write_png(folder / "images" / f"{stem}.png", scene.image)
    write_png(folder / "depths" / f"{stem}_depth.png", np.round(scene.depth_m / MAX_DEPTH_M * 255).astype(np.uint8))
    return [
        _record(f"{folder.name}-{stem}-{position:02d}", f"{stem}.png", scene, question)
        for position, question in enumerate(ask_about(scene, rng, settings.questions))
    ]


def _record(record_id: str, image: str, scene: Scene, question: Question) -> dict[str, object]:
    return {
        "id": record_id,
        "image": image,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.text}"},
            {"from": "gpt", "value": question.freeform},
        ],
        "rle": [encode_rle(scene.masks[index]) for index in question.objects],
        "category": question.category,
        "normalized_answer": question.answer,
        "freeform_answer": question.freeform,
    }
