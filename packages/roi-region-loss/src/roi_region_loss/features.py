"""Region features from a vision tower's token sequence by RoIAlign (Mask R-CNN, He et al. 2017, arXiv:1703.06870).

The tokens are laid out on their grid and pooled under each box. Boxes are (x0, y0, x1, y1) in [0, 1] of the *model's
input frame*, after resizing, padding and cropping. The grid and the number of prefix tokens are arguments: no square
root of a sequence length can tell 257 tokens with a class token from a grid that is not square.
"""

from collections.abc import Sequence
from typing import overload

import torch
from jaxtyping import Float, Int64
from region_core import TokenGrid, check_boxes, tokens_to_map
from torch import Tensor
from torchvision.ops import roi_align

ADAPTIVE = -1
"""As many sampling points per bin as it has cells, so that a large region is seen whole (FG-CLIP's setting)."""


@overload
def extract_region_features(
    image_embeds: Float[Tensor, "batch tokens dim"],
    boxes: Float[Tensor, "regions 4"],
    *,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    owner: Int64[Tensor, " regions"] | None = None,
    output_size: int = 1,
    sampling_ratio: int = ADAPTIVE,
) -> Float[Tensor, "regions ..."]: ...


@overload
def extract_region_features(
    image_embeds: Float[Tensor, "batch tokens dim"],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    *,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    owner: None = None,
    output_size: int = 1,
    sampling_ratio: int = ADAPTIVE,
) -> list[Float[Tensor, "_ ..."]]: ...


def extract_region_features(
    image_embeds: Float[Tensor, "batch tokens dim"],
    boxes: Float[Tensor, "regions 4"] | Sequence[Float[Tensor, "_ 4"]],
    *,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    owner: Int64[Tensor, " regions"] | None = None,
    output_size: int = 1,
    sampling_ratio: int = ADAPTIVE,
) -> Float[Tensor, "regions ..."] | list[Float[Tensor, "_ ..."]]:
    """Pool token features under boxes; all boxes of the batch in one RoIAlign call, in float32.

    Args:
        image_embeds: Token sequences of the images, prefix tokens first, then the patches row by row.
        boxes: Per image its boxes (none is shape (0, 4)), or the boxes of all images packed, with `owner`.
        grid: Patches as (height, width).
        num_prefix_tokens: Tokens before the first patch (class token, registers).
        owner: With packed boxes, the index of each box's image in the batch.
        output_size: Bins along each side of a region.
        sampling_ratio: Sampling points along each side of a bin. The default samples a bin as densely as the grid is,
            so that the box of the whole image gives the mean of the grid; a fixed 2 sees four points of it.

    Returns:
        Packed boxes give one row per box, a list of boxes a list. A row is (dim,) with `output_size` 1 and otherwise
        (bins, dim), bins row by row. The dtype is that of `image_embeds`, and the gradient reaches it.

    Raises:
        ValueError: The sequence is not prefix + height x width long, a box is not in [0, 1] (in pixels RoIAlign would
            answer with zeros), or boxes and owners or images do not match.
    """
    if output_size < 1 or not (sampling_ratio == ADAPTIVE or sampling_ratio >= 1):
        raise ValueError(
            f"output_size must be at least 1 and sampling_ratio at least 1 or {ADAPTIVE} (adaptive), "
            f"got {output_size} and {sampling_ratio}"
        )
    token_grid = TokenGrid(*grid, num_prefix_tokens)
    packed, packed_owner, counts = _pack(boxes, owner, image_embeds)
    check_boxes(packed, "extract_region_features")
    # RoIAlign has no bfloat16 kernel on the CPU, and half precision is too coarse for sums over many cells.
    compute_dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    feature_map = tokens_to_map(image_embeds, token_grid).to(compute_dtype)
    cells = packed.new_tensor([token_grid.width, token_grid.height, token_grid.width, token_grid.height])
    rois = torch.cat([packed_owner[:, None].to(compute_dtype), (packed * cells).to(compute_dtype)], dim=1)
    pooled = roi_align(feature_map, rois, output_size, sampling_ratio=sampling_ratio, aligned=True)
    features = pooled.flatten(2).transpose(1, 2) if output_size > 1 else pooled[:, :, 0, 0]
    features = features.to(image_embeds.dtype)
    return features if counts is None else list(features.split(counts))


def _pack(
    boxes: Tensor | Sequence[Tensor], owner: Tensor | None, image_embeds: Tensor
) -> tuple[Float[Tensor, "regions 4"], Int64[Tensor, " regions"], list[int] | None]:
    """Packed boxes on the device of the tokens, the image of each, and the counts per image if a list came in."""
    batch_size, device = image_embeds.shape[0], image_embeds.device
    if isinstance(boxes, Tensor):
        if boxes.ndim != 2 or boxes.shape[1] != 4 or owner is None or owner.shape != boxes.shape[:1]:
            raise ValueError(
                "packed boxes have shape (regions, 4) and need one owner each, "
                f"got boxes {tuple(boxes.shape)} and owner {None if owner is None else tuple(owner.shape)}"
            )
        # RoIAlign reads whatever memory an index outside the batch points to.
        if owner.numel() and not bool(((owner >= 0) & (owner < batch_size)).all()):
            raise ValueError(f"owner must index the {batch_size} images of the batch, got {owner.tolist()}")
        return boxes.to(device), owner.to(device), None
    if owner is not None or len(boxes) != batch_size:
        raise ValueError(
            f"a list of boxes has one tensor per image and no owner, got {len(boxes)} tensors for {batch_size} images"
        )
    for index, of_image in enumerate(boxes):
        if of_image.ndim != 2 or of_image.shape[1] != 4:
            raise ValueError(
                f"boxes of image {index} have shape {tuple(of_image.shape)}, expected (regions, 4); "
                "no boxes is torch.zeros(0, 4)"
            )
    counts = [of_image.shape[0] for of_image in boxes]
    packed = torch.cat([of_image.to(device) for of_image in boxes]) if boxes else image_embeds.new_zeros((0, 4))
    image = torch.arange(batch_size).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    return packed, image.to(device), counts
