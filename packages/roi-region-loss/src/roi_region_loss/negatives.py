"""Which regions are no negatives: the same thing must never be pushed away from itself.

Images come back in many triplets of composed retrieval data, and boxes of one image overlap. A column of the similarity
matrix is left out of a row's softmax where it (nearly) shows what the row shows:

- a region of the *same triplet* whose box overlaps the row's own box in the image of the columns;
- a region of one of the row's two images that came in with *another triplet*: nothing says whether it is the same.

With `cross_image`, all regions of the row's two images are left out. A row's positive never is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from roi_region_loss.config import RegionLossConfig


@dataclass(frozen=True, eq=False)
class RegionKeys:
    """What is known of the regions on one side of some pairs.

    Attributes:
        boxes: Boxes of the regions.
        image_ids: Image that each region lies in.
        partner_ids: Image that the region on the other side of the pair lies in.
        triplet_ids: Triplet that the pair came with; unique over all ranks.
    """

    boxes: Float[Tensor, "regions 4"]
    image_ids: Int64[Tensor, " regions"]
    partner_ids: Int64[Tensor, " regions"]
    triplet_ids: Int64[Tensor, " regions"]


def excluded_columns(
    columns: RegionKeys, own: Int64[Tensor, " rows"], config: RegionLossConfig
) -> Bool[Tensor, "rows columns"]:
    """Columns that take no part in each row's softmax.

    Args:
        columns: The regions that the rows are contrasted with, all on one side of their pairs.
        own: For every row, the column that is its positive.
        config: Choice of negatives and the limits of overlap; only strictly larger overlaps are excluded.

    Returns:
        True where excluded; False for the row's own positive.
    """
    is_positive = own[:, None] == torch.arange(len(columns.image_ids), device=own.device)
    same_triplet = columns.triplet_ids[own][:, None] == columns.triplet_ids
    own_images = (columns.image_ids[own][:, None] == columns.image_ids) | (
        columns.partner_ids[own][:, None] == columns.image_ids
    )
    if config.negatives == "cross_image":
        return (own_images | same_triplet) & ~is_positive
    iou, containment = box_overlap(columns.boxes[own], columns.boxes)
    overlapping = (iou > config.overlap_iou) | (containment > config.overlap_containment)
    return torch.where(same_triplet, overlapping, own_images) & ~is_positive


def box_overlap(
    rows: Float[Tensor, "rows 4"], columns: Float[Tensor, "columns 4"]
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
    """Intersection over union, and intersection over the smaller area, of every two boxes; 0 without area."""
    low = torch.maximum(rows[:, None, :2], columns[:, :2])
    high = torch.minimum(rows[:, None, 2:], columns[:, 2:])
    shared = (high - low).clamp_min(0).prod(dim=-1)
    row_area, column_area = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=-1) for boxes in (rows, columns))
    smaller = torch.minimum(row_area[:, None], column_area)
    union = row_area[:, None] + column_area - shared
    return _share(shared, union), _share(shared, smaller)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)
