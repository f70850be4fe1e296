"""Paths of data sets as they are meant: a preset's may be absent, and a file of the training split stands for all.

They are settled where the settings are made, so that `show-config` and a run's `config.yaml` say what is read.
"""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

IF_THERE = " (if there)"
"""Behind a path: the data set is left out with a warning where the path does not exist. Presets write it."""
REF_KEYS = ("ref_coco", "ref_coco_plus", "ref_coco_g")
IMAGES_OF = {"region_json": "region_images", "cross_image_json": "cross_image_images", "own_json": "own_images"}
"""Files whose splits may have a folder of images each; RefCOCO's images are those of one folder (train2014)."""
PATH_KEYS = ("coco_root", *REF_KEYS, *IMAGES_OF)
EVAL_SPLITS = ("val", "testA", "testB", "test")

Paths = Mapping[str, str | None]


def in_split(path: str, split: str) -> Path:
    """A path of the settings for one split."""
    return Path(path.replace("{split}", split))


def settle_paths(paths: Paths, *, train_split: str, eval_split: str) -> dict[str, str | None]:
    """Paths without what is absent and need not be there, and with `{split}` where there is a file for each split.

    Args:
        paths: By name of the setting.
        train_split: Name of the split to train on.
        eval_split: Name of the split to evaluate on.
    """
    settled = dict(_without_absent(paths, train_split))
    others = {eval_split, *EVAL_SPLITS} - {train_split}
    for key in (*REF_KEYS, *IMAGES_OF):
        settled[key] = _for_all_splits(settled[key], train_split, others)
    for key, images in IMAGES_OF.items():
        if "{split}" in (settled[key] or ""):
            settled[images] = _for_all_splits(settled[images], train_split, others)
    return settled


def _without_absent(paths: Paths, train_split: str) -> Paths:
    """None for the paths of a preset that lead nowhere; the others without the mark of a preset."""
    plain = {key: path if path is None else path.removesuffix(IF_THERE) for key, path in paths.items()}
    absent = {
        key: path
        for key, path in plain.items()
        if path is not None and path != paths[key] and not in_split(path, train_split).exists()
    }
    if absent:
        listed = ", ".join(f"data.{key} ({path})" for key, path in absent.items())
        logger.warning("not on disk, and left out of the mix, since only the preset names them: %s", listed)
    return {**plain, **dict.fromkeys(absent)}


def _for_all_splits(path: str | None, train_split: str, others: Collection[str]) -> str | None:
    """A path whose last part names the training split, with `{split}` where another split lies beside it."""
    if path is None or "{split}" in path:
        return path
    name = re.sub(rf"(?<![A-Za-z]){re.escape(train_split)}(?![A-Za-z])", "{split}", Path(path).name)
    pattern = str(Path(path).with_name(name)) if "{split}" in name else path
    return pattern if any(pattern != path and in_split(pattern, other).exists() for other in others) else path
