"""The configuration: what is derived, what is refused, and that it survives a JSON file."""

import json
from typing import Any

import pytest
from psalm.configuration import SWIN_SIZES, PSALMConfig
from transformers import AutoConfig, Mask2FormerConfig, SwinConfig

SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
LANGUAGE = {
    "model_type": "phi",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
MASK = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 4}


def small(**changes: Any) -> PSALMConfig:
    values: dict[str, Any] = {"swin_config": SWIN, "language_config": LANGUAGE, "mask_config": MASK, "image_size": 96}
    return PSALMConfig(**(values | changes))


def test_what_must_agree_is_derived():
    config = small(num_mask_queries=7)
    assert config.swin.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert config.swin.image_size == 96
    assert config.vision_dims == [16, 32, 64, 128]
    assert config.coarsest_stride == 32
    assert config.hidden_size == 32
    assert config.mask.num_queries == 7
    assert config.mask.backbone_config is config.swin
    assert config.directions == ("target_to_reference", "reference_to_target")


@pytest.mark.parametrize(("side", "rows"), [(32, 1), (64, 1), (96, 2), (160, 3), (1024, 16)])
def test_image_tokens_are_half_the_coarsest_map_rounded_up(side, rows):
    config = small(image_size=side)
    assert config.image_grid == (rows, rows)
    assert config.num_image_tokens == rows * rows


@pytest.mark.parametrize(("size", "dims"), [("base", [128, 256, 512, 1024]), ("large", [192, 384, 768, 1536])])
def test_published_sizes_switch_all_that_depends_on_them(size, dims):
    config = small(swin_config={**SWIN_SIZES[size], "window_size": 12}, image_size=1024)
    assert config.vision_dims == dims
    assert config.num_image_tokens == 256


def test_a_saved_configuration_opens_equal(tmp_path):
    config = small(
        projector_config={"hidden_dim": 16, "num_heads": 2},
        criterion_config={"num_points": 10},
        cross_image=["reference_to_target"],
        projector_outdim=32,
    )
    config.save_pretrained(tmp_path)
    opened = AutoConfig.from_pretrained(tmp_path)
    assert type(opened) is PSALMConfig
    assert isinstance(opened.swin, SwinConfig)
    assert isinstance(opened.mask, Mask2FormerConfig)
    assert opened.language.model_type == "phi"
    assert (opened.projector, opened.criterion) == (config.projector, config.criterion)
    assert (opened.directions, opened.vision_dims) == (("reference_to_target",), config.vision_dims)
    opened.save_pretrained(tmp_path / "again")
    first, second = ((folder / "config.json").read_text() for folder in (tmp_path, tmp_path / "again"))
    assert json.loads(first) == json.loads(second)


def test_without_sampling_the_images_cannot_look_at_each_other():
    assert small(projector_type="swin_conv").directions == ()
    with pytest.raises(ValueError, match=r"target_to_reference needs projector_type 'deformable'.*got 'swin_conv'"):
        small(projector_type="swin_conv", cross_image=["target_to_reference"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # The guide says 2560 for Phi-3, whose width is 3072 (trap 1).
        ({"projector_outdim": 2560}, r"--projector_outdim\) is 2560.*\(phi\) has a hidden size of 32"),
        ({"projector_config": {"hidden_dim": 20, "num_heads": 8}}, "--mm_hidden_dim"),  # trap 2
        ({"mask_config": {**MASK, "num_attention_heads": 5}}, "multiples of num_attention_heads, 5"),
        ({"mask_config": {**MASK, "feature_size": 48}}, "multiples of 32"),
        ({"swin_config": {**SWIN, "num_heads": [1, 3, 2, 4]}}, "3 heads do not divide the 32 channels of stage 2"),
        ({"swin_config": {**SWIN, "depths": [1, 1], "num_heads": [1, 1]}}, "expected four stages"),
        ({"image_size": 100}, "multiple of the backbone's coarsest stride, 32 pixels, got 100"),
        ({"projector_type": "linear"}, "projector_type: expected one of .*'linear'"),
        ({"fpn_variant": "detectron2"}, "fpn_variant"),
        ({"conv2_repeats": 3}, "conv2_repeats"),
        ({"cross_image": ["both"]}, "cross_image: expected names of target_to_reference"),
        ({"num_mask_queries": 0}, "num_mask_queries"),
        ({"criterion_config": {"num_points": 0}}, "num_points"),
    ],
)
def test_what_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_misspelt_keys_of_our_own_sections_are_refused():
    with pytest.raises(TypeError, match="hiden_dim"):
        small(projector_config={"hiden_dim": 16})
