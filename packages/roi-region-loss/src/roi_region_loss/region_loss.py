"""The guide's call: region loss straight from token sequences and lists of boxes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from region_core import check_boxes
from torch import Tensor

from roi_region_loss.config import RegionLossConfig
from roi_region_loss.contrastive import RegionContrastiveLoss
from roi_region_loss.features import extract_region_features


def compute_region_loss(
    ref_image_embeds: Float[Tensor, "batch tokens dim"],
    target_image_embeds: Float[Tensor, "batch tokens dim"],
    ref_boxes: Sequence[Float[Tensor, "_ 4"]],
    target_boxes: Sequence[Float[Tensor, "_ 4"]],
    *,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    loss: RegionContrastiveLoss | None = None,
    reference_ids: Int64[Tensor, " batch"] | None = None,
    target_ids: Int64[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean contrastive loss between the k-th region of each reference and the k-th of its target.

    Where the counts differ, the boxes without partner are left out; pairs with a side below the loss's
    `min_side_cells` too, and what exceeds its `max_pairs_per_triplet`. Token features of a frozen tower carry no
    gradient: put a trainable module between the tower and this call, or the loss trains nothing but its scale.

    Args:
        ref_image_embeds: Tokens of the reference images.
        target_image_embeds: Tokens of the target images.
        ref_boxes: Per image boxes in [0, 1] of the model's input frame.
        target_boxes: The same for the targets.
        grid: Patches as (height, width).
        num_prefix_tokens: Tokens before the first patch.
        loss: The loss with its learned scale; a new one, at its initial temperature, by default.
        reference_ids: Per triplet, a number that identifies the image; without, all images are taken to differ.
        target_ids: The same for the targets.

    Returns:
        The mean over this rank's pairs; 0, with a graph, without pairs.

    Raises:
        ValueError: See `extract_region_features`; or the lists differ in length.
    """
    if len(ref_boxes) != len(target_boxes):
        raise ValueError(f"got boxes of {len(ref_boxes)} reference and {len(target_boxes)} target images")
    loss = RegionContrastiveLoss().to(ref_image_embeds.device) if loss is None else loss
    references, targets = _pair_in_order(ref_boxes, target_boxes, grid, loss.config)
    counts = [len(of_image) for of_image in references]
    ref_features = extract_region_features(ref_image_embeds, references, grid=grid, num_prefix_tokens=num_prefix_tokens)
    target_features = extract_region_features(
        target_image_embeds, targets, grid=grid, num_prefix_tokens=num_prefix_tokens
    )
    device, batch_size = ref_image_embeds.device, len(counts)
    own_ids = torch.arange(2 * batch_size, device=device)
    owner = torch.arange(batch_size).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    output = loss(
        torch.cat(ref_features),
        torch.cat(target_features),
        reference_boxes=torch.cat(references).to(device),
        target_boxes=torch.cat(targets).to(device),
        pair_owner=owner.to(device),
        reference_ids=own_ids[:batch_size] if reference_ids is None else reference_ids,
        target_ids=own_ids[batch_size:] if target_ids is None else target_ids,
    )
    return output.mean


def _pair_in_order(
    ref_boxes: Sequence[Tensor], target_boxes: Sequence[Tensor], grid: tuple[int, int], config: RegionLossConfig
) -> tuple[list[Tensor], list[Tensor]]:
    """The boxes that have a partner and are large enough on both sides."""
    references, targets = [], []
    # Before anything is left out: an inverted box must be reported, not count as a small one.
    check_boxes(torch.cat([*ref_boxes, *target_boxes]), "compute_region_loss, references before targets")
    for of_reference, of_target in zip(ref_boxes, target_boxes, strict=True):
        num_pairs = min(len(of_reference), len(of_target))
        reference, target = of_reference[:num_pairs], of_target[:num_pairs]
        small = _is_small(reference, grid, config.min_side_cells) | _is_small(target, grid, config.min_side_cells)
        references.append(reference[~small][: config.max_pairs_per_triplet])
        targets.append(target[~small][: config.max_pairs_per_triplet])
    return references, targets


def _is_small(boxes: Tensor, grid: tuple[int, int], min_side_cells: float) -> Tensor:
    sides = (boxes[:, 2:] - boxes[:, :2]) * boxes.new_tensor([grid[1], grid[0]])
    return (sides < min_side_cells).any(dim=1)
