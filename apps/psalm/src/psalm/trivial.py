"""Answers that need no model: what they score, the data gives away.

Where a mode has several, the best of them is the baseline. The constants are fitted on the evaluated scenes themselves,
which favours the baseline.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from region_core.boxes import boxes_from_masks
from region_core.masks import box_to_mask
from torch.nn import functional as F

from psalm.answers import Answer
from psalm.modes import KIND_OF_MODE
from psalm.panoptic_merge import PanopticPrediction, PanopticSegment
from psalm.predictions import ConditionMasks
from psalm.samples import Scene

FITTED_ON = 200
"""Scenes that the constants are fitted on, at equal steps through a data set."""


@dataclass(frozen=True)
class TrivialAnswers:
    """The answers of one data set.

    Attributes:
        class_name: The stuff class (any class, where there is no stuff) with most pixels; None without classes.
        box_size: Mean height and width of the targets' boxes, as shares of the image.
    """

    class_name: str | None
    box_size: tuple[float, float]

    @classmethod
    def fit(cls, scenes: Iterable[Scene]) -> "TrivialAnswers":
        """Fit the constants on scenes of one mode."""
        stuff: Counter[str] = Counter()
        things: Counter[str] = Counter()
        sizes: list[tuple[float, float]] = []
        for scene in scenes:
            if KIND_OF_MODE[scene.mode] == "class_name":
                for mask, belongs in zip(scene.masks, scene.target_conditions, strict=True):
                    index = int(belongs.argmax())
                    counter = things if scene.is_thing[index] else stuff
                    counter[scene.conditions[index]] += int(mask.sum())
            boxes = boxes_from_masks(torch.tensor(scene.masks)).tolist()
            sizes += [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in boxes]
        # Names break ties, so that the choice does not depend on the order of the scenes.
        counted = stuff or things
        name = max(sorted(counted), key=lambda name: counted[name]) if counted else None
        height, width = np.mean(sizes, axis=0) if sizes else (0.5, 0.5)
        return cls(name, (float(height), float(width)))

    def answers(self, scene: Scene) -> dict[str, Answer]:
        """Every trivial answer to a scene, by what it is."""
        if scene.mode == "instance":
            return {"nothing": Answer(scene.conditions, instances=())}
        if scene.mode in ("panoptic", "semantic"):
            return self._one_class(scene)
        if scene.mode == "referring":
            height, width = scene.image.shape[:2]
            whole = np.ones((1, height, width), dtype=bool)
            return {
                "the whole image": _said(scene, whole),
                "a box in the middle": _said(scene, self._boxes(np.array([[0.5, 0.5]]), height, width)),
                "no target": _said(scene, ~whole),
            }
        assert scene.prompts is not None
        pasted = _paste(scene.prompts, *scene.image.shape[:2])
        said = {
            "the prompt itself": _said(scene, pasted),
            "a box around the prompt": _said(scene, self._around(pasted)),
        }
        # Another image may lack what a region shows; the prompted one does not.
        return said | ({"no target": _said(scene, np.zeros_like(pasted))} if scene.mode == "cross_image" else {})

    def _one_class(self, scene: Scene) -> dict[str, Answer]:
        """The whole image as one class; nothing at all where the scene does not have it."""
        height, width = scene.image.shape[:2]
        segments: tuple[PanopticSegment, ...] = ()
        value = 0
        if self.class_name in scene.conditions:
            index = scene.conditions.index(self.class_name)
            segments = (PanopticSegment(1, index, scene.is_thing[index], 1.0, height * width),)
            value = index + 1
        semantic = np.full((height, width), value, dtype=np.int32)
        if scene.mode == "semantic":
            return {"the whole image as one class": Answer(scene.conditions, semantic=semantic)}
        panoptic = PanopticPrediction(np.full((height, width), len(segments), dtype=np.int32), segments)
        answer = Answer(scene.conditions, panoptic=panoptic, semantic=semantic, instances=())
        return {"the whole image as one class": answer}

    def _around(self, prompts: Bool[np.ndarray, "regions height width"]) -> Bool[np.ndarray, "regions height width"]:
        """Boxes of the mean size around the prompts' centres; nothing around an empty prompt."""
        boxes = boxes_from_masks(torch.tensor(prompts)).numpy()
        centres = np.stack([boxes[:, 0::2].mean(1), boxes[:, 1::2].mean(1)], 1)
        return self._boxes(centres, *prompts.shape[1:]) & prompts.any(axis=(1, 2), keepdims=True)

    def _boxes(self, centres: np.ndarray, height: int, width: int) -> Bool[np.ndarray, "regions {height} {width}"]:
        half = np.array([self.box_size[1], self.box_size[0]]) / 2
        boxes = np.concatenate([centres - half, centres + half], 1).clip(0, 1)
        masks = [box_to_mask(box, height=height, width=width) for box in boxes]
        return np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool)


def _said(scene: Scene, masks: Bool[np.ndarray, "conditions height width"]) -> Answer:
    scores = np.ones(len(masks), dtype=np.float32)
    return Answer(scene.conditions, masks=ConditionMasks(masks, masks, scores))


def _paste(
    prompts: Bool[np.ndarray, "regions rows columns"], height: int, width: int
) -> Bool[np.ndarray, "regions {height} {width}"]:
    """Prompts on an image of another size, stretched to it."""
    if prompts.shape[1:] == (height, width):
        return prompts
    stretched = F.interpolate(torch.tensor(prompts)[None].float(), size=(height, width), mode="nearest-exact")
    return stretched[0].bool().numpy()
