"""The command line: help and mistakes without torch, presets, and every flag of the guide."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from region_training.command_line import resolve_settings
from region_training.presets import preset_names
from region_training.settings import ConfigError
from spatialrgpt.cli import APPLICATION, main
from spatialrgpt.config import Settings

HEAVY = ("torch", "transformers", "numpy", "deepspeed", "matplotlib", "PIL")
PROGRAM = f"""
import sys
from spatialrgpt.cli import main
code = main(sys.argv[1:])
print(sorted(set({HEAVY}) & set(sys.modules)))
sys.exit(code)
"""

# A value for every flag, and what it sets.
LEGACY = {
    "--enable_region": ("False", lambda settings: settings.model.enable_region, False),
    "--enable_depth": ("False", lambda settings: settings.model.enable_depth, False),
    "--enable_region_enhancer": ("False", lambda settings: settings.model.enable_region_enhancer, False),
    "--region_enhancer_cfg": (
        '{"num_heads": 2, "dropout": 0.25}',
        lambda settings: (settings.model.region_enhancer_cfg.num_heads, settings.model.region_enhancer_cfg.dropout),
        (2, 0.25),
    ),
    "--enable_region_heads": ("False", lambda settings: settings.model.enable_region_heads, False),
    "--tune_region_heads": ("False", lambda settings: settings.model.tune_region_heads, False),
    "--region_heads_cfg": (
        '{"counting": {"enabled": false}}',
        lambda settings: (
            settings.model.region_heads_cfg.counting.enabled,
            settings.model.region_heads_cfg.distance.enabled,
        ),
        (False, True),
    ),
    "--model_name_or_path": ("a/folder", lambda settings: settings.model.checkpoint, "a/folder"),
    "--learning_rate": ("3e-5", lambda settings: settings.training.learning_rate, 3e-5),
    "--num_train_epochs": ("2", lambda settings: settings.training.num_epochs, 2.0),
    "--max_steps": ("7", lambda settings: settings.training.max_steps, 7),
    "--per_device_train_batch_size": ("3", lambda settings: settings.training.micro_batch_size, 3),
    "--gradient_accumulation_steps": ("5", lambda settings: settings.training.gradient_accumulation_steps, 5),
    "--output_dir": ("a/run", lambda settings: settings.run_dir, "a/run"),
    "--deepspeed": ("zero.json", lambda settings: settings.training.deepspeed_config, "zero.json"),
}


def _train(*words: str) -> Settings:
    settings = resolve_settings(APPLICATION, "train", words)
    assert isinstance(settings, Settings)
    return settings


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["predict", "--help"], 0),
        (["show-config"], 0),
        (["train", "--training.lerning_rate", "1"], 2),
        (["train", "--training.seed", "many"], 2),
        (["train", "--region_heads_cfg", '{"max_count": "many"}'], 2),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(words, code):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.enable_regoin", "true"], "(did you mean '--model.enable_region'?)"),
        (["--model.enable_region", "perhaps"], "--model.enable_region is 'perhaps', expected true | false"),
        (["--model.refinement_stages", "2.5"], "model.refinement_stages is '2.5'"),
        (["--data.on_error", "ignore"], "data.on_error is 'ignore' (from --data.on_error), expected raise | skip"),
        (["--training.zero_stage", "4"], "training.zero_stage is '4'"),
        (["--region_heads_cfg", '{"conting": {}}'], "unknown setting 'model.region_heads_cfg.conting'"),
        (["--region_heads_cfg", "few"], "--region_heads_cfg: got str, expected a mapping"),
        (["--region_heads_cfg", '{"counting": {"dropout": 2}}'], "dropout must lie in [0, 1), got 2"),
        (["--region_enhancer_cfg", '{"activation": "tanh"}'], "expected one of gelu, relu, silu, got 'tanh'"),
        (["--preset", "big"], "no preset 'big'"),
        (["--model.vision.config", '{"hidden_size": 8}', "--preset", "tiny", "--model.vision.pretrained", "x"], "both"),
    ],
)
def test_a_mistake_is_named_with_its_key(capsys, words, message):
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("spatialrgpt: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  region_heads_cfg:\n    conting: {}\n", "unknown setting 'model.region_heads_cfg.conting'"),
        ("model:\n  text:\n    config: {hidden_size: 8}\n", "needs `model_type`"),
        ("data:\n  synthetic: {train_scenes: few}\n", "data.synthetic.train_scenes is 'few' (from "),
        ("trainig: {}\n", "unknown setting 'trainig' (did you mean 'training'?)"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_key(tmp_path, capsys, text, message):
    (tmp_path / "my.yaml").write_text(text)
    assert main(["train", "--config", str(tmp_path / "my.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_the_table_above_has_every_flag_that_sets_something():
    assert set(LEGACY) == {flag for flag, target in APPLICATION.legacy_flags.items() if target is not None}


@pytest.mark.parametrize("flag", LEGACY)
def test_a_flag_of_the_guide_sets_its_key(flag):
    value, read, expected = LEGACY[flag]
    assert read(_train(flag, value)) == expected
    assert read(_train(f"{flag.replace('_', '-')}={value}")) == expected
    assert read(_train()) != expected


def test_a_section_keeps_the_keys_that_a_flag_does_not_name():
    before, after = _train(), _train("--region_heads_cfg", '{"counting": {"enabled": false}}')
    assert after.model.region_heads_cfg.counting.dropout == before.model.region_heads_cfg.counting.dropout
    assert after.model.region_heads_cfg.hidden_dim == before.model.region_heads_cfg.hidden_dim == 128
    assert after.model.region_heads_cfg.distance == before.model.region_heads_cfg.distance


@pytest.mark.parametrize("flag", [flag for flag, target in APPLICATION.legacy_flags.items() if target is None])
def test_a_flag_without_effect_warns_by_name(tmp_path, caplog, monkeypatch, flag):
    monkeypatch.setattr("spatialrgpt.train.train", lambda settings: None)
    with caplog.at_level(logging.WARNING):
        assert main(["train", flag, "True", "--run_dir", str(tmp_path)]) == 0
    assert f"{flag} is known from the guide and has no effect here" in caplog.text


@pytest.mark.parametrize("preset", preset_names("spatialrgpt.configs"))
def test_every_preset_resolves(preset):
    settings = _train("--preset", preset)
    assert settings.run_dir == f"runs/spatialrgpt-{preset}"


def test_make_data_writes_a_world_once(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("spatialrgpt.synthetic.write_world", lambda root, world: written.append((root, world)))
    assert main(["make-data", str(tmp_path), "--world.train_scenes", "3"]) == 0
    ((root, world),) = written
    assert root == Path(tmp_path)
    assert world.train_scenes == 3


def test_an_unknown_key_of_a_section_is_refused_before_anything_runs():
    """T31."""
    with pytest.raises(ConfigError, match="num_layers"):
        _train("--region_enhancer_cfg", '{"num_layers": 2}')
