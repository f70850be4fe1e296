import dataclasses
import subprocess
import sys

import pytest
from region_heads import HeadConfig, RegionHeadsConfig, TaskType


def test_defaults_are_the_guides() -> None:
    config = RegionHeadsConfig()
    for task in TaskType:
        assert (config.head(task).enabled, config.head(task).dropout, config.head(task).weight) == (True, 0.1, 1.0)
    assert (config.distance_loss, config.counting_loss) == ("mse", "cross_entropy")


def test_partial_mappings_are_merged_into_the_defaults() -> None:  # T32
    config = RegionHeadsConfig.from_dict({"distance": {"dropout": 0.3}, "counting": {"enabled": False}, "max_count": 8})
    assert config.distance == HeadConfig(enabled=True, dropout=0.3)
    assert config.counting == HeadConfig(enabled=False, dropout=0.1)
    assert config.left_right == HeadConfig()
    assert config.max_count == 8
    assert RegionHeadsConfig.from_dict(None) == RegionHeadsConfig.from_dict({}) == RegionHeadsConfig()


def test_a_mapping_made_of_a_config_gives_the_config_back() -> None:
    config = RegionHeadsConfig.from_dict({"left_right": {"weight": 2}, "distance_loss": "log_huber"})
    assert RegionHeadsConfig.from_dict(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distanc_e": {}}, r"unknown key 'distanc_e' in region heads.*did you mean 'distance'"),
        ({"counting": {"dropuot": 0.1}}, r"unknown key 'dropuot' in region heads.counting.*did you mean 'dropout'"),
        ({"counting": {"dropout": 1.0}}, r"region heads\.counting: dropout must lie in \[0, 1\), got 1.0"),
        ({"counting": {"dropout": "0.1"}}, r"region heads\.counting: dropout must be a number, got '0.1'"),
        ({"counting": {"enabled": "yes"}}, r"region heads\.counting: enabled must be true or false, got 'yes'"),
        ({"counting": {"weight": float("nan")}}, r"region heads\.counting: weight must be a finite number"),
        ({"counting": True}, r"counting must be a mapping"),
        ({"distance_loss": "l1"}, r"distance_loss must be one of .*, got 'l1'"),
        ({"counting_loss": "mse"}, r"counting_loss must be one of .*, got 'mse'"),
        ({"distance_std_m": 0.0}, r"distance_std_m must be above 0"),
        ({"max_count": 0}, r"max_count must be a finite number of at least 1, got 0"),
        ({"max_count": True}, r"max_count must be a number, got True"),
        ({"hidden_dim": 64.0}, r"hidden_dim must be a whole number"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionHeadsConfig.from_dict(values)


def test_settings_and_routing_do_not_import_torch() -> None:
    code = "import region_heads.config, region_heads.routing, region_heads.labels, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
