"""What travels from a file format to the model: a scene as it lies on disk, and a sample at the model's input size.

Both say the targets in the same way for all modes: one mask per target, and a table of which condition each target
belongs to. With class names a target has exactly one condition; with a sentence all targets have the one there is (none
at all is legal); with regions a target may belong to several and a region may have several targets.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from psalm.modes import Mode


@dataclass(frozen=True, eq=False)
class Scene:
    """One record of a data set at its original size.

    Attributes:
        record_id: File and place of the record, for errors and result files.
        mode: What is asked.
        image: The image to segment.
        masks: Target masks.
        conditions: Class names in the data set's order (without "background"), one sentence, or one "" per region.
        target_conditions: Which conditions a target belongs to.
        is_thing: With class names, which of them are countable things; else all True.
        void: Pixels of crowds and without a label, which evaluation does not look at; None where there are none.
            Training, as upstream, takes them for pixels without a target.
        prompts: With regions, one mask per region, on `reference_image` where there is one and else on `image`.
        prompts_bound: Whether all prompts say how far their region reaches, as boxes and masks do; points and scribbles
            lie somewhere in it.
        reference_image: With mode cross_image, the image that shows the regions.
        dropped: How many regions or targets could not be used, by reason.
        image_id: Number or name of the image in its data set, for result files.
    """

    record_id: str
    mode: Mode
    image: UInt8[np.ndarray, "height width 3"]
    masks: Bool[np.ndarray, "targets height width"]
    conditions: tuple[str, ...]
    target_conditions: Bool[np.ndarray, "targets conditions"]
    is_thing: tuple[bool, ...]
    void: Bool[np.ndarray, "height width"] | None = None
    prompts: Bool[np.ndarray, "conditions prompt_height prompt_width"] | None = None
    prompts_bound: bool = False
    reference_image: UInt8[np.ndarray, "prompt_height prompt_width 3"] | None = None
    dropped: tuple[tuple[str, int], ...] = ()
    image_id: int | str = 0


@dataclass(frozen=True, eq=False)
class SegmentationSample:
    """One sample in the frame of the model's input: a square with the image at its top left.

    Attributes:
        record_id: As in `Scene`.
        mode: As in `Scene`.
        image: Pixels; outside `content_size` the padding value.
        content_size: Height and width of the image inside the square.
        original_size: Height and width of the image on disk.
        masks: Target masks; nothing in the padding.
        conditions: As in `Scene`, with class names followed by "background", in this sample's order.
        target_conditions: As in `Scene`, without a column for "background".
        is_thing: As in `Scene`.
        prompts: Masks of the prompted regions, on `reference_image` where there is one and else on `image`.
        prompts_bound: As in `Scene`.
        reference_image: As in `Scene`.
        reference_size: Height and width of the reference image inside the square.
        dropped: As in `Scene`, with what vanished at the model's input size.
        seed: For what is drawn of this sample inside the model; changes with the epoch.
    """

    record_id: str
    mode: Mode
    image: UInt8[Tensor, "3 side side"]
    content_size: tuple[int, int]
    original_size: tuple[int, int]
    masks: Bool[Tensor, "targets side side"]
    conditions: tuple[str, ...]
    target_conditions: Bool[Tensor, "targets candidates"]
    is_thing: tuple[bool, ...]
    prompts: Bool[Tensor, "regions side side"] | None = None
    prompts_bound: bool = False
    reference_image: UInt8[Tensor, "3 side side"] | None = None
    reference_size: tuple[int, int] | None = None
    dropped: tuple[tuple[str, int], ...] = ()
    seed: int = 0


def no_masks(height: int, width: int) -> Bool[np.ndarray, "0 {height} {width}"]:
    """Masks of a record without targets."""
    return np.zeros((0, height, width), dtype=bool)


def stack_masks(masks: list[Bool[Tensor, "height width"]], side: int) -> Bool[Tensor, "targets {side} {side}"]:
    """Masks on one another; none at all is legal."""
    return torch.stack(masks) if masks else torch.zeros(0, side, side, dtype=torch.bool)
