"""One evaluated record: what was found, small enough to be gathered over ranks and kept as a line of JSON."""

from dataclasses import dataclass
from typing import Literal

from region_core.rle import Rle, encode_rle

from psalm.answers import Answer
from psalm.modes import Mode
from psalm.samples import Scene

Role = Literal["segment", "class", "instance", "best", "united"]


@dataclass(frozen=True)
class FoundMask:
    """One mask of an answer.

    Attributes:
        role: A panoptic segment, all pixels of a class, an instance, the best mask of a sentence or region, or all of
            its masks above the threshold.
        label: Class name, sentence, or "region 0".
        score: Larger is surer; None where there is none.
        rle: The mask at the size of the image.
    """

    role: Role
    label: str
    score: float | None
    rle: Rle


@dataclass(frozen=True)
class EvaluatedRecord:
    """One record of the evaluated split.

    Attributes:
        position: Position among the evaluated records.
        group: Name of its data set's scores.
        index: Its number in the data set.
        mode: What was asked.
        record_id: File and place of the record.
        image_id: Number or name of its image.
        size: Height and width of the image.
        measure: Its own main measure in percent, which its own conditions decide; None where it has none (no object in
            the image).
        masks: What was found.
    """

    position: int
    group: str
    index: int
    mode: Mode
    record_id: str
    image_id: int | str
    size: tuple[int, int]
    measure: float | None
    masks: tuple[FoundMask, ...]


def make_record(
    position: int, group: str, index: int, scene: Scene, answer: Answer, measure: float | None
) -> EvaluatedRecord:
    """The record of an answer."""
    height, width = scene.image.shape[:2]
    return EvaluatedRecord(
        position=position,
        group=group,
        index=index,
        mode=scene.mode,
        record_id=scene.record_id,
        image_id=scene.image_id,
        size=(height, width),
        measure=measure,
        masks=tuple(found_masks(scene.mode, answer)),
    )


def found_masks(mode: Mode, answer: Answer) -> list[FoundMask]:
    """The masks of an answer; of mode panoptic the segments alone, in the order of their numbers."""
    names = answer.names
    if answer.panoptic is not None:
        numbers = answer.panoptic.segment_map
        return [
            FoundMask("segment", names[segment.class_index], segment.score, encode_rle(numbers == segment.id))
            for segment in answer.panoptic.segments
        ]
    if answer.semantic is not None:
        present = sorted(set(answer.semantic.ravel().tolist()) - {0})
        return [FoundMask("class", names[label - 1], None, encode_rle(answer.semantic == label)) for label in present]
    if answer.instances is not None:
        return [FoundMask("instance", names[item.class_index], item.score, item.rle) for item in answer.instances]
    assert answer.masks is not None
    labels = names if mode == "referring" else [f"region {number}" for number in range(len(names))]
    scores = answer.masks.scores.tolist()
    best = zip(labels, scores, answer.masks.best, strict=True)
    found = [FoundMask("best", label, score, encode_rle(mask)) for label, score, mask in best]
    if mode in ("referring", "cross_image"):
        united = zip(labels, answer.masks.united, strict=True)
        found += [FoundMask("united", label, None, encode_rle(mask)) for label, mask in united]
    return found
