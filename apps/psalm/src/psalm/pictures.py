"""What a record looks like: its prompts, its targets and what was found, beside each other."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure
from region_core.rle import decode_rles

from psalm.modes import KIND_OF_MODE
from psalm.overlays import Panel, draw_panels
from psalm.records import EvaluatedRecord, FoundMask
from psalm.samples import Scene

SHOWN_SCORE = 0.5
"""Instances below it are left out of pictures: there are always a hundred."""

ROLE_TITLES = {
    "segment": "found",
    "class": "found",
    "instance": f"found (score above {SHOWN_SCORE:g})",
    "best": "best mask",
    "united": "masks above the threshold",
}


def draw_record(scene: Scene, masks: Sequence[FoundMask], *, measure: float | None, with_target: bool = True) -> Figure:
    """Draw a record.

    Args:
        scene: What was asked.
        masks: What was found.
        measure: The record's main measure in percent, if it has one.
        with_target: Show the targets; without, for an image whose targets nobody knows.
    """
    panels = [
        *([_prompts(scene)] if scene.prompts is not None else []),
        *([_targets(scene)] if with_target else []),
        *_found(scene, masks),
    ]
    asked = scene.conditions[0] if KIND_OF_MODE[scene.mode] == "sentence" else scene.mode.replace("_", " ")
    return draw_panels(panels, title=asked if measure is None else f"{asked} ({measure:.1f} %)")


def choose_records(records: Sequence[EvaluatedRecord], count: int) -> list[EvaluatedRecord]:
    """The worst records, for half of the count, then some at equal steps; none twice."""
    scored = [record for record in records if record.measure is not None]
    worst = sorted(scored, key=lambda record: record.measure or 0.0)[: count // 2]
    taken = {record.position for record in worst}
    others = [record for record in records if record.position not in taken]
    wanted = min(count - len(worst), len(others))
    return worst + [others[place * len(others) // wanted] for place in range(wanted)]


def _prompts(scene: Scene) -> Panel:
    assert scene.prompts is not None
    names = tuple(f"region {number}" for number in range(len(scene.prompts)))
    if scene.reference_image is not None:
        return Panel("prompts on the reference image", scene.reference_image, scene.prompts, names, names)
    return Panel("prompts", scene.image, scene.prompts, names, names)


def _targets(scene: Scene) -> Panel:
    labels = []
    for belongs in scene.target_conditions:
        numbers = np.flatnonzero(belongs)
        named = [scene.conditions[number] or f"region {number}" for number in numbers]
        labels.append(", ".join(named))
    # A target of several regions has the first one's colour.
    keys = tuple(label.split(", ")[0] if KIND_OF_MODE[scene.mode] == "region" else label for label in labels)
    shown = ("",) * len(labels) if KIND_OF_MODE[scene.mode] == "sentence" else tuple(labels)
    return Panel("target" if len(scene.masks) else "no target", scene.image, scene.masks, shown, keys)


def _found(scene: Scene, masks: Sequence[FoundMask]) -> list[Panel]:
    """One panel per role; with nothing found an empty one."""
    roles = list(dict.fromkeys(found.role for found in masks))
    if not roles:
        return [_panel(scene, "nothing found", [])]
    panels = []
    for role in roles:
        shown = [
            found
            for found in masks
            if found.role == role and (role != "instance" or (found.score or 0.0) > SHOWN_SCORE)
        ]
        # The surest on top.
        shown.sort(key=lambda found: found.score or 0.0)
        panels.append(_panel(scene, ROLE_TITLES[role], shown))
    return panels


def _panel(scene: Scene, title: str, masks: Sequence[FoundMask]) -> Panel:
    height, width = scene.image.shape[:2]
    decoded: Bool[np.ndarray, "masks height width"] = decode_rles(
        [found.rle for found in masks], height=height, width=width
    )
    is_sentence = KIND_OF_MODE[scene.mode] == "sentence"
    labels = [
        (f"{found.score:.2f}" if found.score is not None else "")
        if is_sentence
        else f"{found.label} {found.score:.2f}"
        if found.score is not None
        else found.label
        for found in masks
    ]
    return Panel(title, scene.image, decoded, tuple(labels), tuple(found.label for found in masks))
