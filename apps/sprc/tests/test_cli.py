"""The command line: help and mistakes without torch, presets, and every flag of the guide."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from region_training.command_line import resolve_settings
from region_training.presets import preset_names
from region_training.settings import ConfigError
from sprc.cli import APPLICATION, main
from sprc.config import Settings
from sprc.verbs import ConvertSettings, ImportBoxesSettings, PredictSettings, SubmitSettings

HEAVY = ("torch", "transformers", "numpy", "deepspeed", "matplotlib", "PIL")
PROGRAM = f"""
import sys
from sprc.cli import main
code = main(sys.argv[1:])
print(sorted(set({HEAVY}) & set(sys.modules)))
sys.exit(code)
"""

# A value for every flag (None is a bare switch), and what it sets.
LEGACY = {
    "--dataset": ("FashionIQ", lambda settings: settings.data.dataset, "FashionIQ"),
    "--num-epochs": ("2", lambda settings: settings.training.num_epochs, 2.0),
    "--num-workers": ("3", lambda settings: settings.training.num_workers, 3),
    "--batch-size": ("7", lambda settings: settings.training.micro_batch_size, 7),
    "--learning-rate": ("3e-6", lambda settings: settings.training.learning_rate, 3e-6),
    "--save-best": (None, lambda settings: settings.evaluation.save_best, True),
    "--box-file": ("b.json", lambda settings: settings.data.box_file, "b.json"),
    "--use-region-loss": (None, lambda settings: settings.model.use_region_loss, True),
    "--loss-region": ("0.25", lambda settings: settings.model.loss_region, 0.25),
    "--loss-align": ("0.3", lambda settings: settings.model.loss_align, 0.3),
    "--loss-rtc": ("0.2", lambda settings: settings.model.loss_rtc, 0.2),
    "--transform": ("squarepad", lambda settings: settings.data.transform, "squarepad"),
    "--output_dir": ("a/run", lambda settings: settings.run_dir, "a/run"),
    "--deepspeed": ("zero.json", lambda settings: settings.training.deepspeed_config, "zero.json"),
}
WITHOUT_EFFECT = {"--blip-model-name": "blip2_cir_align_prompt", "--backbone": "pretrain", "--save-training": None}
GUIDE = (
    *("--dataset", "CIRR", "--blip-model-name", "blip2_cir_align_prompt", "--backbone", "pretrain"),
    *("--num-epochs", "50", "--batch-size", "128", "--learning-rate", "2e-6", "--save-training", "--save-best"),
    *("--use-region-loss", "--loss-region", "0.5", "--loss-align", "0.4", "--loss-rtc", "0.4", "--box-file", "f.json"),
)


def _train(*words: str) -> Settings:
    settings = resolve_settings(APPLICATION, "train", words)
    assert isinstance(settings, Settings)
    return settings


def _given(flag: str, *, spelling: str | None = None) -> list[str]:
    value = LEGACY[flag][0]
    return [spelling or flag, *([] if value is None else [value])]


def _never(settings: Settings) -> None:
    raise AssertionError(f"trains {settings.run_dir}")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["show-config", "train", "--preset", "cirr-region"], 0),
        (["train", "--training.lerning_rate", "1"], 2),
        (["show-config", "train", "--preset", "cirr", "--use-region-loss"], 2),
    ],
)
def test_help_and_mistakes_import_nothing_heavy(words, code):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", APPLICATION.verbs)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert APPLICATION.verbs[verb].help in shown
    for name in APPLICATION.verbs[verb].positional:
        assert name in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--preset", "cirr", "--use-region-loss"],
            "model.use_region_loss needs boxes: set data.box_file (--box-file)",
        ),
        (["--dataset", "COCO"], "data.dataset is 'COCO' (from --dataset), expected CIRR | FashionIQ | OACIRR"),
        (["--model.use_regoin_loss", "true"], "(did you mean '--model.use_region_loss'?)"),
        (["--loss-region", "much"], "model.loss_region is 'much' (from --loss-region)"),
        (["--model.region_loss", '{"heat": 0.1}'], "unknown setting 'model.region_loss.heat'"),
        (["--model.region_loss.temperature", "0"], "temperature must be at least"),
        (["--model.region_mode", "cls"], "expected qformer | tokens | value"),
        (["--model.blip2", "a", "--model.checkpoint", "b"], "not both"),
        (["--box-file"], "--box-file needs a value"),
        (["--preset", "big"], "no preset 'big'"),
    ],
)
def test_a_mistake_is_named_with_its_key(capsys, monkeypatch, words, message):
    monkeypatch.setattr("sprc.train.train", _never)
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sprc: ")
    assert message in error
    assert "Traceback" not in error


def test_the_table_above_has_every_flag():
    assert set(LEGACY) == {flag for flag, target in APPLICATION.legacy_flags.items() if target is not None}
    assert set(WITHOUT_EFFECT) == {flag for flag, target in APPLICATION.legacy_flags.items() if target is None}


@pytest.mark.parametrize("flag", LEGACY)
def test_a_flag_of_the_guide_sets_its_key(flag):
    _, read, expected = LEGACY[flag]
    assert read(_train(*_given(flag))) == expected
    assert read(_train(*_given(flag, spelling=flag[:2] + flag[2:].replace("-", "_")))) == expected
    assert read(_train()) != expected


def test_the_command_of_the_guide_works_as_it_stands():
    """S1, S2, S3, S4."""
    settings = _train(*GUIDE)
    assert settings.data.dataset == "CIRR"
    assert settings.data.box_file == "f.json"
    assert settings.training.num_epochs == 50
    assert settings.training.micro_batch_size == 128
    assert settings.training.learning_rate == 2e-6
    assert settings.evaluation.save_best
    assert settings.model.use_region_loss
    assert (settings.model.loss_region, settings.model.loss_align, settings.model.loss_rtc) == (0.5, 0.4, 0.4)


def test_switches_may_carry_their_value():
    assert not _train("--use-region-loss", "False").model.use_region_loss
    assert not _train("--save-best=false").evaluation.save_best


def test_flags_without_effect_warn_by_name(tmp_path, caplog, monkeypatch):
    trained = []
    monkeypatch.setattr("sprc.train.train", trained.append)
    with caplog.at_level(logging.WARNING):
        assert main(["train", *GUIDE, "--output_dir", str(tmp_path)]) == 0
    (settings,) = trained
    assert settings.model.use_region_loss
    warned = [record.getMessage() for record in caplog.records if "has no effect here" in record.getMessage()]
    assert warned == [f"{flag} is known from the guide and has no effect here" for flag in WITHOUT_EFFECT]


@pytest.mark.parametrize("preset", preset_names("sprc.configs"))
def test_every_preset_resolves(preset, capsys):
    settings = _train("--preset", preset)
    assert settings.run_dir == f"runs/sprc-{preset}"
    assert main(["show-config", "train", "--preset", preset]) == 0
    assert f"num_query_tokens: {settings.model.num_query_tokens}" in capsys.readouterr().out


def test_the_presets_are_the_published_recipes():
    cirr, regions, fashioniq = (_train("--preset", name) for name in ("cirr", "cirr-region", "fashioniq"))
    for settings, epochs, rate in ((cirr, 50, 1e-5), (regions, 50, 1e-5), (fashioniq, 30, 2e-5)):
        training = settings.training
        assert (training.num_epochs, training.learning_rate, training.micro_batch_size) == (epochs, rate, 128)
        assert (training.adam_beta2, training.adam_epsilon, training.weight_decay) == (0.98, 1e-7, 0.05)
    # S13: the second stage begins in the same run.
    assert regions.model.use_region_loss
    assert regions.model.region_loss.start_epoch == 30
    assert not cirr.model.use_region_loss


def test_bare_words_are_what_they_stand_for():
    predicted = resolve_settings(
        APPLICATION, "predict", ["runs/x", "--image", "a.png", "--text", "is red", "--gallery", "g"]
    )
    assert predicted == PredictSettings(model="runs/x", image="a.png", text="is red", gallery="g")
    assert resolve_settings(APPLICATION, "submit", ["runs/x"]) == SubmitSettings(run="runs/x")
    assert resolve_settings(APPLICATION, "import-boxes", ["a", "b"]) == ImportBoxesSettings(source="a", output="b")
    assert resolve_settings(APPLICATION, "convert", ["a", "b"]) == ConvertSettings(source="a", output="b")


def test_make_data_writes_the_layout_that_is_asked_for(tmp_path):
    sizes = ["--world.train_scenes", "3", "--world.eval_scenes", "3", "--world.edits", "2", "--world.image_size", "32"]
    assert main(["make-data", str(tmp_path), *sizes]) == 0
    assert (Path(tmp_path) / "cirr/captions/cap.rc2.test1.json").is_file()


def test_an_unknown_key_of_a_section_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="num_layers"):
        _train("--model.region_loss", '{"num_layers": 2}')
