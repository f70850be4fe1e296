"""Settings of the region heads, without torch: a command line can show and check them before anything heavy loads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Literal, get_args

from region_heads.tasks import TaskType

DistanceLoss = Literal["mse", "log_huber"]
CountingLoss = Literal["cross_entropy", "expected_count"]

_CHOICES = {"distance_loss": get_args(DistanceLoss), "counting_loss": get_args(CountingLoss)}

WAREHOUSE_MEAN_M = 5.71
"""Mean distance of the PhysicalAI warehouse training set, in metres."""

WAREHOUSE_STD_M = 2.84
"""Standard deviation of the same distances, in metres."""


@dataclass(frozen=True)
class HeadConfig:
    """One head.

    Attributes:
        enabled: Build the head; questions of a disabled head's task are ignored and counted.
        dropout: Dropout inside the head, in [0, 1).
        weight: Factor of the head's loss terms in the total loss.
    """

    enabled: bool = True
    dropout: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout!r}")
        _check_minimum("weight", self.weight, 0.0)


@dataclass(frozen=True)
class RegionHeadsConfig:
    """All four heads; the defaults of `enabled` and `dropout` are the guide's.

    Attributes:
        distance: Head that answers in metres.
        left_right: Head that says on which side region 0 stands of region 1.
        multiple_choice: Head that picks a region.
        counting: Head that answers with a number.
        distance_loss: `mse` on standardised metres (the guide's), or `log_huber`: a Huber loss on log-metres, the
            nearest smooth relative of "within ten per cent".
        distance_mean_m: Mean of the training distances; what an untrained head answers on average.
        distance_std_m: Their standard deviation; it brings the squared error to the size of the other losses.
        counting_loss: `cross_entropy` over 0..max_count (the guide's), or `expected_count`: a Huber loss on the sum of
            the inclusion probabilities.
        max_count: The last class; it means "this many or more".
        hidden_dim: Width inside every head.
        selection_weight: Factor of the terms `distance_pair` and `counting_members`, on top of the head's own weight.
            They apply only where the targets say which regions an answer names, so the default of 1 changes nothing
            without such targets; with them it is what teaches a head *which* of fifteen regions a question is about.
            0 leaves the guide's four losses alone.
    """

    distance: HeadConfig = field(default_factory=HeadConfig)
    left_right: HeadConfig = field(default_factory=HeadConfig)
    multiple_choice: HeadConfig = field(default_factory=HeadConfig)
    counting: HeadConfig = field(default_factory=HeadConfig)
    distance_loss: DistanceLoss = "mse"
    distance_mean_m: float = WAREHOUSE_MEAN_M
    distance_std_m: float = WAREHOUSE_STD_M
    counting_loss: CountingLoss = "cross_entropy"
    max_count: int = 15
    hidden_dim: int = 256
    selection_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, value in (("distance_mean_m", self.distance_mean_m), ("distance_std_m", self.distance_std_m)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        _check_minimum("selection_weight", self.selection_weight, 0.0)
        _check_minimum("max_count", self.max_count, 1)
        _check_minimum("hidden_dim", self.hidden_dim, 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, object] | None) -> "RegionHeadsConfig":
        """Merge a partial, possibly nested mapping into the defaults, as the guide writes it.

        Args:
            values: For example `{"counting": {"enabled": False}, "max_count": 8}`; `None` and `{}` mean the defaults.

        Returns:
            The complete configuration.

        Raises:
            ValueError: A key is unknown (the message gives its path and the nearest key) or a value is out of range.
        """
        settings = _read_values({} if values is None else values, cls(), where="region heads")
        return replace(cls(), **settings)

    def head(self, task: TaskType) -> HeadConfig:
        """The settings of one task's head."""
        sections = (self.distance, self.left_right, self.multiple_choice, self.counting)
        return sections[task]


def _read_values(
    values: Mapping[str, object], defaults: HeadConfig | RegionHeadsConfig, *, where: str
) -> dict[str, object]:
    """Check keys and types against the defaults, and read nested sections."""
    known = {item.name: vars(defaults)[item.name] for item in fields(defaults)}
    result: dict[str, object] = {}
    for key, value in values.items():
        if key not in known:
            nearest = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"unknown key {key!r} in {where}: expected one of {', '.join(known)}{hint}")
        result[key] = _read_value(key, value, known[key], where=where)
    return result


def _read_value(key: str, value: object, default: object, *, where: str) -> object:
    path = f"{where}: {key}"
    if isinstance(default, HeadConfig):
        if isinstance(value, HeadConfig):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"{path} must be a mapping such as {{'enabled': True}}, got {value!r}")
        settings = _read_values(value, HeadConfig(), where=f"{where}.{key}")
        try:
            return replace(HeadConfig(), **settings)
        except ValueError as error:
            raise ValueError(f"{where}.{key}: {error}") from error
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{path} must be true or false, got {value!r}")
    elif isinstance(default, str):
        if value not in _CHOICES[key]:
            raise ValueError(f"{path} must be one of {', '.join(_CHOICES[key])}, got {value!r}")
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{path} must be a number, got {value!r}")
    elif isinstance(default, float):
        return float(value)
    elif not isinstance(value, int):
        raise ValueError(f"{path} must be a whole number, got {value!r}")
    return value


def _check_minimum(name: str, value: float | int, minimum: float | int) -> None:
    if not minimum <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least {minimum}, got {value!r}")
