"""From the model's logits to masks at the size of the image on disk, in the form that each kind of question needs.

Masks are enlarged to the model's input, freed of its padding, resized to the original image and only then compared with
a threshold. A query's quality is the mean probability inside its own mask; it multiplies every score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from region_core.rle import Rle, encode_rle
from torch import Tensor
from torch.nn import functional as F

MAX_INSTANCES = 100
"""COCO looks at so many instances of an image."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model says of one sample.

    Attributes:
        mask_logits: Every query's mask at the original size of the image.
        condition_logits: How well each query fits each condition; of class names the last one is "background".
    """

    mask_logits: Float[Tensor, "queries height width"]
    condition_logits: Float[Tensor, "queries conditions"]


@dataclass(frozen=True, eq=False)
class Instance:
    """One found object.

    Attributes:
        class_index: Its class, by position among the candidates.
        score: Probability of the class times quality of the mask.
        rle: Its mask.
    """

    class_index: int
    score: float
    rle: Rle


@dataclass(frozen=True, eq=False)
class ConditionMasks:
    """Masks for a sentence, or for each region.

    Attributes:
        best: Mask of the query that fits best; never said to be absent.
        united: All masks above the threshold together; empty where none is, which says that there is no target.
        scores: Score of the best query.
    """

    best: Bool[np.ndarray, "conditions height width"]
    united: Bool[np.ndarray, "conditions height width"]
    scores: Float[np.ndarray, " conditions"]


def split_batch(
    mask_logits: Float[Tensor, "batch queries rows columns"],
    condition_logits: Float[Tensor, "batch queries conditions"],
    condition_mask: Bool[Tensor, "batch conditions"],
    *,
    side: int,
    content_sizes: Sequence[tuple[int, int]],
    original_sizes: Sequence[tuple[int, int]],
) -> Iterator[Prediction]:
    """The samples of a batch, one at a time: a hundred masks at full size are large.

    Args:
        mask_logits: Masks on the mask decoder's grid.
        condition_logits: Padded to the largest number of conditions.
        condition_mask: Each sample's own conditions.
        side: Side of the model's square input in pixels.
        content_sizes: Height and width of the image inside the square.
        original_sizes: Height and width of the image on disk.
    """
    for row, (content, original) in enumerate(zip(content_sizes, original_sizes, strict=True)):
        masks = resize_masks(mask_logits[row].float(), side=side, content_size=content, original_size=original)
        yield Prediction(masks, condition_logits[row][:, condition_mask[row]].float())


def resize_masks(
    mask_logits: Float[Tensor, "queries rows columns"],
    *,
    side: int,
    content_size: tuple[int, int],
    original_size: tuple[int, int],
) -> Float[Tensor, "queries {original_size[0]} {original_size[1]}"]:
    """Logits at the original size of the image.

    Args:
        mask_logits: Masks on the mask decoder's grid, which covers the whole square input.
        side: Side of that square in pixels.
        content_size: Height and width of the image inside the square, at its top left.
        original_size: Height and width of the image on disk.
    """
    whole = F.interpolate(mask_logits[None], size=(side, side), mode="bilinear", align_corners=False)
    content = whole[:, :, : content_size[0], : content_size[1]]
    return F.interpolate(content, size=original_size, mode="bilinear", align_corners=False)[0]


def mask_quality(mask_logits: Float[Tensor, "queries height width"]) -> Float[Tensor, " queries"]:
    """Mean probability inside each mask, in [0.5, 1]; 0 for an empty mask."""
    inside = (mask_logits > 0).flatten(1)
    total = (mask_logits.sigmoid().flatten(1) * inside).sum(1)
    return total / inside.sum(1).clamp(min=1)


def semantic_map(prediction: Prediction) -> Int32[np.ndarray, "height width"]:
    """The likeliest class at each pixel: 1 + its position among the candidates, "background" not being one."""
    classes = prediction.condition_logits.softmax(-1)[:, :-1]
    scores = torch.einsum("qc,qhw->chw", classes, prediction.mask_logits.sigmoid())
    return (scores.argmax(0) + 1).to("cpu", torch.int32).numpy()


def instances(prediction: Prediction, *, is_thing: tuple[bool, ...], limit: int = MAX_INSTANCES) -> list[Instance]:
    """The best pairs of a query and a countable class, best first; empty masks are left out.

    Args:
        prediction: What the model says.
        is_thing: Which candidates are countable.
        limit: Instances at most.
    """
    things = torch.tensor(is_thing, device=prediction.condition_logits.device).nonzero()[:, 0]
    if not len(things):
        return []
    classes = prediction.condition_logits.softmax(-1)[:, things]
    scores = classes * mask_quality(prediction.mask_logits)[:, None]
    # A stable order: equal scores go by query, then by class.
    order = scores.flatten().argsort(descending=True, stable=True)[:limit]
    values, queries = scores.flatten()[order].tolist(), (order // len(things)).tolist()
    labels = things[order % len(things)].tolist()
    rles: dict[int, Rle] = {}
    found: list[Instance] = []
    for score, query, label in zip(values, queries, labels, strict=True):
        if score <= 0:
            continue
        if query not in rles:
            rles[query] = encode_rle((prediction.mask_logits[query] > 0).cpu().numpy())
        found.append(Instance(label, score, rles[query]))
    return found


def prompt_agreement(
    mask_logits: Float[Tensor, "queries rows columns"],
    prompts: Bool[Tensor, "regions height width"],
    *,
    bound: bool,
) -> Float[Tensor, "queries regions"]:
    """How well masks lie where regions were shown, in [0, 1]; 0 for an empty prompt.

    Args:
        mask_logits: Every query's mask, on a grid that covers the prompts' frame.
        prompts: Where the regions were shown.
        bound: The prompts say how far a region reaches: the IoU of mask and prompt. Otherwise they lie somewhere in it:
            the mean probability under the prompt, which does not depend on the region's size.
    """
    size = (prompts.shape[1], prompts.shape[2])
    logits = F.interpolate(mask_logits[None].float(), size=size, mode="bilinear", align_corners=False)[0].flatten(1)
    shown = prompts.flatten(1).to(logits)
    if not bound:
        return logits.sigmoid() @ shown.mT / shown.sum(1).clamp(min=1)
    masks = (logits > 0).to(logits)
    common = masks @ shown.mT
    return common / (masks.sum(1)[:, None] + shown.sum(1) - common).clamp(min=1)


def condition_masks(
    prediction: Prediction, *, threshold: float, agreement: Float[Tensor, "queries conditions"] | None = None
) -> ConditionMasks:
    """Masks for the sentence, or for each region.

    Args:
        prediction: What the model says.
        threshold: Masks with a score above it are united.
        agreement: With regions on the image itself, how well each mask lies where they were shown: the best query is
            that with the largest product of score and agreement.
    """
    masks = prediction.mask_logits > 0
    scores = prediction.condition_logits.sigmoid() * mask_quality(prediction.mask_logits)[:, None]
    queries = (scores if agreement is None else scores * agreement).argmax(0)
    united = [masks[is_sure].any(0) for is_sure in (scores > threshold).unbind(1)]
    return ConditionMasks(
        best=masks[queries].cpu().numpy(),
        united=torch.stack(united).cpu().numpy() if united else masks[:0].cpu().numpy(),
        scores=scores.gather(0, queries[None])[0].cpu().numpy(),
    )
