"""`psalm adapt-projector`: the adapted projector is the baseline, the file says what it was made for."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from deformable_projector import DeformableProjector, DeformableProjectorConfig, SwinConvProjector
from psalm.adapt_projector import adapt_projector
from psalm.verbs import AdaptProjectorSettings
from region_core.weights import load_weights
from safetensors import safe_open
from torch import Tensor

if TYPE_CHECKING:
    from psalm.model import PSALMModel

SMALL = DeformableProjectorConfig(hidden_dim=16, num_heads=2, num_points=2)
DIMS = {"base": [128, 256, 512, 1024], "large": [192, 384, 768, 1536]}


def baseline(swin_type: str = "base") -> SwinConvProjector:
    """A trained baseline, but for its narrow convolution of the published size: statistics and weights moved."""
    torch.manual_seed(0)
    projector = SwinConvProjector(DIMS[swin_type][-1], 24, 8, conv2_repeats=2)
    with torch.no_grad():
        for value in projector.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand_like(value)
    return projector


def maps(swin_type: str = "base") -> list[Tensor]:
    return [torch.randn(2, dim, 16 // 2**level, 16 // 2**level) for level, dim in enumerate(DIMS[swin_type])]


def adapt(weights: dict[str, Tensor], folder: Path, swin_type: str = "base") -> Path:
    torch.save(weights, folder / "mm_projector.bin")
    output = folder / "out" / "adapted.safetensors"
    adapt_projector(AdaptProjectorSettings(str(folder / "mm_projector.bin"), str(output), swin_type, projector=SMALL))
    return output


def opened(path: Path, swin_type: str = "base") -> DeformableProjector:
    projector = DeformableProjector(DIMS[swin_type], 24, SMALL, 8, conv2_repeats=2)
    projector.load_state_dict(load_weights(path))
    return projector


@pytest.mark.parametrize("swin_type", ["base", "large"])
def test_the_adapted_projector_is_the_baseline_exactly(tmp_path, swin_type):
    base = baseline(swin_type)
    weights = {f"model.mm_projector.{name}": value for name, value in base.state_dict().items()}
    adapted = opened(adapt(weights, tmp_path, swin_type), swin_type)
    images = maps(swin_type)
    assert torch.equal(adapted.eval()(images).tokens, base.eval()(images[-1]))
    assert torch.equal(adapted.train()(images).tokens, base.train()(images[-1]))


def test_the_header_says_what_the_weights_are_for(tmp_path, caplog):
    weights = {f"model.mm_projector.{name}": value for name, value in baseline().state_dict().items()}
    with caplog.at_level(logging.INFO, logger="psalm.adapt_projector"):
        path = adapt(weights, tmp_path)
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    assert said == {
        "swin_type": "base",
        "projector_type": "deformable",
        "adapted_from": "swin_conv",
        "vision_dims": "128,256,512,1024",
        "output_dim": "24",
        "conv_dim": "8",
        "conv2_repeats": "2",
        "hidden_dim": "16",
        "num_heads": "2",
        "num_points": "2",
    }
    assert "conv2_repeats 2" in caplog.text
    assert "statistics" not in caplog.text


def test_missing_statistics_are_told(tmp_path, caplog):
    """PSALM's `mm_projector.bin` holds named parameters alone (spec 3.7)."""
    weights = {f"model.mm_projector.{name}": value.detach() for name, value in baseline().named_parameters()}
    path = adapt(weights, tmp_path)
    assert "without the running statistics of batch normalisation (9 tensors)" in caplog.text
    assert "wrong image tokens until they are measured" in caplog.text
    assert not opened(path).base.layer1[0].bn1.running_mean.any()


def test_a_whole_checkpoint_serves_too(tmp_path):
    base = baseline()
    weights = {f"model.mm_projector.{name}": value for name, value in base.state_dict().items()}
    others = {"model.layers.0.mlp.fc1.weight": torch.zeros(3, 3), "seg_query": torch.zeros(4, 24)}
    found = load_weights(adapt(others | weights, tmp_path))
    assert torch.equal(found["base.fc.weight"], base.fc.weight)
    assert all(name.startswith(("base.", "align.")) for name in found)


def test_the_same_input_gives_the_same_weights_and_leaves_chance_alone(tmp_path):
    weights = {f"model.mm_projector.{name}": value for name, value in baseline().state_dict().items()}
    torch.manual_seed(5)
    first = load_weights(adapt(weights, tmp_path))
    drawn = torch.rand(1)
    torch.manual_seed(6)
    second = load_weights(adapt(weights, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_another_backbone_is_refused_and_its_sizes_named(tmp_path):
    weights = {f"model.mm_projector.{name}": value for name, value in baseline("large").state_dict().items()}
    message = (
        r"swin_type 'base', whose coarsest map has 1024 channels(.|\n)*weights \[8, 1536, 3, 3\], projector \[8, 1024"
    )
    with pytest.raises(ValueError, match=message):
        adapt(weights, tmp_path)
    assert not (tmp_path / "out").exists()


def test_files_without_a_projector_and_other_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no projector among 1 tensors, expected names like 'model\.mm_projector\.fc"):
        adapt({"lm_head.weight": torch.zeros(2, 2)}, tmp_path)
    with pytest.raises(ValueError, match=r"got 'adapted\.bin', expected a file that ends with \.safetensors"):
        adapt_projector(AdaptProjectorSettings(str(tmp_path / "mm_projector.bin"), "adapted.bin"))


def save_baseline(toy, folder: Path, repeats: int) -> "PSALMModel":
    """A model of ours with the baseline projector, narrow but for the published backbone's width, on disk."""
    swin = {**toy.settings().swin, "embed_dim": 128, "num_heads": [4, 8, 16, 32]}
    model = toy.model(swin=swin, projector_type="swin_conv", conv2_repeats=repeats)
    with torch.no_grad():
        for value in model.projector.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand_like(value)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_baseline_that_we_trained_is_adapted_exactly(toy, tmp_path, repeats, caplog):
    trained = save_baseline(toy, tmp_path / "model", repeats)
    output = tmp_path / "adapted.safetensors"
    for source in ("model", "model/model.safetensors"):
        adapt_projector(AdaptProjectorSettings(str(tmp_path / source), str(output), projector=SMALL))
        swin = {**toy.settings().swin, "embed_dim": 128, "num_heads": [4, 8, 16, 32]}
        adapted = toy.model(swin=swin, conv2_repeats=repeats, projector=SMALL, projector_weights=str(output))
        images = maps()
        assert torch.equal(adapted.projector(images).tokens, trained.projector(images[-1]))
    assert "statistics" not in caplog.text
    assert "other tokens" not in caplog.text


def test_our_own_weights_say_how_often_their_convolution_runs(toy, tmp_path):
    save_baseline(toy, tmp_path / "model", 1)
    settings = AdaptProjectorSettings(str(tmp_path / "model"), str(tmp_path / "a.safetensors"), conv2_repeats=2)
    with pytest.raises(ValueError, match=r"conv2_repeats: got 2, but '.*model' was trained with 1; leave it out"):
        adapt_projector(settings)


@pytest.mark.parametrize(("told", "expected"), [(None, "2"), (1, "1")])
def test_bare_weights_take_the_setting_or_the_published_number(tmp_path, told, expected):
    torch.save(baseline().state_dict(), tmp_path / "bare.bin")
    output = tmp_path / "a.safetensors"
    adapt_projector(AdaptProjectorSettings(str(tmp_path / "bare.bin"), str(output), "base", told, SMALL))
    with safe_open(output, framework="pt") as file:
        assert file.metadata()["conv2_repeats"] == expected
