"""From head outputs to answers: metres, a side, a region, a number."""

from region_heads.labels import SIDES, RegionPrediction
from region_heads.pair_heads import DistanceOutput, LeftRightOutput
from region_heads.region_heads import HeadOutput, RegionHeadsOutput
from region_heads.set_heads import ChoiceOutput
from region_heads.tasks import TaskType


def decode(output: RegionHeadsOutput) -> list[RegionPrediction | None]:
    """Read the answers off the heads' outputs.

    Args:
        output: Result of `RegionHeads`.

    Returns:
        One entry per batch row; `None` where no head answered.
    """
    predictions: list[RegionPrediction | None] = [None] * output.batch_size
    for name, head_output in output.outputs.items():
        task = TaskType[name.upper()]
        values, confidences = _decode_head(head_output)
        for row, value, confidence in zip(output.rows[name].tolist(), values, confidences, strict=True):
            predictions[row] = RegionPrediction(task, value, confidence)
    return predictions


def _decode_head(output: HeadOutput) -> tuple[list[float | int | str], list[float]]:
    if isinstance(output, DistanceOutput):
        return output.distance_m.tolist(), output.pair_probabilities.amax(-1).tolist()
    best = output.probabilities.max(-1)
    classes = best.indices.tolist()
    if isinstance(output, LeftRightOutput):
        return [SIDES[index] for index in classes], best.values.tolist()
    if isinstance(output, ChoiceOutput):
        return classes, best.values.tolist()
    # The log-space recursion may exceed 1 by a rounding error.
    return classes, best.values.clamp_max(1.0).tolist()
