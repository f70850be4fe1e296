"""From overlapping masks with class scores to one map in which every pixel has at most one segment.

As Mask2Former does it: the sure queries compete for each pixel by score times mask, a query that keeps too little of
its own mask is left out, and stuff of one class becomes one segment. Ids count up from 1 and are never used twice,
also where stuff and things alternate.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

MASK_THRESHOLD = 0.5


@dataclass(frozen=True)
class PanopticSegment:
    """One segment of a panoptic map.

    Attributes:
        id: Its number in the map, from 1.
        class_index: Its class, by position among the candidates.
        is_thing: Whether the class is countable.
        score: The class's probability; of merged stuff the largest.
        area: Its pixels.
    """

    id: int
    class_index: int
    is_thing: bool
    score: float
    area: int


@dataclass(frozen=True, eq=False)
class PanopticPrediction:
    """A panoptic map.

    Attributes:
        segment_map: Number of the segment at each pixel, 0 where there is none.
        segments: The segments, in the order of their numbers.
    """

    segment_map: Int32[np.ndarray, "height width"]
    segments: tuple[PanopticSegment, ...]


def merge_panoptic(
    mask_logits: Float[Tensor, "queries height width"],
    class_logits: Float[Tensor, "queries classes"],
    is_thing: tuple[bool, ...],
    *,
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> PanopticPrediction:
    """Merge the masks of an image.

    Args:
        mask_logits: Masks at the image's original size.
        class_logits: Logits over the candidate classes and, last, "background".
        is_thing: Which candidates are countable.
        score_threshold: Queries below this probability are left out.
        overlap_threshold: So are those that keep less than this share of their mask.
    """
    height, width = mask_logits.shape[1:]
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = (classes < len(is_thing)) & (scores > score_threshold)
    scores, classes = scores[kept], classes[kept]
    if not len(scores):
        return PanopticPrediction(np.zeros((height, width), dtype=np.int32), ())
    masks = mask_logits[kept].sigmoid()
    winners = (scores[:, None, None] * masks).argmax(0)
    is_inside = masks.gather(0, winners[None])[0] >= MASK_THRESHOLD
    won = _count(winners, len(scores))
    own = _count(winners[is_inside], len(scores))
    whole = (masks >= MASK_THRESHOLD).flatten(1).sum(1).tolist()
    ids, segments = _number_segments(scores.tolist(), classes.tolist(), won, own, whole, is_thing, overlap_threshold)
    segment_map = torch.where(is_inside, torch.tensor(ids, device=winners.device)[winners], 0)
    return PanopticPrediction(segment_map.to("cpu", torch.int32).numpy(), tuple(segments))


def _count(winners: Int64[Tensor, "..."], num_queries: int) -> list[int]:
    return torch.bincount(winners.flatten(), minlength=num_queries).tolist()


def _number_segments(
    scores: list[float],
    classes: list[int],
    won: list[int],
    own: list[int],
    whole: list[int],
    is_thing: tuple[bool, ...],
    overlap_threshold: float,
) -> tuple[list[int], list[PanopticSegment]]:
    """Number of each query's segment, 0 where it is left out, and the segments."""
    ids: list[int] = []
    segments: list[PanopticSegment] = []
    stuff: dict[int, int] = {}
    for query, class_index in enumerate(classes):
        if own[query] == 0 or won[query] < overlap_threshold * whole[query]:
            ids.append(0)
            continue
        number = stuff.get(class_index)
        if number is None:
            number = len(segments) + 1
            segments.append(PanopticSegment(number, class_index, is_thing[class_index], scores[query], own[query]))
            if not is_thing[class_index]:
                stuff[class_index] = number
        else:
            old = segments[number - 1]
            score, area = max(old.score, scores[query]), old.area + own[query]
            segments[number - 1] = PanopticSegment(number, class_index, False, score, area)
        ids.append(number)
    return ids, segments
