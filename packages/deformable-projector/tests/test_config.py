import subprocess
import sys
from typing import get_args

import pytest
from deformable_projector import DeformableProjectorConfig, SamplingBackend
from deformable_projector.config import check_choice


def test_defaults_are_those_of_the_guide():
    config = DeformableProjectorConfig()
    assert (config.hidden_dim, config.num_heads, config.num_points) == (256, 8, 4)
    assert config.reference_points == "grid"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_dim": 250, "num_heads": 8}, r"--mm_hidden_dim\) must be a multiple of num_heads \(--mm_n_heads"),
        ({"hidden_dim": 6, "num_heads": 3}, "multiple of 4"),
        ({"hidden_dim": 0}, r"hidden_dim \(--mm_hidden_dim\) must be at least 1, got 0"),
        ({"num_heads": 0}, "--mm_n_heads"),
        ({"num_points": 0}, "--mm_n_points"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"similarity_temperature": 0.0}, "above 0"),
        ({"similarity_temperature": float("nan")}, "above 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        DeformableProjectorConfig(**settings)


def test_choices_are_listed():
    with pytest.raises(ValueError, match="backend must be one of auto, reference, bags, got 'cuda'"):
        check_choice("backend", "cuda", get_args(SamplingBackend))


def test_settings_do_not_import_torch():
    code = "from deformable_projector import DeformableProjectorConfig; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
