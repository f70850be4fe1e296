import pytest
import torch
from region_core import match_weights
from torch import nn


def small():
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def weights(**changes):
    state = {name: torch.full_like(tensor, 7.0) for name, tensor in small().state_dict().items()}
    return {name: tensor for name, tensor in (state | changes).items() if tensor is not None}


def test_fitting_weights_are_copied_and_reported():
    module = small()
    report = match_weights(module, weights())
    assert report.loaded == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert report.missing == report.unexpected == report.wrong_shape == ()
    assert report.table() == ""
    assert all(torch.equal(parameter, torch.full_like(parameter, 7.0)) for parameter in module.parameters())


def test_whatever_does_not_fit_is_listed_and_nothing_is_copied():  # T35
    module = small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    bad = weights(**{"1.bias": None, "2.bias": torch.zeros(1), "0.weight": torch.zeros(3, 5)})
    with pytest.raises(
        ValueError, match="do not fit Sequential: 1 missing, 1 unexpected, 1 of another shape"
    ) as caught:
        match_weights(module, bad)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split() for line in lines[:2]] == [["missing", "1.bias"], ["unexpected", "2.bias"]]
    assert lines[2].split(maxsplit=3) == ["wrong", "shape", "0.weight", "module [3, 2], weights [3, 5]"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_allowed_names_and_patterns_pass_and_are_reported():
    module = small()
    bias = module[1].bias.clone()
    changed = weights(**{"1.bias": None, "head.weight": torch.zeros(1), "head.bias": torch.zeros(1)})
    report = match_weights(module, changed, allow_missing=["1.bias"], allow_unexpected=["head.*"])
    assert report.missing == ("1.bias",)
    assert report.unexpected == ("head.weight", "head.bias")
    assert torch.equal(module[1].bias, bias)
    with pytest.raises(ValueError, match="0 missing, 1 unexpected"):
        match_weights(module, changed, allow_missing=["1.*"], allow_unexpected=["head.weight"])


def test_another_shape_is_never_allowed():
    with pytest.raises(ValueError, match="1 of another shape"):
        match_weights(small(), weights(**{"1.bias": torch.zeros(4)}), allow_missing=["*"], allow_unexpected=["*"])


def test_prefixes_are_renamed_longest_first():
    renamed = {f"model.{name}": tensor for name, tensor in weights().items()}
    renamed["model.extra.1.bias"] = renamed.pop("model.1.bias")
    report = match_weights(small(), renamed, rename={"model.": "", "model.extra.": ""})
    assert len(report.loaded) == 4


def test_two_names_that_become_one_are_refused():
    doubled = weights() | {"old.0.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"two weights become '0.bias' by renaming; one of them was 'old.0.bias'"):
        match_weights(small(), doubled, rename={"old.": ""})
