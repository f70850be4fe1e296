"""The model's configuration: strict about the guides' dictionaries, the same after a round trip."""

import json

import pytest
from region_core.config import RegionEnhancerConfig
from region_heads.config import RegionHeadsConfig
from spatialrgpt.configuration import SpatialRGPTConfig
from transformers import AutoConfig

VISION = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "hidden_size": 16}
TEXT = {"model_type": "llama", "hidden_size": 32, "vocab_size": 64}


def config(**changes: object) -> SpatialRGPTConfig:
    return SpatialRGPTConfig(**({"vision_config": VISION, "text_config": TEXT} | changes))


def test_the_parts_are_configurations_of_their_own():
    made = config()
    assert (made.vision.model_type, made.vision.hidden_size) == ("siglip_vision_model", 16)
    assert (made.text.model_type, made.text.hidden_size) == ("llama", 32)
    assert made.hidden_size == 32  # what DeepSpeed's automatic bucket sizes read


@pytest.mark.parametrize("key", ["region_enhancer_cfg", "region_heads_cfg"])
def test_an_unknown_key_in_a_guides_dictionary_is_refused(key):  # T31
    with pytest.raises(ValueError, match=r"unknown key 'num_haeds'"):
        config(**{key: {"num_haeds": 4}})


def test_an_unknown_key_inside_a_head_is_refused():  # T31
    with pytest.raises(ValueError, match=r"unknown key 'enable'.*did you mean 'enabled'"):
        config(region_heads_cfg={"counting": {"enable": False}})


def test_partial_dictionaries_are_completed_with_the_guides_defaults():  # T32
    made = config(region_enhancer_cfg={"num_heads": 4}, region_heads_cfg={"distance": {"enabled": False}})
    assert made.region_enhancer_cfg == {
        "num_heads": 4,
        "num_transformer_layers": 6,
        "num_cross_attn_layers": 1,
        "dropout": 0.1,
        "activation": "gelu",
    }
    assert made.region_heads_cfg["distance"] == {"enabled": False, "dropout": 0.1, "weight": 1.0}
    assert made.region_heads_cfg["counting"] == {"enabled": True, "dropout": 0.1, "weight": 1.0}
    assert made.enhancer == RegionEnhancerConfig(num_heads=4)
    assert made.heads == RegionHeadsConfig.from_dict({"distance": {"enabled": False}})


def test_defaults_are_not_shared_between_configurations():  # T32
    first, second = config(), config()
    first.region_enhancer_cfg["num_heads"] = 1
    assert second.region_enhancer_cfg["num_heads"] == 8


def test_the_guides_switches_have_the_guides_defaults():
    made = config()
    assert made.enable_region_enhancer is True
    assert made.enable_region_heads is False
    assert made.enable_region is True
    assert made.enable_depth is True


def test_json_and_back_is_the_same_configuration(tmp_path):
    made = config(
        region_enhancer_cfg={"dropout": 0.0},
        region_heads_cfg={"counting": {"weight": 2.0}, "max_count": 7},
        enable_region_heads=True,
        image_token_id=5,
        refine_depth=True,
    )
    through_json = SpatialRGPTConfig.from_dict(json.loads(made.to_json_string()))
    assert through_json.to_dict() == made.to_dict()
    made.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, SpatialRGPTConfig)
    assert loaded.heads == made.heads
    assert loaded.enhancer == made.enhancer
    assert loaded.text.to_dict() == made.text.to_dict()
    assert loaded.vision.to_dict() == made.vision.to_dict()
    assert loaded.image_token_id == 5


def test_grids_follow_from_the_towers_input():
    made = config(refinement_stages=2, projector_downsample=3)
    assert made.image_size == (32, 32)
    assert made.grid == (4, 4)
    assert made.region_grid == (16, 16)
    assert made.num_image_tokens == 4  # 4 / 3 rounded up, squared


def test_grids_of_an_input_that_is_not_square():
    vision = {"model_type": "vit", "image_size": [24, 40], "patch_size": [8, 10]}
    made = config(vision_config=vision, refinement_stages=1, projector_downsample=2)
    assert made.image_size == (24, 40)
    assert made.grid == (3, 4)
    assert made.region_grid == (6, 8)
    assert made.num_image_tokens == 2 * 2
