"""T35: weights that are missing from a folder are named, never initialised afresh in silence."""

import pytest
import torch
from region_training.strict_loading import LoadError, StrictModel, load_strictly
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def folder(toy, tmp_path):
    toy.Model(toy.Config()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def from_pretrained(toy):
    """The library's own loader of the toy model."""
    return super(StrictModel, toy.Model).from_pretrained


def _rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_folder_opens_bit_for_bit(toy, from_pretrained, folder):
    for model in (toy.Model.from_pretrained(folder), load_strictly(from_pretrained, folder)[0]):
        assert isinstance(model, toy.Model)
        assert not model.training
        for name, value in load_file(folder / "model.safetensors").items():
            assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("gate"), "missing from the files: gate$"),
        (lambda weights: weights.update(ghost=torch.zeros(2)), "in the files but not in the model: ghost$"),
        (
            lambda weights: weights.update(gate=torch.zeros(3)),
            r"of another shape: gate \(\(3,\) in the files, \(1,\) in the model\)$",
        ),
        (
            lambda weights: [weights.pop("gate"), weights.update(ghost=torch.zeros(2))],
            "tensors missing from the files: gate; in the files but not in the model: ghost$",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "both"],
)
def test_weights_that_do_not_fit_are_named(toy, from_pretrained, folder, change, message):
    _rewrite(folder, change)
    with pytest.raises(LoadError, match=message):
        load_strictly(from_pretrained, folder)
    with pytest.raises(LoadError, match=message):
        toy.Model.from_pretrained(folder)


def test_a_long_list_is_cut(toy, folder):
    _rewrite(folder, lambda weights: weights.update({f"ghost{number}": torch.zeros(1) for number in range(8)}))
    with pytest.raises(LoadError, match=r"ghost4 and 3 more$"):
        toy.Model.from_pretrained(folder)


def test_what_may_differ_is_said_by_patterns(from_pretrained, folder):
    _rewrite(folder, lambda weights: [weights.pop("regress.weight"), weights.update(ghost=torch.zeros(2))])
    with pytest.raises(LoadError, match=r"model: ghost$"):
        load_strictly(from_pretrained, folder, allow_missing=("regress.*",))
    with pytest.raises(LoadError, match=r"files: regress\.weight$"):
        load_strictly(from_pretrained, folder, allow_unexpected=("*",))
    _, report = load_strictly(from_pretrained, folder, allow_missing=("*.weight",), allow_unexpected=("ghost",))
    assert report["missing_keys"] == {"regress.weight"}


def test_no_part_is_opened_from_a_pickle_by_a_strict_model(toy, folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        toy.Model.from_pretrained(folder)


def test_the_report_of_loading_can_be_asked_for(toy, folder):
    loaded, report = toy.Model.from_pretrained(folder, output_loading_info=True)
    assert isinstance(loaded, toy.Model)
    assert not any(report.values())


def test_a_model_may_do_again_what_loading_undoes(toy, folder):
    class Frozen(toy.Model):
        def after_loading(self):
            self.tower.requires_grad_(False)

    assert not any(parameter.requires_grad for parameter in Frozen.from_pretrained(folder).tower.parameters())
