import subprocess
import sys

import pytest
from region_training.settings import ConfigError, TrainingSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("num_epochs", 0.0),
        ("max_steps", 0),
        ("micro_batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", -1e-3),
        ("weight_decay", float("inf")),
        ("adam_beta1", 1.0),
        ("adam_beta2", -0.1),
        ("adam_epsilon", 0.0),
        ("warmup", -1.0),
        ("warmup", 1.5),
        ("max_grad_norm", -1.0),
        ("log_every", 0),
        ("save_every", -1),
        ("evaluate_every", -1),
        ("keep_checkpoints", 0),
        ("num_workers", -1),
        ("resume", ""),
        ("communication_timeout_s", 0.0),
        ("frozen_parts", ["tower", "tower"]),
    ],
)
def test_a_value_that_cannot_work_is_named(name, value):
    with pytest.raises(ConfigError, match=rf"training\.{name}: got .*, expected"):
        TrainingSettings(**{name: value})


def test_a_choice_that_does_not_exist_is_named():
    """In a process of its own: here the type checker of the tests would be faster."""
    code = """
from region_training.settings import ConfigError, TrainingSettings
for name, value in {"scheduler": "steps", "precision": "fp16", "device": "tpu", "zero_stage": 4}.items():
    try:
        TrainingSettings(**{name: value})
    except ConfigError as error:
        print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [
        "training.scheduler: got 'steps', expected cosine, linear or constant",
        "training.precision: got 'fp16', expected auto, bf16 or fp32",
        "training.device: got 'tpu', expected auto, cpu or cuda",
        "training.zero_stage: got 4, expected 0, 1, 2 or 3",
    ]


def test_learning_rates_of_parts_are_checked():
    with pytest.raises(ConfigError, match=r"part_learning_rates\.heads: got -1"):
        TrainingSettings(part_learning_rates={"heads": -1.0})
    with pytest.raises(ConfigError, match=r"rates for \['tower'\], which training.frozen_parts freezes"):
        TrainingSettings(part_learning_rates={"tower": 1.0}, frozen_parts=["tower"])


def test_defaults_and_edges_are_legal():
    TrainingSettings()
    TrainingSettings(warmup=100.0, save_every=0, max_grad_norm=0.0, learning_rate=0.0, num_epochs=0.01)


def test_the_module_needs_no_torch():
    code = "import region_training.settings, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
