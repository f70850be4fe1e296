"""T35: weights that are missing from a folder are named, never initialised afresh in silence."""

import pytest
import torch
from region_training.loading import LoadError, load_pretrained
from safetensors.torch import load_file, save_file


@pytest.fixture
def folder(toy, tmp_path):
    toy.Model(toy.Config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_folder_opens_bit_for_bit(toy, folder):
    model = load_pretrained(toy.Model, folder)
    assert not model.training
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value)


def test_missing_tensors_are_refused_unless_allowed(toy, folder):
    _rewrite(folder, lambda weights: [weights.pop("regress.weight"), weights.pop("gate")])
    with pytest.raises(LoadError, match=r"ToyModel; tensors missing from the folder: gate, regress\.weight"):
        load_pretrained(toy.Model, folder)
    with pytest.raises(LoadError, match="missing from the folder: gate"):
        load_pretrained(toy.Model, folder, allow_missing=["regress."])
    load_pretrained(toy.Model, folder, allow_missing=["regress", "gate"])


def test_unexpected_tensors_are_refused(toy, folder):
    _rewrite(folder, lambda weights: weights.update({"ghost.weight": torch.zeros(2)}))
    with pytest.raises(LoadError, match=r"in the folder but not in the model: ghost\.weight"):
        load_pretrained(toy.Model, folder)


def test_what_is_no_model_folder_is_said_to_be_none(toy, tmp_path):
    with pytest.raises(LoadError, match=r"expected a local folder with config\.json"):
        load_pretrained(toy.Model, tmp_path)
