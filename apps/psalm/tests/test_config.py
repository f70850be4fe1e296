"""Settings that contradict each other are refused when they are resolved; what is not given stays open."""

import pytest
from psalm.cli import APPLICATION
from psalm.config import DataSettings, ModelSettings, Settings
from region_training.command_line import resolve_settings
from region_training.settings import ConfigError


def resolve(*words: str) -> Settings:
    settings = resolve_settings(APPLICATION, "train", words)
    assert isinstance(settings, Settings)
    return settings


def test_published_weights_of_another_size_are_refused_before_they_are_loaded():
    message = (
        r"model\.swin_type \(--swin_type\) is 'large', but model\.mask2former .*swin-base-IN21k.*'base'; change one"
    )
    with pytest.raises(ConfigError, match=message):
        resolve("--preset", "deformable", "--swin_type", "large")
    with pytest.raises(ConfigError, match=r"is 'base', but .*backbone is 'tiny'"):
        resolve("--preset", "deformable", "--vision_tower", "facebook/mask2former-swin-tiny-coco-instance")


@pytest.mark.parametrize(
    "mask2former", ["facebook/mask2former-swin-large-coco-panoptic", "models/mask2former-swin-base", "a.pkl", None]
)
def test_weights_of_the_size_or_of_no_published_name_are_taken(mask2former):
    assert ModelSettings(swin_type="large", mask2former=mask2former).mask2former == mask2former


def test_a_backbone_of_ones_own_size_is_not_compared():
    swin = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    tiny = "facebook/mask2former-swin-tiny-coco-panoptic"
    assert ModelSettings(swin=swin, mask2former=tiny).swin == swin


@pytest.mark.parametrize(("asked", "wanted"), [(None, True), (True, True), (False, False)])
def test_pairs_are_wanted_unless_they_are_refused(asked, wanted):
    assert ("cross_image" in DataSettings(cross_image_seg_task=asked).wanted_modes) is wanted
