"""Synthetic worlds on disk: a folder holds one of them, and says which."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from region_training.run_folder import write_atomically

WORLD_FILE = "world.json"


def claim_world(
    root: Path, asked: Mapping[str, object], *, parts: Sequence[str], setting: str = "data.root", drawing: int = 1
) -> None:
    """Keep the settings of a world beside it before it is written; refuse a folder that holds another one.

    Args:
        root: Folder of the world, made where it is missing.
        asked: Settings of which the world is a pure function.
        parts: Files or folders in `root` of which a world has one at least, however little of it is written.
        setting: Names the folder in a training.
        drawing: Raised by the application when the same settings give other files than before.

    Raises:
        ValueError: The folder holds a world of other settings or an older drawing, or one of which nobody knows.
    """
    kept, wanted = root / WORLD_FILE, {**asked, "drawing": drawing}
    there = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    if there is None and not any((root / part).exists() for part in parts):
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(wanted, indent=2) + "\n")
        return
    # Before the drawings were counted, all were the first.
    if there is None or {"drawing": 1, **there} != wanted:
        found = f"no {WORLD_FILE}, so nobody knows of which settings" if there is None else _words(there)
        raise ValueError(
            f"{root}: a world is there ({found}), and another was asked for ({_words(wanted)}); delete the folder, or "
            f"name another one ({setting} of a training)"
        )


def _words(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
