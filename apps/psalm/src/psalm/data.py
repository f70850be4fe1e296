"""From the paths of the settings to samples: every data set whose path is given joins, one source per way to read it.

Records keep the order of their files; in which order they are trained is `schedule.py`'s matter. A sample is a pure
function of (seed, epoch, index), so that runs, ranks, workers and resumed runs all see the same.
"""

import bisect
import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from region_core.seeding import sample_rng
from torch.utils.data import Dataset

from psalm.annotations import ImageId
from psalm.config import DataSettings
from psalm.cross_image import CrossImageSource
from psalm.data_paths import PATH_KEYS, REF_KEYS, in_split
from psalm.instance import InstanceSource, instance_file
from psalm.interactive import InteractiveSource
from psalm.label_space import LabelSpace
from psalm.modes import BACKGROUND, Mode
from psalm.own_data import OwnFile, OwnSource
from psalm.panoptic import PanopticFile, PanopticSource, panoptic_file
from psalm.ref_exclusion import excluded_images
from psalm.refcoco import ReferringSource
from psalm.samples import Scene, SegmentationSample
from psalm.semantic import SemanticSource
from psalm.synthetic import paths_of
from psalm.transforms import SegmentationTransform

logger = logging.getLogger(__name__)


@runtime_checkable
class SceneSource(Protocol):
    """One way to read one data set."""

    @property
    def name(self) -> str:
        """Name of the data set; with the mode it is unique among the sources of a run."""
        ...

    @property
    def mode(self) -> Mode:
        """What is asked of its scenes."""
        ...

    @property
    def label_space(self) -> LabelSpace | None:
        """Its classes, in modes with class names."""
        ...

    def __len__(self) -> int:
        """Number of scenes."""
        ...

    def where(self, index: int) -> str:
        """What to call a scene in an error."""
        ...

    def texts(self) -> list[str]:
        """The words of its conditions."""
        ...

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one scene; `rng` is the source of all draws, without it nothing is drawn (evaluation)."""
        ...


class SegmentationDataset(Dataset):
    """Samples of all sources, one source behind the other.

    Args:
        sources: The sources.
        transform: Makes samples of scenes.
        seed: The draws are a pure function of (seed, epoch, index).
        training: Whether anything is drawn: prompts, the order of classes, augmentation.
        split: What the records are called together.
        opened_with: The settings that the sources were opened with, in words: they change what is asked of a record.
    """

    def __init__(
        self,
        sources: Sequence[SceneSource],
        transform: SegmentationTransform,
        *,
        seed: int = 0,
        training: bool = False,
        split: str = "",
        opened_with: str = "",
    ) -> None:
        self.sources = list(sources)
        self.transform = transform
        self.seed = seed
        self.training = training
        self.split = split
        self.opened_with = opened_with
        self.epoch = 0
        self._ends = list(accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        """Number of samples."""
        return self._ends[-1] if self._ends else 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of this epoch."""
        self.epoch = epoch

    def source_of(self, index: int) -> SceneSource:
        """The source of a sample."""
        return self.sources[self._place(index)[0]]

    def where(self, index: int) -> str:
        """What to call a sample in an error."""
        number, within = self._place(index)
        return self.sources[number].where(within)

    def texts(self) -> list[str]:
        """All words the model may read here: class names and sentences, each once."""
        texts = dict.fromkeys(text for source in self.sources for text in source.texts())
        if any(source.label_space is not None for source in self.sources):
            texts[BACKGROUND] = None
        return list(texts)

    def scene(self, index: int) -> Scene:
        """A sample as it lies on disk.

        Raises:
            ValueError: The record is bad; the message names it.
        """
        return self._scene(index, self._rng(index))

    def __getitem__(self, index: int) -> SegmentationSample:
        """A sample at the model's input size.

        Raises:
            ValueError: The record is bad; the message names it.
        """
        rng = self._rng(index)
        sample = self.transform(self._scene(index, rng), rng)
        return sample if rng is None else replace(sample, seed=int(rng.integers(2**31)))

    def _scene(self, index: int, rng: np.random.Generator | None) -> Scene:
        number, within = self._place(index)
        return self.sources[number].load(within, rng)

    def _rng(self, index: int) -> np.random.Generator | None:
        return sample_rng(self.seed, self.epoch, index) if self.training else None

    def _place(self, index: int) -> tuple[int, int]:
        """Number of a sample's source, and its index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"got index {index}, expected one of {len(self)} samples")
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)


def open_dataset(settings: DataSettings, split: str, *, training: bool, seed: int = 0) -> SegmentationDataset:
    """The samples of a split, as the settings say.

    Raises:
        ValueError: As `open_sources`.
    """
    sources = open_sources(settings, split, training=training)
    # Augmentation draws, and nothing is drawn in evaluation.
    transform = SegmentationTransform(settings.image_size, augment=settings.augment and training)
    opened_with = repr((split, settings))
    return SegmentationDataset(sources, transform, seed=seed, training=training, split=split, opened_with=opened_with)


def open_sources(settings: DataSettings, split: str, *, training: bool) -> list[SceneSource]:
    """The sources of a split, in the order of the modes; sources without samples are left out with a warning.

    In evaluation the interactive data are one source per type of prompt, since their scores are apart, and so is a data
    set left out that does not have this split (RefCOCO alone has testA). Training needs all that are given.

    Args:
        settings: Paths, modes and how data are read.
        split: Name of the split, which takes the place of `{split}` in paths.
        training: Whether the sources are to be trained on.

    Raises:
        ValueError: A file is not as its format says, a path is given without the one it needs, or there is nothing to
            read in the wanted modes.
        OSError: A file cannot be read.
    """
    settings = _with_world(settings)
    excluded = excluded_images(settings, split) if training else set()
    sources = [
        *_coco_sources(settings, split, excluded, training=training),
        *_referring_sources(settings, split, excluded, training=training),
        *_region_sources(settings, split, excluded, training=training),
        *_cross_image_sources(settings, split, excluded, training=training),
        *_own_sources(settings, split, excluded, training=training),
    ]
    for source in sources:
        if not len(source):
            logger.warning("%s of mode %s has no samples in the split %r", source.name, source.mode, split)
    filled = [source for source in sources if len(source)]
    if not filled:
        given = [f"data.{key}" for key in PATH_KEYS if vars(settings)[key] is not None]
        raise ValueError(
            f"the split {split!r} has no sample of the modes {', '.join(settings.wanted_modes) or 'none'}; paths are "
            f"given for {', '.join(given) or 'no data set'}"
        )
    _warn_of_absent(settings, split, list(dict.fromkeys(source.mode for source in filled)))
    return filled


def shared_files(settings: DataSettings) -> list[Path]:
    """Files that are read both in training and in evaluation, so that their records are not held out.

    They are compared as they lie on disk, whatever their paths say: a path without `{split}` is one file for both.
    """
    splits = (settings.train_split, settings.eval_split)
    trained, evaluated = ({file.resolve() for file in _files_of(settings, split)} for split in splits)
    return sorted(trained & evaluated)


def describe_shared(settings: DataSettings) -> str | None:
    """What has to be said beside scores of records that were trained on; None where all are held out."""
    shared = shared_files(settings)
    if not shared:
        return None
    return (
        f"Not held out: {', '.join(map(str, shared))} is read for the splits {settings.train_split!r} (training) and "
        f"{settings.eval_split!r} (evaluation) alike, so that scores are of records that were trained on. Give it a "
        "{split} in its path and one file per split."
    )


def _files_of(settings: DataSettings, split: str) -> list[Path]:
    """The annotation files that a split is read from, in the wanted modes."""
    settings = _with_world(settings)
    wanted = set(settings.wanted_modes)
    read_as = {"region_json": {"region"}, "cross_image_json": {"cross_image"}, "own_json": wanted}
    read_as |= {key: {"referring"} for key in REF_KEYS}
    files = [_file(settings, key, split) for key, modes in read_as.items() if vars(settings)[key] and modes & wanted]
    if settings.coco_root is not None:
        root = _file(settings, "coco_root", split)
        instances = instance_file(root, split)
        files += [panoptic_file(root, split)] if {"panoptic", "semantic"} & wanted else []
        files += [instances] if instances is not None and "instance" in wanted else []
    return [file for file in files if file.is_file()]


def _warn_of_absent(settings: DataSettings, split: str, modes: Sequence[Mode]) -> None:
    """Say which modes are asked for by name and have no samples."""
    if settings.seg_task is not None and settings.seg_task not in modes:
        logger.warning(
            "data.seg_task (--seg_task) is %s, of which the split %r has no samples: the headline is the mean of %s",
            settings.seg_task,
            split,
            ", ".join(modes),
        )
    if settings.cross_image_seg_task and "cross_image" not in modes:
        logger.warning(
            "data.cross_image_seg_task (--cross_image_seg_task) is true, but the split %r has no image pairs; they are "
            "given by data.cross_image_json (--region_cross_json_path)",
            split,
        )


def _with_world(settings: DataSettings) -> DataSettings:
    """The settings with the paths of the synthetic world where none are given."""
    if settings.synthetic is None:
        return settings
    paths = paths_of(Path(settings.synthetic_root))
    return replace(settings, **{key: path for key, path in paths.items() if vars(settings)[key] is None})


def _coco_sources(settings: DataSettings, split: str, excluded: set[ImageId], *, training: bool) -> list[SceneSource]:
    wanted = settings.wanted_modes
    if settings.coco_root is None or not {"panoptic", "semantic", "instance"} & set(wanted):
        return []
    root = _file(settings, "coco_root", split)
    sources: list[SceneSource] = []
    panoptic, instances = panoptic_file(root, split), instance_file(root, split)
    if not panoptic.is_file() and instances is None:
        if not training and root.is_dir():
            logger.warning("data.coco_root: %s has no split %r and is left out", root, split)
            return []
        raise ValueError(
            f"data.coco_root: {str(root)!r} has neither annotations/{panoptic.name} nor "
            f"annotations/instances_{split}2017.json nor instance_{split}_psalm.json"
        )
    if panoptic.is_file() and {"panoptic", "semantic"} & set(wanted):
        opened = PanopticFile(root, split)
        if "panoptic" in wanted:
            sources.append(PanopticSource(opened, excluded=excluded))
        if "semantic" in wanted:
            sources.append(SemanticSource(opened, excluded=excluded))
    elif {"panoptic", "semantic"} & set(wanted):
        logger.warning("%s is not there: no panoptic and no semantic segmentation of COCO", panoptic)
    if instances is not None and "instance" in wanted:
        sources.append(InstanceSource(instances, root / f"{split}2017", excluded=excluded))
    elif "instance" in wanted:
        logger.warning("%s has no instances of the split %r: no instance segmentation of COCO", root, split)
    return sources


def _referring_sources(
    settings: DataSettings, split: str, excluded: set[ImageId], *, training: bool
) -> list[SceneSource]:
    if "referring" not in settings.wanted_modes:
        return []
    given = [key for key in REF_KEYS if _is_given(settings, key, split, training=training)]
    if not given:
        return []
    images = _folder(settings, "refcoco_images", given[0], split)
    return [
        ReferringSource(
            _file(settings, key, split),
            images,
            name=key.replace("_", ""),
            ref_mode=settings.ref_mode,
            excluded=excluded,
        )
        for key in given
    ]


def _region_sources(settings: DataSettings, split: str, excluded: set[ImageId], *, training: bool) -> list[SceneSource]:
    if "region" not in settings.wanted_modes or not _is_given(settings, "region_json", split, training=training):
        return []
    file, images = _file(settings, "region_json", split), _folder(settings, "region_images", "region_json", split)
    types = settings.prompt_types
    if training:
        return [InteractiveSource(file, images, types=types, excluded=excluded, pens=settings.pens)]
    return [InteractiveSource(file, images, types=(kind,), name=kind, pens=settings.pens) for kind in types]


def _cross_image_sources(
    settings: DataSettings, split: str, excluded: set[ImageId], *, training: bool
) -> list[SceneSource]:
    key = "cross_image_json"
    if "cross_image" not in settings.wanted_modes or not _is_given(settings, key, split, training=training):
        return []
    images = _folder(settings, "cross_image_images", key, split)
    file = _file(settings, key, split)
    return [CrossImageSource(file, images, types=settings.prompt_types, excluded=excluded, pens=settings.pens)]


def _own_sources(settings: DataSettings, split: str, excluded: set[ImageId], *, training: bool) -> list[SceneSource]:
    if not settings.wanted_modes or not _is_given(settings, "own_json", split, training=training):
        return []
    file, images = _file(settings, "own_json", split), _folder(settings, "own_images", "own_json", split)
    own = OwnFile(file, images, excluded=excluded, pens=settings.pens)
    return [OwnSource(own, mode) for mode in own.modes() if mode in settings.wanted_modes]


def _is_given(settings: DataSettings, key: str, split: str, *, training: bool) -> bool:
    """Whether a data set is to be read; without the split it is, with a warning, no part of an evaluation."""
    path = vars(settings)[key]
    if path is None or training or "{split}" not in path or _file(settings, key, split).is_file():
        return path is not None
    logger.warning("data.%s: %s is not there, the split %r is left out", key, _file(settings, key, split), split)
    return False


def _file(settings: DataSettings, key: str, split: str) -> Path:
    return in_split(vars(settings)[key], split)


def _folder(settings: DataSettings, key: str, needed_by: str, split: str) -> Path:
    path = vars(settings)[key]
    if path is None:
        raise ValueError(f"data.{needed_by} is given and data.{key}, the folder of its images, is not")
    return in_split(path, split)
