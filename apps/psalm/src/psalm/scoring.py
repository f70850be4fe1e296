"""The measures of one data set, by its mode: gathered scene by scene, added up over batches and ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int32

from psalm.answers import Answer
from psalm.metrics.average_precision import AveragePrecision, ScoredMask
from psalm.metrics.mask_iou import MaskIoU
from psalm.metrics.panoptic_quality import PanopticQuality
from psalm.metrics.semantic_iou import SemanticIoU
from psalm.modes import Mode
from psalm.samples import Scene

MAIN_MEASURE: Mapping[Mode, str] = MappingProxyType(
    {
        "panoptic": "PQ",
        "semantic": "mIoU",
        "instance": "AP",
        "referring": "gIoU",
        "region": "gIoU",
        "cross_image": "gIoU",
    }
)
"""The number that stands for a mode, if all its conditions have one target each."""

UNION_MEASURE = "union_gIoU"
"""The number of the modes in `UNITED_MODES` where a condition has no target, or several that one mask cannot cover."""
UNITED_MODES: tuple[Mode, ...] = ("referring", "cross_image")


@dataclass
class ModeScores:
    """Measures of the scenes so far, all of one mode; those that the mode does not have stay empty.

    Attributes:
        mode: What was asked.
        panoptic: Matched segments.
        semantic: Pixels by class.
        precision: Instances.
        best: Masks of the best query, for conditions that have a target.
        united: Masks united above a threshold, for all conditions: here "no target" can be said.
        one_to_one: Whether every condition so far has one target.
    """

    mode: Mode
    panoptic: PanopticQuality = field(default_factory=PanopticQuality)
    semantic: SemanticIoU = field(default_factory=SemanticIoU)
    precision: AveragePrecision = field(default_factory=AveragePrecision)
    best: MaskIoU = field(default_factory=MaskIoU)
    united: MaskIoU = field(default_factory=MaskIoU)
    one_to_one: bool = True

    def update(self, position: int, scene: Scene, answer: Answer) -> None:
        """Add one scene.

        Args:
            position: Its position in the data set.
            scene: The truth.
            answer: What was said.
        """
        classes = [int(row.argmax()) for row in scene.target_conditions] if answer.masks is None else []
        true_classes = [scene.conditions[index] for index in classes]
        things = [name for name, is_thing in zip(scene.conditions, scene.is_thing, strict=True) if is_thing]
        if answer.panoptic is not None:
            self.panoptic.update(
                answer.panoptic.segment_map,
                [answer.names[segment.class_index] for segment in answer.panoptic.segments],
                label_map(scene.masks, range(1, len(scene.masks) + 1)),
                true_classes,
                things=things,
                void=scene.void,
            )
        if answer.semantic is not None:
            # By the answer's own order of the candidates, which need not be the scene's.
            labels = [answer.names.index(name) + 1 for name in true_classes]
            self.semantic.update(answer.semantic, label_map(scene.masks, labels), answer.names, void=scene.void)
        if answer.instances is not None:
            countable = np.array([name in things for name in true_classes], dtype=bool)
            self.precision.update(
                position,
                [ScoredMask(answer.names[found.class_index], found.score, found.rle) for found in answer.instances],
                scene.masks[countable],
                [name for name in true_classes if name in things],
                void=scene.void,
            )
        if answer.masks is not None:
            self._update_masks(scene, answer.masks.best, answer.masks.united)

    def _update_masks(
        self,
        scene: Scene,
        best: Bool[np.ndarray, "conditions height width"],
        united: Bool[np.ndarray, "conditions height width"],
    ) -> None:
        for condition, belongs in enumerate(scene.target_conditions.T):
            target = scene.masks[belongs].any(0)
            if target.any():
                self.best.update(best[condition], target, void=scene.void)
            self.united.update(united[condition], target, void=scene.void)
            self.one_to_one &= bool(target.any()) and int(belongs.sum()) == 1

    def merge(self, other: "ModeScores") -> None:
        """Add the scenes of another one."""
        self.panoptic.merge(other.panoptic)
        self.semantic.merge(other.semantic)
        self.precision.merge(other.precision)
        self.best.merge(other.best)
        self.united.merge(other.united)
        self.one_to_one &= other.one_to_one

    @property
    def main_measure(self) -> str:
        """The number that stands for these scenes; the truth alone decides which it is, not the answers."""
        is_union = self.mode in UNITED_MODES and not self.one_to_one
        return UNION_MEASURE if is_union else MAIN_MEASURE[self.mode]

    def main(self) -> float | None:
        """The main measure alone, in percent; None where nothing can be said of it."""
        if self.main_measure == UNION_MEASURE:
            return self.united.compute().get("gIoU")
        own = {"panoptic": self.panoptic, "semantic": self.semantic, "instance": self.precision}
        return own.get(self.mode, self.best).compute().get(self.main_measure)

    def compute(self) -> dict[str, float]:
        """All measures of the mode, in percent; the measures of united masks begin with `union_`."""
        scores = self.panoptic.compute() | self.semantic.compute() | self.precision.compute() | self.best.compute()
        if self.mode in UNITED_MODES:
            scores |= {f"union_{name}": value for name, value in self.united.compute().items()}
        return scores


def label_map(
    masks: Bool[np.ndarray, "targets height width"], labels: Sequence[int]
) -> Int32[np.ndarray, "height width"]:
    """The label of the mask at each pixel, 0 where there is none; of masks that overlap the last one counts."""
    labelled = np.zeros(masks.shape[1:], dtype=np.int32)
    for mask, label in zip(masks, labels, strict=True):
        labelled[mask] = label
    return labelled
