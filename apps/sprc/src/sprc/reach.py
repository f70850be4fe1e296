"""What the region loss trains: how many numbers of a model its gradient reaches in each region mode."""

import re
from typing import NamedTuple

from torch import nn

from sprc.model import SPRCModel

_ALWAYS = r"ln_vision\.|region_branch\."
_BY_QFORMER = (
    r"composer\.(query_tokens|vision_projection|qformer\.layernorm)\."
    r"|composer\.qformer\.encoder\.layer\.\d+\.(attention|crossattention|intermediate_query|output_query)\."
)
"""What the queries pass through without a caption; words have feed-forward layers of their own."""
_QUERIES = "composer.query_tokens.weight"


class RegionReach(NamedTuple):
    """How much of a model the region loss trains.

    Attributes:
        num_reached: Trainable numbers that its gradient reaches.
        num_trainable: All trainable numbers.
    """

    num_reached: int
    num_trainable: int

    def __str__(self) -> str:
        """One line for the log."""
        share = 100 * self.num_reached / self.num_trainable
        return (
            f"the region loss reaches {self.num_reached:,} of {self.num_trainable:,} trainable numbers ({share:.2g} %)"
        )


def count_reached(model: SPRCModel) -> RegionReach:
    """Count the trainable numbers that the region loss reaches, by name: nothing is run, so one rank may ask alone."""
    pattern = f"{_ALWAYS}|{_BY_QFORMER}" if model.region_branch.head is None else _ALWAYS
    sizes = {name: _numel(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    reached = {name: size for name, size in sizes.items() if re.match(pattern, name)}
    if _QUERIES in reached:
        # Queries that read no region have no part in it.
        reached[_QUERIES] = model.config.region_queries * model.config.hidden_size
    return RegionReach(sum(reached.values()), sum(sizes.values()))


def _numel(parameter: nn.Parameter) -> int:
    # ZeRO-3 leaves an empty tensor in the model and keeps the true size beside it.
    return getattr(parameter, "ds_numel", parameter.numel())
