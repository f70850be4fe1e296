"""Samples -> the model's input. Conditions, regions and targets of all samples are packed, each with its sample.

One batch may mix all modes: every sample carries its own conditions, and a target says which of them it belongs to.
Images of the samples come first, then the reference images of those that have one, so that the backbone runs once.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from psalm.config import ModelSettings
from psalm.configuration import PSALMConfig
from psalm.criterion import count_loss_items
from psalm.modes import CONDITION_KINDS, KIND_OF_MODE
from psalm.processing import NO_CONDITION, EncodedPrompt, PSALMProcessor
from psalm.samples import SegmentationSample
from psalm.targets import SegmentationTargets


class SegmentationCollator:
    """Makes the keywords of `PSALMModel.forward` from samples of any modes.

    Args:
        processor: Writes the sequences.
        config: Settings of the run or configuration of the model, which both say how losses are counted.
        with_targets: Add target masks and the number of items of each loss term; without them the model computes no
            losses.
    """

    def __init__(
        self, processor: PSALMProcessor, config: ModelSettings | PSALMConfig, *, with_targets: bool = True
    ) -> None:
        self.processor = processor
        self.criterion = config.criterion
        self.with_targets = with_targets

    def __call__(self, samples: Sequence[SegmentationSample]) -> dict[str, object]:
        """Collate samples; no targets, no regions and no reference images are legal.

        Raises:
            ValueError: A sample does not have what its mode needs, or another size than the model's input.
        """
        for sample in samples:
            _check(sample, self.processor.image_size)
        prompts = [self.processor.encode(sample.mode, sample.conditions, where=sample.record_id) for sample in samples]
        num_conditions = [len(sample.conditions) for sample in samples]
        condition_owner = _owners(num_conditions)
        kinds = torch.tensor([CONDITION_KINDS.index(KIND_OF_MODE[sample.mode]) for sample in samples])
        batch: dict[str, object] = {
            "record_ids": [sample.record_id for sample in samples],
            **self._sequences(prompts, num_conditions),
            "condition_owner": condition_owner,
            "condition_kinds": kinds,
            **_images(samples),
            **_regions(samples),
        }
        if not self.with_targets:
            return batch
        targets = _targets(samples)
        counts = count_loss_items(
            kinds,
            targets.owner,
            condition_owner,
            num_queries=self.processor.num_queries,
            config=self.criterion,
        )
        return batch | {
            "target_masks": targets.masks,
            "target_owner": targets.owner,
            "target_conditions": targets.conditions,
            "point_seeds": torch.tensor([sample.seed for sample in samples]),
            "loss_counts": counts,
        }

    def _sequences(self, prompts: Sequence[EncodedPrompt], num_conditions: Sequence[int]) -> dict[str, Tensor]:
        """Sequences padded on the right, with conditions numbered over the whole batch."""
        first = [sum(num_conditions[:position]) for position in range(len(num_conditions))]
        index = [
            torch.where(prompt.condition_index >= 0, prompt.condition_index + start, NO_CONDITION)
            for prompt, start in zip(prompts, first, strict=True)
        ]
        ids = [prompt.input_ids for prompt in prompts]
        pad = self.processor.tokenizer.pad_token_id
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "condition_index": pad_sequence(index, batch_first=True, padding_value=NO_CONDITION),
        }


def _images(samples: Sequence[SegmentationSample]) -> dict[str, Tensor]:
    references = [
        (owner, sample.reference_image, sample.reference_size)
        for owner, sample in enumerate(samples)
        if sample.reference_image is not None
    ]
    sizes = [*(sample.content_size for sample in samples), *(size for _, _, size in references)]
    return {
        "images": torch.stack([*(sample.image for sample in samples), *(image for _, image, _ in references)]),
        "content_sizes": torch.tensor(sizes),
        "reference_owner": torch.tensor([owner for owner, _, _ in references], dtype=torch.long),
    }


def _regions(samples: Sequence[SegmentationSample]) -> dict[str, Tensor]:
    """Prompts of all samples, each with the row of its image among `images`."""
    side = samples[0].image.shape[-1]
    counts = [0 if sample.prompts is None else len(sample.prompts) for sample in samples]
    next_reference, rows = len(samples), []
    for owner, sample in enumerate(samples):
        rows.append(owner if sample.reference_image is None else next_reference)
        next_reference += sample.reference_image is not None
    owners = _owners(counts)
    masks = [sample.prompts for sample in samples if sample.prompts is not None]
    return {
        "prompt_masks": torch.cat(masks) if masks else torch.zeros(0, side, side, dtype=torch.bool),
        "prompt_images": torch.tensor(rows)[owners],
        "prompt_owner": owners,
    }


def _targets(samples: Sequence[SegmentationSample]) -> SegmentationTargets:
    """Targets of all samples; the columns of shorter lists of conditions, and of "background", are False."""
    width = max(len(sample.conditions) for sample in samples)
    return SegmentationTargets(
        masks=torch.cat([sample.masks for sample in samples]),
        owner=_owners([len(sample.masks) for sample in samples]),
        conditions=torch.cat([_widen(sample.target_conditions, width) for sample in samples]),
    )


def _widen(belongs: Bool[Tensor, "targets candidates"], width: int) -> Bool[Tensor, "targets {width}"]:
    wide = torch.zeros(len(belongs), width, dtype=torch.bool)
    wide[:, : belongs.shape[1]] = belongs
    return wide


def _owners(counts: Sequence[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))


def _check(sample: SegmentationSample, side: int) -> None:
    """Refuse what would shift rows of one sample to another."""
    kind, conditions = KIND_OF_MODE[sample.mode], len(sample.conditions)
    where = f"{sample.record_id} (mode {sample.mode})"
    if tuple(sample.image.shape) != (3, side, side):
        raise ValueError(f"{where}: the image has shape {tuple(sample.image.shape)}, expected {(3, side, side)}")
    prompts = 0 if sample.prompts is None else len(sample.prompts)
    expected = conditions if kind == "region" else 0
    if prompts != expected:
        raise ValueError(f"{where}: got {prompts} prompts, expected {expected}: one per region, none without regions")
    crosses = sample.mode == "cross_image"
    if (sample.reference_image is not None) != crosses or (sample.reference_size is not None) != crosses:
        raise ValueError(f"{where}: a reference image with its size belongs to mode cross_image, and only to it")
    candidates = conditions - (kind == "class_name")
    if tuple(sample.target_conditions.shape) != (len(sample.masks), candidates):
        raise ValueError(
            f"{where}: target_conditions has shape {tuple(sample.target_conditions.shape)}, expected "
            f"{(len(sample.masks), candidates)} for {len(sample.masks)} targets and {candidates} conditions"
        )
