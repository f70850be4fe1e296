"""The six modes of a sample, and the three kinds of condition that tell the model what to segment."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Mode = Literal["panoptic", "semantic", "instance", "referring", "region", "cross_image"]
MODES: tuple[Mode, ...] = get_args(Mode)

ConditionKind = Literal["class_name", "sentence", "region"]
CONDITION_KINDS: tuple[ConditionKind, ...] = get_args(ConditionKind)

KIND_OF_MODE: Mapping[Mode, ConditionKind] = MappingProxyType(
    {
        "panoptic": "class_name",
        "semantic": "class_name",
        "instance": "class_name",
        "referring": "sentence",
        "region": "region",
        "cross_image": "region",
    }
)
"""What a mode's conditions are: the names of all candidate classes, one sentence, or prompted regions."""

BACKGROUND = "background"
"""Name of the last condition of every class list: what belongs to none of the candidates."""
