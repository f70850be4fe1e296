"""The two stages of the guide in one run: the weight of the region loss follows the training's progress."""

import logging

from region_training.settings import ConfigError
from roi_region_loss.config import RegionLossConfig
from roi_region_loss.schedule import region_weight
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sprc.model import SPRCModel
from sprc.reach import count_reached

logger = logging.getLogger(__name__)


class RegionSchedule(TrainerCallback):
    """Sets the model's `region_weight` before every step, from nothing but the step's place in its epoch.

    Args:
        config: When the loss sets in and how it rises.
        weight: Its full weight.
    """

    def __init__(self, config: RegionLossConfig, weight: float) -> None:
        self.config = config
        self.weight = weight

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: object,
    ) -> None:
        """Say how much of the model the loss reaches, which is where the guide's literal form falls short."""
        network = _network(model)
        if network.use_region_loss and state.is_world_process_zero:
            logger.info("%s", count_reached(network))

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_: object,
    ) -> None:
        """Set the weight of this step."""
        if state.epoch is None:
            raise ConfigError("the training does not count epochs, which the region loss's schedule needs")
        config = self.config
        _network(model).region_weight = region_weight(
            state.epoch, weight=self.weight, start_epoch=config.start_epoch, ramp_epochs=config.ramp_epochs
        )


def _network(model: PreTrainedModel | None) -> SPRCModel:
    assert isinstance(model, SPRCModel)
    return model
