"""What looks at an image beside its own tokens, through the deformable projector's sampling.

In a pair of images, target to reference: every token of the target image looks for its like in the reference image,
whose positions say whether they lie under a prompt; what it finds is added to the token. Reference to target: every
region vector looks for its like in the target image; what it finds, with the vector itself, is one more token. With
condition tokens so does every class name, sentence and region of any sample. At initialisation they find nothing
(zeros).
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


class FoundVectors(NamedTuple):
    """What vectors found in the images of their samples.

    Attributes:
        rows: One per vector: itself plus what it found.
        similarity: How much each position of the image's coarsest map resembles the vector; None where the projector
            needs none to choose places.
    """

    rows: Float[Tensor, "vectors dim"]
    similarity: Float[Tensor, "vectors height width"] | None


def look_at_targets(
    projector: DeformableProjector,
    vectors: Float[Tensor, "vectors dim"],
    owner: Int[Tensor, " vectors"],
    maps: Maps,
    valid: Sequence[Bool[Tensor, "images _ _"]],
    batch_size: int,
) -> FoundVectors:
    """Let what a sample is asked for look at the sample's own image, which in a pair is the target image.

    Args:
        projector: Holds the weights.
        vectors: Regions of reference images, or conditions of any kind.
        owner: Sample of each vector, in order.
        maps: The backbone's maps of all images, fine to coarse.
        valid: Where the maps are image and not padding.
        batch_size: Samples.
    """
    counts = torch.bincount(owner, minlength=batch_size)
    # Modules that run on one rank have to run on all, be it on a row of padding: see `region_core.losses`.
    samples = counts.nonzero()[:, 0] if len(owner) else owner.new_zeros(1)
    numbers = counts[samples].tolist()
    queries, query_mask = RegionBatch(vectors, tuple(numbers)).to_padded(max_regions=max(1, *numbers))
    found = projector.attend(
        queries,
        [level[samples] for level in maps],
        query_mask=query_mask,
        valid_masks=[level[samples] for level in valid],
    )
    similarity = None if found.similarity is None else found.similarity[query_mask]
    return FoundVectors(vectors + found.tokens[query_mask].to(vectors.dtype), similarity)
