"""An answer to one scene, at the size of its image: what the model says, or what can be said without looking.

Scores, result files and pictures are made of answers alone, so the model and every baseline are treated alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from psalm.collate import SegmentationCollator
from psalm.config import EvaluationSettings
from psalm.model import PSALMModel
from psalm.modes import KIND_OF_MODE, Mode
from psalm.panoptic_merge import PanopticPrediction, merge_panoptic
from psalm.predictions import (
    ConditionMasks,
    Instance,
    Prediction,
    condition_masks,
    instances,
    prompt_agreement,
    semantic_map,
    split_batch,
)
from psalm.processing import PSALMProcessor
from psalm.samples import SegmentationSample


@dataclass(frozen=True, eq=False)
class Answer:
    """What is said of one scene; what its mode does not ask for is None.

    Attributes:
        names: The candidate classes (without "background") that class indices count in; else the conditions.
        panoptic: Mode panoptic.
        semantic: Modes panoptic and semantic: 1 + the class's index at each pixel, 0 for none.
        instances: Modes panoptic and instance.
        masks: Modes referring, region and cross_image.
    """

    names: tuple[str, ...]
    panoptic: PanopticPrediction | None = None
    semantic: Int32[np.ndarray, "height width"] | None = None
    instances: tuple[Instance, ...] | None = None
    masks: ConditionMasks | None = None


def make_answer(
    prediction: Prediction,
    mode: Mode,
    conditions: tuple[str, ...],
    is_thing: tuple[bool, ...],
    settings: EvaluationSettings,
    *,
    has_prompt: Bool[np.ndarray, " regions"] | None = None,
    agreement: Float[Tensor, "queries regions"] | None = None,
) -> Answer:
    """Read a prediction as its mode asks.

    Args:
        prediction: What the model says.
        mode: What was asked.
        conditions: What was asked for; class names end with "background".
        is_thing: Which classes are countable.
        settings: Thresholds.
        has_prompt: Regions with an empty prompt get an empty mask: nobody can know what was meant.
        agreement: How well each mask lies where the regions were shown; see `prompt_agreement`.
    """
    names = conditions[:-1] if KIND_OF_MODE[mode] == "class_name" else conditions
    if mode == "panoptic":
        panoptic = merge_panoptic(
            prediction.mask_logits,
            prediction.condition_logits,
            is_thing,
            score_threshold=settings.score_threshold,
            overlap_threshold=settings.overlap_threshold,
        )
        found = tuple(instances(prediction, is_thing=is_thing))
        return Answer(names, panoptic=panoptic, semantic=semantic_map(prediction), instances=found)
    if mode == "semantic":
        return Answer(names, semantic=semantic_map(prediction))
    if mode == "instance":
        return Answer(names, instances=tuple(instances(prediction, is_thing=is_thing)))
    threshold = settings.target_threshold if mode == "referring" else settings.match_threshold
    masks = condition_masks(prediction, threshold=threshold, agreement=agreement)
    if has_prompt is not None:
        masks.best[~has_prompt] = False
        masks.united[~has_prompt] = False
    return Answer(names, masks=masks)


def answer_samples(
    model: PSALMModel,
    processor: PSALMProcessor,
    samples: Sequence[SegmentationSample],
    settings: EvaluationSettings,
) -> Iterator[Answer]:
    """The model's answers to a batch of any modes, one at a time: masks at full size are large.

    Args:
        model: The model, in evaluation mode, on its device.
        processor: The model's processor.
        samples: What is asked; their targets are not looked at.
        settings: Thresholds.
    """
    batch = SegmentationCollator(processor, model.config, with_targets=False)(samples)
    inputs = {key: value.to(model.device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    # Around the call alone: what a generator switches off while it waits is off for its reader too.
    with torch.no_grad():
        output = model(**inputs)
    predictions = split_batch(
        output.mask_logits,
        output.condition_logits,
        output.condition_mask,
        side=processor.image_size,
        content_sizes=[sample.content_size for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
    )
    for sample, mask_logits, prediction in zip(samples, output.mask_logits, predictions, strict=True):
        has_prompt = None if sample.prompts is None else sample.prompts.flatten(1).any(1).numpy()
        agreement = None
        # With pairs the prompts lie on the other image.
        if settings.prompt_agreement and sample.mode == "region" and sample.prompts is not None:
            shown = sample.prompts.to(mask_logits.device)
            agreement = prompt_agreement(mask_logits, shown, bound=sample.prompts_bound)
        yield make_answer(
            prediction,
            sample.mode,
            sample.conditions,
            sample.is_thing,
            settings,
            has_prompt=has_prompt,
            agreement=agreement,
        )
