"""The two stages of the guide in one run, S13: the weight follows the training's progress and nothing else."""

import logging
import re
from pathlib import Path

import pytest
import torch
from region_training.settings import ConfigError
from roi_region_loss.config import RegionLossConfig
from sprc.configuration import SPRCConfig
from sprc.model import SPRCModel
from sprc.reach import count_reached
from sprc.region_schedule import RegionSchedule
from transformers import TrainerControl, TrainerState, TrainingArguments

SCHEDULE = RegionSchedule(RegionLossConfig(start_epoch=2.0, ramp_epochs=1.0), 0.5)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    return TrainingArguments(output_dir=str(tmp_path_factory.mktemp("run")), report_to=[], use_cpu=True)


def _step(model, arguments, epoch, schedule=SCHEDULE):
    schedule.on_step_begin(arguments, TrainerState(epoch=epoch), TrainerControl(), model=model)
    return model.region_weight


@pytest.mark.parametrize(
    ("epoch", "weight"), [(0.0, 0.0), (1.99, 0.0), (2.0, 0.0), (2.5, 0.25), (2.9, 0.45), (3.0, 0.5), (40.0, 0.5)]
)
def test_the_weight_rises_at_its_time(toy_model, arguments, epoch, weight):
    assert _step(toy_model.model(), arguments, epoch) == pytest.approx(weight)


def test_a_resumed_run_needs_no_memory(toy_model, arguments):
    model = toy_model.model()
    through = [_step(model, arguments, epoch) for epoch in (1.0, 2.25, 2.5)]
    model.region_weight = 7.0
    assert _step(model, arguments, 2.5) == through[-1]
    assert _step(model, arguments, 1.0) == through[0]


def test_without_a_start_the_loss_is_on_from_the_first_step(toy_model, arguments):
    assert _step(toy_model.model(), arguments, 0.0, RegionSchedule(RegionLossConfig(), 0.3)) == 0.3


def test_before_the_start_there_is_no_region_term(toy_model, arguments):
    """S7: the term is there only where it is computed."""
    model, batch = toy_model.model(), toy_model.batch()
    _step(model, arguments, 1.0)
    assert "region" not in model(**batch).losses
    _step(model, arguments, 3.0)
    assert model(**batch).losses["region"].weight == 0.5


def test_the_start_of_training_says_what_the_loss_reaches(toy_model, arguments, caplog):
    def begin(model, **state):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            SCHEDULE.on_train_begin(arguments, TrainerState(**state), TrainerControl(), model=model)
        return caplog.text

    assert "the region loss reaches" in begin(toy_model.model(), is_world_process_zero=True)
    assert begin(toy_model.model(), is_world_process_zero=False) == ""
    assert begin(toy_model.model(use_region_loss=False), is_world_process_zero=True) == ""


def test_a_training_without_epochs_is_refused(toy_model, arguments):
    with pytest.raises(ConfigError, match="does not count epochs"):
        _step(toy_model.model(), arguments, None)


@pytest.mark.parametrize("mode", ["qformer", "tokens", "value"])
def test_the_readme_says_what_the_loss_reaches_at_the_published_size(mode):
    with torch.device("meta"):
        model = SPRCModel(SPRCConfig(region_mode=mode))
    model.vision_tower.requires_grad_(False)
    reach = count_reached(model)
    page = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{mode}` .*", page, re.MULTILINE)
    assert row.endswith(f"| {reach.num_reached:,} | {reach.num_trainable:,} |")
