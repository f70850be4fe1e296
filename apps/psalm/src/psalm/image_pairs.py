"""How the two images of a cross-image sample look at each other, through the deformable projector's sampling.

Target to reference: every token of the target image looks for its like in the reference image, whose positions say
whether they lie under a prompt; what it finds is added to the token. Reference to target: every region vector looks for
its like in the target image; what it finds, with the vector itself, is one more token. At initialisation nothing is
found (zeros), so a model starts as one without this module.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from deformable_projector import DeformableProjector
from jaxtyping import Bool, Float, Int
from region_core.losses import drop_dummy
from region_core.regions import RegionBatch
from torch import Tensor

Maps = Sequence[Float[Tensor, "images _ _ _"]]


class ImagePairs(NamedTuple):
    """Pairs of target and reference image in a batch; a pair of an image with itself stands in where there is none.

    Attributes:
        targets: Row of each pair's target image, which is also its sample.
        references: Row of each pair's reference image.
        num_dummy: 1 if the only pair is the stand-in, else 0.
    """

    targets: Int[Tensor, " pairs"]
    references: Int[Tensor, " pairs"]
    num_dummy: int


def pair_images(reference_owner: Int[Tensor, " references"], batch_size: int) -> ImagePairs:
    """The pairs of a batch whose reference images follow its target images.

    Args:
        reference_owner: Sample of each reference image.
        batch_size: Samples, and so target images.
    """
    references = torch.arange(len(reference_owner), device=reference_owner.device) + batch_size
    if len(references):
        return ImagePairs(reference_owner, references, 0)
    # Modules that run on one rank have to run on all: see `region_core.losses`.
    first = reference_owner.new_zeros(1)
    return ImagePairs(first, first, 1)


def look_at_references(
    projector: DeformableProjector,
    tokens: Float[Tensor, "batch tokens dim"],
    maps: Maps,
    valid: Sequence[Bool[Tensor, "images _ _"]],
    pairs: ImagePairs,
    prompt_masks: Bool[Tensor, "regions height width"],
    prompt_images: Int[Tensor, " regions"],
) -> Float[Tensor, "batch tokens dim"]:
    """Add to the tokens of target images what they find in their reference images.

    Args:
        projector: Holds the weights.
        tokens: Tokens of all target images.
        maps: The backbone's maps of all images, fine to coarse.
        valid: Where the maps are image and not padding.
        pairs: From `pair_images`.
        prompt_masks: Prompts of all samples.
        prompt_images: Row of the image that each prompt lies on.
    """
    prompted = prompt_masks.new_zeros((len(maps[0]), *prompt_masks.shape[1:]), dtype=torch.float32)
    prompted = prompted.index_add(0, prompt_images, prompt_masks.float()).clamp(max=1)
    found = projector.attend(
        tokens[pairs.targets],
        [level[pairs.references] for level in maps],
        valid_masks=[level[pairs.references] for level in valid],
        region_maps=prompted[pairs.references],
    ).tokens
    found = drop_dummy(found, pairs.num_dummy).to(tokens.dtype)
    return tokens.index_add(0, pairs.targets[: len(found)], found)


class FoundRegions(NamedTuple):
    """What the regions of reference images found in their target images.

    Attributes:
        rows: One per region of a pair, packed: its vector plus what it found.
        similarity: How much each position of the target's coarsest map resembles the region; None where the projector
            needs none to choose places.
    """

    rows: Float[Tensor, "paired_regions dim"]
    similarity: Float[Tensor, "paired_regions height width"] | None


def look_at_targets(
    projector: DeformableProjector,
    regions: Float[Tensor, "regions dim"],
    maps: Maps,
    valid: Sequence[Bool[Tensor, "images _ _"]],
    pairs: ImagePairs,
    prompt_images: Int[Tensor, " regions"],
    batch_size: int,
) -> FoundRegions:
    """Let the regions of reference images look at their target images.

    Args:
        projector: Holds the weights.
        regions: Vectors of all regions of the batch, samples in order.
        maps: The backbone's maps of all images, fine to coarse.
        valid: Where the maps are image and not padding.
        pairs: From `pair_images`.
        prompt_images: Row of the image that each region lies on; from `batch_size` on it is a reference image.
        batch_size: Samples.
    """
    on_reference = prompt_images >= batch_size
    own = regions[on_reference]
    counts = torch.bincount(prompt_images[on_reference] - batch_size, minlength=len(pairs.targets)).tolist()
    # A row of padding at least, so that the projector runs where there is no region.
    queries, query_mask = RegionBatch(own, tuple(counts)).to_padded(max_regions=max(1, *counts))
    found = projector.attend(
        queries,
        [level[pairs.targets] for level in maps],
        query_mask=query_mask,
        valid_masks=[level[pairs.targets] for level in valid],
    )
    similarity = None if found.similarity is None else found.similarity[query_mask]
    return FoundRegions(own + found.tokens[query_mask].to(own.dtype), similarity)
