"""Boxes and the conversions between their forms.

A box is (x0, y0, x1, y1), normalised to [0, 1]: origin top-left, x right, y down, edges of the region, not pixel
centres. Every other form says so in its name and is converted once, when it is read. No boxes, shape (0, 4), is legal
everywhere.
"""

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

TOLERANCE = 1e-4
"""How far outside [0, 1] a box may reach: a rounding error of annotation tools, not another coordinate system."""


def boxes_from_pixels(boxes_pixels: Real[Tensor, "... 4"], height: int, width: int) -> Float[Tensor, "... 4"]:
    """Normalise boxes given in pixels of an image, (x0, y0, x1, y1) as edges."""
    return _as_float(boxes_pixels) / _sizes(boxes_pixels, height, width)


def boxes_to_pixels(boxes: Float[Tensor, "... 4"], height: int, width: int) -> Float[Tensor, "... 4"]:
    """Boxes in pixels of an image, (x0, y0, x1, y1) as edges, not rounded."""
    return boxes * _sizes(boxes, height, width)


def boxes_from_xywh_pixels(boxes_xywh_pixels: Real[Tensor, "... 4"], height: int, width: int) -> Float[Tensor, "... 4"]:
    """Normalise COCO's boxes: left, top, width, height in pixels."""
    corner, size = _as_float(boxes_xywh_pixels).split(2, dim=-1)
    return boxes_from_pixels(torch.cat([corner, corner + size], dim=-1), height, width)


def boxes_from_cxcywh(boxes_cxcywh: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Boxes from centre x, centre y, width, height (normalised both)."""
    centre, size = boxes_cxcywh.split(2, dim=-1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def boxes_to_cxcywh(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Centre x, centre y, width, height of boxes (normalised both)."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Area of each box as a share of the image."""
    low, high = boxes.split(2, dim=-1)
    return (high - low).prod(dim=-1)


def box_centre(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 2"]:
    """Centre (x, y) of each box."""
    low, high = boxes.split(2, dim=-1)
    return (low + high) / 2


def clip_boxes(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """Cut off what lies outside the image; a box wholly outside keeps no area."""
    return boxes.clamp(0, 1)


def check_boxes(boxes: Float[Tensor, "regions 4"], where: str) -> None:
    """Check that boxes are finite, ordered and inside [0, 1] (up to `TOLERANCE`); a box without area passes.

    Args:
        boxes: What should be normalised boxes.
        where: Place of the boxes (file, record, key), for the error message.

    Raises:
        ValueError: Names the first bad row, its values and what it looks like.
    """
    finite = boxes.isfinite().all(dim=-1)
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all(dim=-1)
    inside = ((boxes >= -TOLERANCE) & (boxes <= 1 + TOLERANCE)).all(dim=-1)
    valid = finite & ordered & inside
    if bool(valid.all()):
        return
    row = int(valid.to(torch.uint8).argmin())
    raise ValueError(f"{where}: box {row} is {boxes[row].tolist()}, {_diagnosis(boxes[row])}")


def boxes_from_masks(
    masks: Real[Tensor, "regions height width"] | Bool[Tensor, "regions height width"],
) -> Float[Tensor, "regions 4"]:
    """Tight box around the pixels of each mask that are not zero; zeros for an empty mask.

    Raises:
        ValueError: The masks have no pixels.
    """
    if 0 in masks.shape[1:]:
        raise ValueError(f"got masks of shape {tuple(masks.shape)}, height and width may not be 0")
    occupied = masks != 0
    left, right = _extent(occupied.any(dim=1))
    top, bottom = _extent(occupied.any(dim=2))
    return torch.stack([left, top, right, bottom], dim=-1)


def _extent(occupied: Bool[Tensor, "regions size"]) -> tuple[Float[Tensor, " regions"], Float[Tensor, " regions"]]:
    """First edge and last edge of what is occupied, as shares of the size."""
    size = occupied.shape[1]
    places = torch.arange(size, device=occupied.device)
    first = torch.where(occupied, places, size).amin(dim=1)
    after = torch.where(occupied, places + 1, 0).amax(dim=1)
    return torch.minimum(first, after) / size, after / size


def _diagnosis(box: Float[Tensor, "4"]) -> str:
    """What was expected of a bad box, and what it was probably meant to be."""
    if not bool(box.isfinite().all()):
        return "expected finite numbers"
    if float(box.abs().max()) > 2:
        return "expected (x0, y0, x1, y1) in [0, 1]: looks like pixel boxes, convert them with boxes_from_pixels"
    if not bool((box[:2] <= box[2:]).all()):
        return (
            "expected x0 <= x1 and y0 <= y1: looks like centre or corner with width and height, "
            "convert with boxes_from_cxcywh or boxes_from_xywh_pixels"
        )
    return "expected (x0, y0, x1, y1) in [0, 1]: reaches outside the image, cut it with clip_boxes if that is meant"


def _as_float(boxes: Real[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    return boxes if boxes.is_floating_point() else boxes.to(torch.float32)


def _sizes(boxes: Real[Tensor, "... 4"], height: int, width: int) -> Float[Tensor, "4"]:
    if height < 1 or width < 1:
        raise ValueError(f"boxes in pixels need an image with height, width >= 1, got {height} x {width}")
    dtype = boxes.dtype if boxes.is_floating_point() else torch.float32
    return torch.tensor([width, height, width, height], dtype=dtype, device=boxes.device)
