"""Images of RefCOCO's evaluation splits, which are training images of COCO: they are to be left out of training."""

import logging
from pathlib import Path

from psalm.annotations import ImageId
from psalm.config import DataSettings
from psalm.data_paths import EVAL_SPLITS, REF_KEYS, in_split
from psalm.refcoco import image_ids

logger = logging.getLogger(__name__)

PUBLISHED_SPLITS = {"ref_coco": EVAL_SPLITS[:3], "ref_coco_plus": EVAL_SPLITS[:3], "ref_coco_g": ("val", "test")}
"""The evaluation splits that each data set is published with."""


def excluded_images(settings: DataSettings, split: str) -> set[ImageId]:
    """Images of all evaluation splits of RefCOCO that lie beside the training files, if the settings exclude them.

    Raises:
        ValueError: Files of RefCOCO are given and those of their evaluation splits cannot be found.
    """
    if not settings.exclude_ref_eval_images:
        return set()
    paths = {key: str(vars(settings)[key]) for key in REF_KEYS if vars(settings)[key] is not None}
    if not paths:
        logger.warning(
            "data.exclude_ref_eval_images: no image is left out of training, since no file of RefCOCO is given: scores "
            "on RefCOCO would not be held out. Give data.ref_coco (--ref_coco_path) a path with {split}, or set "
            "data.exclude_ref_eval_images (--exclude_ref_eval_images) to false"
        )
        return set()
    single = [f"data.{key}: {path!r}" for key, path in paths.items() if "{split}" not in path]
    if single:
        raise ValueError(
            "data.exclude_ref_eval_images: expected RefCOCO files with {split} in their path, which leads to their "
            f"evaluation splits, got {', '.join(single)}; or set it to false"
        )
    found = [file for key, path in paths.items() for file in _evaluation_files(key, path, split)]
    excluded = set().union(*(image_ids(file) for file in found))
    logger.info("%d images of %s are left out of training", len(excluded), ", ".join(file.name for file in found))
    return excluded


def _evaluation_files(key: str, path: str, split: str) -> list[Path]:
    """Files of the splits that are not trained on; one at least."""
    files = {name: in_split(path, name) for name in EVAL_SPLITS if name != split}
    there = {name: file for name, file in files.items() if file.is_file()}
    if not there:
        raise ValueError(
            f"data.exclude_ref_eval_images, data.{key}: found none of {', '.join(map(str, files.values()))}; or set it "
            "to false"
        )
    for name in PUBLISHED_SPLITS[key]:
        if name in files and name not in there:
            logger.warning("%s is not there: its images are not left out of training", files[name])
    return list(there.values())
