import pytest
from roi_region_loss import RegionLossConfig
from roi_region_loss.config import _check_choice


def test_defaults():
    config = RegionLossConfig()
    assert (config.temperature, config.max_scale, config.negatives) == (0.07, 100.0, "cross_region")
    assert (config.overlap_iou, config.overlap_containment) == (0.5, 0.8)
    assert (config.min_visible, config.min_side_cells, config.max_pairs_per_triplet) == (0.3, 0.5, 4)
    assert (config.pairing, config.use_changed_pairs) == ("auto", False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_scale": 0.5}, "max_scale must be a finite number of at least 1, got 0.5"),
        ({"temperature": 0.001}, r"temperature must be at least 1 / max_scale = 0\.01 and finite, got 0\.001"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"overlap_iou": 1.5}, r"overlap_iou must lie in \[0, 1\], got 1.5"),
        ({"min_visible": float("nan")}, r"min_visible must lie in \[0, 1\], got nan"),
        ({"min_side_cells": -1.0}, "min_side_cells must be a finite number of at least 0, got -1.0"),
        ({"max_pairs_per_triplet": 0}, "max_pairs_per_triplet must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionLossConfig(**settings)


def test_an_unknown_choice_is_named():
    # In these tests the types are checked before the configuration can check itself.
    with pytest.raises(ValueError, match="pairing must be one of auto, label, index, got 'order'"):
        _check_choice("pairing", "order", ("auto", "label", "index"))
