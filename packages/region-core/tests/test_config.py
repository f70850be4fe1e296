import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from region_core import RegionEnhancerConfig


def test_defaults_are_the_guides():
    settings = RegionEnhancerConfig()
    assert (settings.num_heads, settings.num_transformer_layers, settings.num_cross_attn_layers) == (8, 6, 1)
    assert (settings.dropout, settings.activation) == (0.1, "gelu")


def test_partial_dictionaries_keep_the_other_defaults():  # T32
    assert RegionEnhancerConfig.from_dict({}) == RegionEnhancerConfig()
    assert RegionEnhancerConfig.from_dict({"dropout": 0}) == RegionEnhancerConfig(dropout=0.0)


def test_unknown_keys_are_errors_with_a_hint():  # T31
    with pytest.raises(ValueError, match=r"unknown key 'num_head' \(did you mean 'num_heads'\?\)"):
        RegionEnhancerConfig.from_dict({"num_head": 4})
    with pytest.raises(ValueError, match="unknown key 'zzz'; known keys are num_heads, num_transformer_layers"):
        RegionEnhancerConfig.from_dict({"zzz": 4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_heads": 0}, "num_heads: expected a whole number of at least 1, got 0"),
        ({"num_heads": True}, "num_heads: expected a whole number of at least 1, got True"),
        ({"num_transformer_layers": -1}, "num_transformer_layers: expected a whole number of at least 0, got -1"),
        ({"num_cross_attn_layers": -1}, "num_cross_attn_layers: expected a whole number of at least 0, got -1"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"activation": "tanh"}, "activation: expected one of gelu, relu, silu, got 'tanh'"),
    ],
)
def test_values_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        RegionEnhancerConfig.from_dict(values)


def test_settings_are_frozen():  # T32: no shared mutable default
    with pytest.raises(FrozenInstanceError):
        setattr(RegionEnhancerConfig(), "num_heads", 4)  # noqa: B010  # the plain statement is a type error


def test_settings_do_not_import_torch():
    command = "import region_core.config, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
