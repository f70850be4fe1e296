"""A projector is found in any file: under PSALM's names or ours, alone or in a whole model."""

import json

import pytest
import torch
from psalm.projector_weights import open_projector_weights
from safetensors.torch import save_file

WEIGHTS = {"layer1.0.conv1.weight": torch.ones(2), "fc.weight": torch.zeros(3)}


@pytest.mark.parametrize("start", ["", "model.mm_projector.", "mm_projector.", "projector."])
def test_its_names_are_its_own(tmp_path, start):
    others = {"model.layers.0.fc1.weight": torch.ones(1), "query_projector.weight": torch.ones(1)} if start else {}
    save_file({f"{start}{name}": value for name, value in WEIGHTS.items()} | others, tmp_path / "a.safetensors")
    opened = open_projector_weights(str(tmp_path / "a.safetensors"))
    assert opened.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(opened.weights[name], value) for name, value in WEIGHTS.items())
    assert opened.num_others == len(others)
    assert opened.conv2_repeats == (2 if "mm_" in start else None)


@pytest.mark.parametrize("repeats", [1, 2])
def test_our_configuration_beside_the_weights_says_how_often_the_convolution_runs(tmp_path, repeats):
    save_file({f"projector.{name}": value for name, value in WEIGHTS.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "psalm", "conv2_repeats": repeats}))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert open_projector_weights(str(source)).conv2_repeats == repeats
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phi"}))
    assert open_projector_weights(str(tmp_path)).conv2_repeats is None


def test_two_projectors_in_one_file_are_refused(tmp_path):
    save_file(
        {"a.mm_projector.fc.weight": torch.ones(1), "b.mm_projector.fc.weight": torch.ones(1)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(ValueError, match=r"a\.safetensors': two weights are 'fc\.weight' of a projector"):
        open_projector_weights(str(tmp_path / "a.safetensors"))
