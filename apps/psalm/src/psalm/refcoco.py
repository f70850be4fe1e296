"""Referring segmentation: the list form in which PSALM's builder writes RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO.

Each record is one object (gRefCOCO: none or several) of an image with all its sentences:

    {"image": file, "image_info": {id, file_name, height, width}, "instruction": [{"sent": text, ...}, ...],
     "anns": [a COCO annotation, ...]}

With `per_sentence` every sentence is a sample, as in the protocols of other models; with `joined` a record is one
sample with all its sentences behind one another, which is how published PSALM was trained and scored. Scores of the two
are not comparable.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from region_training.records import read_records

from psalm.annotations import (
    ImageId,
    Record,
    find_image_id,
    image_info,
    image_name,
    read_scene_image,
    require_objects,
    segmentation_to_mask,
    stack,
)
from psalm.modes import Mode
from psalm.samples import Scene

RefMode = Literal["per_sentence", "joined"]


class ReferringSource:
    """Referring segmentation: one sentence, and the objects it means: none (gRefCOCO), one or several.

    Args:
        file: JSON of the split.
        images: Folder of the images.
        name: Name of the data set.
        ref_mode: One sentence per sample, or all sentences of a record joined.
        excluded: Numbers of images to leave out.

    Raises:
        ValueError: The file is no list of records.
        OSError: The file cannot be read.
    """

    mode: Mode = "referring"

    def __init__(
        self, file: Path, images: Path, *, name: str, ref_mode: RefMode, excluded: Collection[ImageId] = ()
    ) -> None:
        self.name = name
        self.label_space = None
        self.file = file
        self._images = images
        self._records = read_records(file)
        # None stands for all sentences of a record.
        self._samples: list[tuple[int, int | None]] = [
            (index, sentence)
            for index, record in enumerate(self._records)
            if find_image_id(record) not in excluded
            for sentence in (_sentence_numbers(record) if ref_mode == "per_sentence" else (None,))
        ]

    def __len__(self) -> int:
        """Number of sentences, or of records where these are joined."""
        return len(self._samples)

    def where(self, index: int) -> str:
        """What to call a record in an error."""
        record, sentence = self._samples[index]
        place = f"{self.file.name} record {record} (image {find_image_id(self._records[record])!r})"
        return place if sentence is None else f"{place}, sentence {sentence}"

    def texts(self) -> list[str]:
        """All sentences; what a bad record is missing is said when it is read."""
        texts = []
        for index in range(len(self)):
            try:
                texts.append(self.sentence(index))
            except ValueError:
                continue
        return texts

    def sentence(self, index: int) -> str:
        """The words of one sample.

        Raises:
            ValueError: There are none.
        """
        record, sentence = self._samples[index]
        where = self.where(index)
        sentences = require_objects(self._records[record], "instruction", where)
        if sentence is not None and sentence < len(sentences):
            return _words(sentences[sentence], where)
        if not sentences:
            raise ValueError(f"{where}, key 'instruction': got no sentence, expected one or more")
        words = [_words(entry, f"{where}, sentence {number}") for number, entry in enumerate(sentences)]
        return " ".join(text if text.endswith(".") else f"{text}." for text in words)

    def load(self, index: int, rng: np.random.Generator | None = None) -> Scene:
        """Read one sample; nothing is drawn.

        Raises:
            ValueError: The image is missing, damaged or of another size, a mask is empty or does not fit, or there are
                no words.
        """
        where, sentence = self.where(index), self.sentence(index)
        record = self._records[self._samples[index][0]]
        name = image_name(record, where)
        image = read_scene_image(self._images, name, where, declared=image_info(record, where))
        height, width = image.shape[:2]
        masks = []
        for place, annotation in enumerate(require_objects(record, "anns", where)):
            own = f"{where}, annotation {place}"
            mask = segmentation_to_mask(annotation, height=height, width=width, where=own)
            if not mask.any():
                # Left out, the sentence would mean nothing at all, which is an answer of its own.
                raise ValueError(f"{own}, key 'segmentation': the mask is empty")
            masks.append(mask)
        number = find_image_id(record)
        return Scene(
            record_id=where,
            mode="referring",
            image=image,
            masks=stack(masks, height, width),
            conditions=(sentence,),
            target_conditions=np.ones((len(masks), 1), dtype=bool),
            is_thing=(True,),
            image_id=name if number is None else number,
        )


def image_ids(file: Path) -> set[ImageId]:
    """Numbers of all images that a file of this format names.

    Raises:
        ValueError: A record does not tell its image's number.
    """
    numbers: set[ImageId] = set()
    for index, record in enumerate(read_records(file)):
        number = find_image_id(record)
        if number is None:
            raise ValueError(f"{file.name} record {index}: 'image_info' has no 'id', so its image cannot be left out")
        numbers.add(number)
    return numbers


def _sentence_numbers(record: Record) -> range:
    """Sentences of a record; one for a record that has none, so that reading it says what is wrong."""
    sentences = record.get("instruction")
    return range(max(len(sentences), 1) if isinstance(sentences, list) else 1)


def _words(entry: Record, where: str) -> str:
    for key in ("sent", "raw"):
        text = entry.get(key)
        if isinstance(text, str) and text.strip():
            return " ".join(text.split())
    raise ValueError(f"{where}: expected words under 'sent' or 'raw', got {dict(entry)!r:.80}")
