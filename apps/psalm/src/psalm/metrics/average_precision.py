"""Average precision of instance masks: COCO's, computed by faster-coco-eval.

A detection that lies in the void is left out, as COCO leaves out what lies in a crowd: here the void, which holds
crowds and unlabelled pixels, is a crowd of every class. COCO ignores a crowd for its own class alone and knows no
unlabelled pixels, so where data have either, these figures are higher than COCO's and not comparable with them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from jaxtyping import Bool
from region_core.rle import Rle, decode_rle, encode_rle

logger = logging.getLogger(__name__)

STATISTICS = {"AP": 0, "AP50": 1, "AP75": 2}
"""Where COCO's summary holds them."""


class ScoredMask(NamedTuple):
    """An instance that somebody found.

    Attributes:
        class_name: Its class.
        score: Larger is surer.
        rle: Its mask at the image's size.
    """

    class_name: str
    score: float
    rle: Rle


class ImageInstances(NamedTuple):
    """The instances of one image.

    Attributes:
        size: Height and width.
        true: Class and mask of every true instance.
        found: What was found.
        void: Mask of the pixels that do not count.
    """

    size: tuple[int, int]
    true: tuple[tuple[str, Rle], ...]
    found: tuple[ScoredMask, ...]
    void: Rle | None


@dataclass
class AveragePrecision:
    """The images so far.

    Attributes:
        images: Instances by the image's position in the data set, which settles the order of equal scores.
    """

    images: dict[int, ImageInstances] = field(default_factory=dict)

    def update(
        self,
        position: int,
        found: Sequence[ScoredMask],
        true_masks: Bool[np.ndarray, "instances height width"],
        true_classes: Sequence[str],
        *,
        void: Bool[np.ndarray, "height width"] | None = None,
    ) -> None:
        """Add one image.

        Args:
            position: Its position in the data set.
            found: What was found.
            true_masks: The true instances.
            true_classes: Their classes.
            void: Pixels that do not count.
        """
        height, width = true_masks.shape[1:]
        true = tuple((name, encode_rle(mask)) for name, mask in zip(true_classes, true_masks, strict=True))
        hidden = encode_rle(void) if void is not None and void.any() else None
        self.images[position] = ImageInstances((height, width), true, tuple(found), hidden)

    def merge(self, other: "AveragePrecision") -> None:
        """Add the images of another one."""
        self.images |= other.images

    def compute(self) -> dict[str, float]:
        """`AP` over IoU 0.50 to 0.95, `AP50` and `AP75` in percent; empty where there is no true instance."""
        names = sorted({name for image in self.images.values() for name, _ in image.true})
        if not names:
            return {}
        # Classes without a true instance have no precision in COCO's mean; what was found of them is left out.
        categories = {name: number for number, name in enumerate(names, 1)}
        truth, found = self._annotations(categories)
        evaluation = COCOeval_faster(truth, truth.loadRes(found), iouType="segm", print_function=logger.debug)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return {name: 100 * float(evaluation.stats[place]) for name, place in STATISTICS.items()}

    def _annotations(self, categories: dict[str, int]) -> tuple[COCO, list[dict]]:
        """Truth and findings in COCO's form."""
        images, true, found = [], [], []
        for number, position in enumerate(sorted(self.images), 1):
            image = self.images[position]
            images.append({"id": number, "height": image.size[0], "width": image.size[1]})
            crowds = [] if image.void is None else [(name, image.void, 1) for name in categories]
            for name, rle, is_crowd in [*((name, rle, 0) for name, rle in image.true), *crowds]:
                # Numbered from 1: to COCO's matching 0 means "no match".
                entry = {"id": len(true) + 1, "image_id": number, "category_id": categories[name], "iscrowd": is_crowd}
                true.append(entry | {"segmentation": rle, "area": rle_area(rle)})
            found += [
                {"image_id": number, "category_id": categories[mask.class_name], "score": mask.score}
                | {"segmentation": mask.rle}
                for mask in image.found
                if mask.class_name in categories
            ]
        named = [{"id": number, "name": name} for name, number in categories.items()]
        return COCO({"images": images, "annotations": true, "categories": named}), found


def rle_area(rle: Rle) -> int:
    """Pixels of a mask."""
    height, width = rle["size"]
    return int(decode_rle(rle, height=height, width=width).sum())
