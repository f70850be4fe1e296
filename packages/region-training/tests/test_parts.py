"""Who belongs to which part, who is frozen, who decays."""

import json

import pytest
import torch
from region_training.parts import ModelParts, parts_table, write_parts
from region_training.settings import ConfigError, TrainingSettings
from rich.console import Console
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head = nn.Linear(3, 4, bias=False)
        self.header = nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(4), nn.Linear(4, 3, bias=False))
        self.header[2].weight = nn.Parameter(self.head.weight.detach().T.contiguous())
        self.scale = nn.Parameter(torch.ones(1))
        self.scale_bias = nn.Parameter(torch.ones(2, 2))


def _parts(model=None, prefixes=None, **settings):
    prefixes = prefixes or {"tower": ("tower",), "rest": ("head", "header.", "scale", "scale_bias")}
    return ModelParts(model or Small(), prefixes=prefixes, settings=TrainingSettings(**settings))


def test_the_table_by_hand():
    tower, rest = _parts(frozen_parts=["tower"], weight_decay=0.1, part_learning_rates={"rest": 3e-4}).rows()
    assert (tower.num_parameters, tower.num_trained, tower.num_tensors, tower.num_decayed) == (15, 0, 4, 0)
    assert (tower.trainable, tower.learning_rate) == (False, 0.0)
    # Two matrices of 12; the norm's 8, the scale's 1 and the bias of four, though a matrix, do not decay.
    assert (rest.num_parameters, rest.num_trained, rest.num_tensors, rest.num_decayed) == (37, 37, 6, 24)
    assert (rest.trainable, rest.learning_rate) == (True, 3e-4)


def test_groups_hold_every_trained_tensor_once_and_no_frozen_one():
    """T36: frozen parameters are excluded, every part has its rate, norms and biases do not decay."""
    model = Small()
    parts = _parts(model, frozen_parts=["tower"], weight_decay=0.1, learning_rate=1e-3)
    decay, plain = parts.optimizer_groups()
    assert {group["part"] for group in (decay, plain)} == {"rest"}
    assert (decay["lr"], decay["weight_decay"], plain["weight_decay"]) == (1e-3, 0.1, 0.0)
    grouped = [id(parameter) for group in (decay, plain) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for n, p in model.named_parameters() if not n.startswith("tower"))
    assert {tuple(parameter.shape) for parameter in decay["params"]} == {(4, 3), (3, 4)}
    assert not any(parameter.requires_grad for parameter in model.tower.parameters())


def test_frozen_modules_stay_in_evaluation():
    """T39: dropout and batch statistics of a frozen part stand still after `model.train()`."""
    model = Small()
    parts = _parts(model, frozen_parts=["tower"])
    model.train()
    parts.hold_frozen()
    assert not any(module.training for module in model.tower.modules())
    assert model.header[0].training
    assert model.training


def test_what_the_model_itself_keeps_fixed_stays_fixed():
    model = Small()
    model.scale.requires_grad_(False)
    rows = _parts(model).rows()
    assert (rows[1].num_parameters, rows[1].num_trained) == (37, 36)
    assert not model.scale.requires_grad
    model.tower.requires_grad_(False)
    with pytest.raises(ConfigError, match="keeps all 4 tensors of the part 'tower' fixed"):
        _parts(model)


def test_a_tied_weight_counts_once():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 2), "lm": nn.Linear(2, 5, bias=False), "other": nn.Linear(2, 2)})
    model["lm"].weight = model["embed"].weight
    parts = ModelParts(
        model, prefixes={"text": ("embed", "lm"), "other": ("other",)}, settings=TrainingSettings(frozen_parts=["text"])
    )
    assert parts.rows()[0].num_tensors == 1
    model.train()
    parts.hold_frozen()
    assert not model["lm"].training


def test_prefixes_end_at_dots():
    with pytest.raises(ConfigError, match=r"parameters without a part: 1, the first are \['header.2.weight'\]"):
        _parts(prefixes={"tower": ("tower",), "rest": ("head", "scale", "scale_bias"), "norm": ("header.1",)})


def test_errors_name_the_culprit():
    with pytest.raises(ConfigError, match=r"'head.weight' belongs to the parts \['all', 'head'\]"):
        _parts(prefixes={"all": ("",), "head": ("head",)})
    with pytest.raises(ConfigError, match=r"the parts \['ghost'\] have no parameter in Small"):
        _parts(prefixes={"all": ("",), "ghost": ("ghost",)})
    with pytest.raises(ConfigError, match=r"frozen_parts: got \['towr'\], expected names among \['rest', 'tower'\]"):
        _parts(frozen_parts=["towr"])
    with pytest.raises(ConfigError, match=r"part_learning_rates: got \['x'\]"):
        _parts(part_learning_rates={"x": 1.0})
    with pytest.raises(ConfigError, match="every part"):
        _parts(frozen_parts=["tower", "rest"])


def test_the_table_is_shown_and_written(tmp_path):
    rows = _parts(frozen_parts=["tower"]).rows()
    console = Console(width=120)
    with console.capture() as capture:
        console.print(parts_table(rows))
    text = capture.get()
    assert "frozen" in text
    assert "37 of 52 parameters are trained" in text
    write_parts(rows, tmp_path / "parts.json")
    assert [row["name"] for row in json.loads((tmp_path / "parts.json").read_text())] == ["tower", "rest"]
