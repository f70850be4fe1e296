"""When the region loss sets in: the guide's two stages as a pure function of training progress.

Stage one trains without the region loss, stage two with it, in one run. The weight depends on nothing but the epoch, so
a run that is resumed across the switch continues as if it had not stopped.
"""

import math


def region_weight(
    epoch: float | int,
    *,
    weight: float | int = 1.0,
    start_epoch: float | int = 0.0,
    ramp_epochs: float | int = 0.0,
) -> float:
    """Weight of the region loss at a point of training.

    Args:
        epoch: Epochs done so far; a fraction within an epoch.
        weight: The full weight.
        start_epoch: Before it the weight is 0.
        ramp_epochs: Epochs from there over which it rises linearly from 0; with 0 it is full at once.

    Raises:
        ValueError: A number is negative or not finite.
    """
    given = {"epoch": epoch, "weight": weight, "start_epoch": start_epoch, "ramp_epochs": ramp_epochs}
    for name, value in given.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
    since_start = epoch - start_epoch
    if since_start < 0.0:
        return 0.0
    if since_start >= ramp_epochs:
        return float(weight)
    return weight * since_start / ramp_epochs
