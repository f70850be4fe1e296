"""Region segmentation: the interactive list format, one prompted region per object.

    {"image": file, "image_info": {id, file_name, height, width},
     "anns": [a COCO annotation with point_, scribble_, box_ and mask_visual_prompt_mask, ...]}

Records without objects ask for nothing and are left out when the file is opened; how many is logged. A region without
a usable prompt stays in the scene with an empty prompt: training leaves it out, evaluation keeps it and counts it as
missed (upstream skips the whole image, which flatters the score).
"""

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from region_training.records import read_records

from psalm.annotations import (
    ImageId,
    Record,
    as_dropped,
    find_image_id,
    image_info,
    image_name,
    is_crowd,
    read_scene_image,
    require_objects,
    segmentation_to_mask,
    stack,
)
from psalm.config import PromptType
from psalm.modes import Mode
from psalm.prompts import PEN_RADIUS, Pens, bound_regions, read_prompt
from psalm.samples import Scene

logger = logging.getLogger(__name__)


class InteractiveSource:
    """Region segmentation: one prompt and one target per object.

    Args:
        file: JSON of the split.
        images: Folder of the images.
        types: Prompts to choose from: drawn in training, else the first that is not empty.
        name: Name of the data set.
        excluded: Numbers of images to leave out.
        pens: With which points and scribbles are drawn.

    Raises:
        ValueError: The file is no list of records.
        OSError: The file cannot be read.
    """

    mode: Mode = "region"

    def __init__(
        self,
        file: Path,
        images: Path,
        *,
        types: Sequence[PromptType],
        name: str = "region",
        excluded: Collection[ImageId] = (),
        pens: Pens = PEN_RADIUS,
    ) -> None:
        self.name = name
        self.label_space = None
        self.file = file
        self._images = images
        self._types = tuple(types)
        self._pens = pens
        self._records = read_records(file)
        self._indices = [
            index
            for index, record in enumerate(self._records)
            if not _is_empty(record) and find_image_id(record) not in excluded
        ]
        num_empty = sum(_is_empty(record) for record in self._records)
        if num_empty:
            logger.info("%s: %d of %d records have no object and are left out", file, num_empty, len(self._records))

    def __len__(self) -> int:
        """Number of images with objects."""
        return len(self._indices)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        record = self._indices[index]
        return f"{self.file.name} record {record} (image {find_image_id(self._records[record])!r})"

    def texts(self) -> list[str]:
        """No words: a region is shown."""
        return []

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one image; `rng` draws the type of each region's prompt.

        Raises:
            ValueError: The image is missing, damaged or of another size, or a mask does not fit it.
        """
        record, where = self._records[self._indices[index]], self.where(index)
        name = image_name(record, where)
        image = read_scene_image(self._images, name, where, declared=image_info(record, where))
        height, width = image.shape[:2]
        masks, prompts = [], []
        dropped: Counter[str] = Counter()
        for place, annotation in enumerate(require_objects(record, "anns", where)):
            own = f"{where}, annotation {place}"
            if is_crowd(annotation, own):
                dropped["crowd"] += 1
                continue
            mask = segmentation_to_mask(annotation, height=height, width=width, where=own)
            prompt = read_prompt(
                annotation, self._types, height=height, width=width, where=own, rng=rng, pens=self._pens
            )
            if not mask.any():
                dropped["empty target"] += 1
                continue
            masks.append(mask)
            prompts.append(prompt)
        number = find_image_id(record)
        return Scene(
            record_id=where,
            mode="region",
            image=image,
            masks=stack(masks, height, width),
            conditions=("",) * len(prompts),
            target_conditions=np.eye(len(prompts), dtype=bool),
            is_thing=(True,) * len(prompts),
            prompts=stack(prompts, height, width),
            prompts_bound=bound_regions(self._types),
            dropped=as_dropped(dropped),
            image_id=name if number is None else number,
        )


def _is_empty(record: Record) -> bool:
    """Whether a record is sound and has no object but crowds; what is wrong with others is said when they are read."""
    annotations = record.get("anns")
    if not isinstance(annotations, list):
        return False
    return all(isinstance(entry, dict) and entry.get("iscrowd") == 1 for entry in annotations)
