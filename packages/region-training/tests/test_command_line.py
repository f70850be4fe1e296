import logging
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from region_training.command_line import Application, Verb, main, resolve_settings
from region_training.settings import ConfigError, TrainingSettings

TINY = "model:\n  heads: {hidden: 32}\n  sizes: {small: 1}\ntraining:\n  learning_rate: 1e-3\n"
PRESETS = {"__init__.py": "", "tiny.yaml": TINY, "large.yaml": "model: {kind: deformable}\n"}


@dataclass(frozen=True)
class Heads:
    """Typed heads.

    Attributes:
        hidden: Width of the hidden layer.
    """

    hidden: int = 64


@dataclass(frozen=True)
class Model:
    """The model. With a second sentence.

    Attributes:
        kind: Which one.
    """

    heads: Heads | None = None
    kind: Literal["plain", "deformable"] = "plain"
    switch: bool = False
    names: list[str] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSettings:
    """What `train` needs.

    Attributes:
        run_dir: The run folder.
    """

    run_dir: str = ""
    model: Model = field(default_factory=Model)
    training: TrainingSettings = field(default_factory=TrainingSettings)


@dataclass(frozen=True)
class EvaluateSettings:
    """What `evaluate` needs.

    Attributes:
        run: The run folder.
    """

    run: str
    images: list[str] = field(default_factory=list)
    split: str = "val"


@dataclass(frozen=True)
class FailSettings:
    """What `fail` needs."""

    how: Literal["value", "file", "code", "interrupt", "bug"] = "value"


def fail(settings: FailSettings) -> int:
    if settings.how == "value":
        raise ValueError("the record is bad")
    if settings.how == "file":
        Path("/nowhere/at/all").read_text()
    if settings.how == "interrupt":
        raise KeyboardInterrupt
    if settings.how == "bug":
        raise RuntimeError("a fault of the code")
    return 7


@pytest.fixture
def calls():
    return []


@pytest.fixture
def toy(tmp_path, monkeypatch, calls):
    package = tmp_path / "toy_configs"
    package.mkdir()
    for name, text in PRESETS.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "toy_configs", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("REGION_TRAINING_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    verbs = {
        "train": Verb(calls.append, TrainSettings, "train a model", presets=True, run_key="run_dir"),
        "evaluate": Verb(calls.append, EvaluateSettings, "evaluate a run", positional=("run", "images")),
        "fail": Verb(fail, FailSettings, "go wrong"),
    }
    legacy = {
        "--enable_switch": "model.switch",
        "--mm_projector_type": "model.kind",
        "--learning_rate": "training.learning_rate",
        "--bf16": "training.precision=bf16",
        "--mmconv_path": None,
        "--report_to": "training.report_to",
    }
    yield Application("toy", "A toy.", verbs, "toy_configs", legacy)
    root = logging.getLogger()
    for handler in [known for known in root.handlers if known.get_name() == "command line"]:
        root.removeHandler(handler)


def train(toy, *words):
    return resolve_settings(toy, "train", words)


def test_train_alone_uses_the_tiny_preset(toy, calls):
    assert main(toy, ["train"]) == 0
    (settings,) = calls
    assert settings.model == Model(heads=Heads(32), sizes={"small": 1.0})
    assert settings.training.learning_rate == 1e-3
    assert settings.run_dir == "runs/toy-tiny"


def test_sources_rise_from_preset_over_files_to_options(toy, tmp_path):
    (tmp_path / "one.yaml").write_text("training: {seed: 1, learning_rate: 2e-4}\nmodel: {names: [a]}\n")
    (tmp_path / "two.yaml").write_text("training: {seed: 2}\n")
    settings = train(toy, "--training.seed", "3", "--config", "one.yaml", "--preset=tiny", "--config", "two.yaml")
    assert (settings.training.seed, settings.training.learning_rate) == (3, 2e-4)
    assert settings.model.heads == Heads(32)
    assert settings.run_dir == "runs/toy-two"


def test_a_file_alone_stands_on_the_defaults_unless_it_names_a_preset(toy, tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {seed: 1}\n")
    assert train(toy, "--config", "mine.yaml").model == Model()
    assert train(toy, "--config", "mine.yaml").run_dir == "runs/toy-mine"
    (tmp_path / "mine.yaml").write_text("preset: large\ntraining: {seed: 1}\n")
    assert train(toy, "--config", "mine.yaml").model == Model(kind="deformable")
    (tmp_path / "mine.yaml").write_text("preset: larrge\n")
    with pytest.raises(ConfigError, match=r"no preset 'larrge' \(did you mean 'large'\?\)"):
        train(toy, "--config", "mine.yaml")


def test_a_run_folder_that_is_given_stays(toy):
    assert train(toy, "--run_dir", "elsewhere").run_dir == "elsewhere"
    assert train(toy, "--preset", "large").run_dir == "runs/toy-large"


@pytest.mark.parametrize(
    "words",
    [
        ["--training.learning_rate", "1e-4"],
        ["--training.learning_rate=1e-4"],
        ["--training.learning-rate", "1e-4"],
        ["--learning_rate", "1e-4"],
        ["--learning-rate=1e-4"],
    ],
)
def test_a_number_may_be_spelled_in_five_ways(toy, words):  # T33
    assert train(toy, *words).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.switch"], True),
        (["--model.switch", "--training.seed", "1"], True),
        (["--model.switch", "False"], False),
        (["--model.switch=true"], True),
        (["--enable_switch", "True"], True),
        (["--enable_switch=True"], True),
        (["--enable-switch"], True),
        (["--enable-switch", "no"], False),
    ],
)
def test_switches_take_a_word_or_stand_alone(toy, words, expected):
    assert train(toy, *words).model.switch is expected


def test_lists_dicts_and_sections_from_the_command_line(toy):  # T33
    settings = train(
        toy,
        *("--model.names+", "a", "--model.names+=b", "--model.sizes.big", "2e1"),
        *("--training.frozen_parts", "[x, y]", "--training.part_learning_rates", "{x1: 1e-3}"),
    )
    assert settings.model.names == ["a", "b"]
    assert settings.model.sizes == {"small": 1.0, "big": 20.0}
    assert settings.training.frozen_parts == ["x", "y"]
    assert settings.training.part_learning_rates == {"x1": 1e-3}
    assert train(toy, "--model.heads", "null").model.heads is None
    assert train(toy, "--preset=large", "--model.heads.hidden", "5").model.heads == Heads(5)
    assert train(toy, "--training.max_steps", "-1").training.max_steps == -1


def test_the_guides_flags(toy, calls, caplog):
    words = ["train", "--mm-projector-type", "deformable", "--mmconv_path", "a/b", "--bf16", "True", "--mmconv-path=x"]
    assert main(toy, words) == 0
    assert calls[0].model.kind == "deformable"
    assert calls[0].training.precision == "bf16"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "--mmconv_path is known from the guide and has no effect here",
        "--mmconv-path is known from the guide and has no effect here",
    ]
    assert train(toy, "--bf16", "False").training.precision == "auto"
    assert train(toy, "--mmconv_path", "--enable_switch").model.switch
    with pytest.raises(ConfigError, match="--bf16 is 'half', expected true"):
        train(toy, "--bf16", "half")


def test_a_guides_word_for_a_list(toy):
    assert train(toy, "--report_to", "wandb").training.report_to == ["wandb"]
    assert train(toy, "--report_to", "none").training.report_to == []
    assert train(toy, "--report_to", "[wandb, tensorboard]").training.report_to == ["wandb", "tensorboard"]


@pytest.mark.parametrize(
    "words",
    [
        ["--local_rank=3", "train"],
        ["--local_rank", "3", "train"],
        ["train", "--local-rank", "3"],
        ["train", "--training.seed", "0", "--local-rank=3"],
    ],
)
def test_launchers_may_add_the_local_rank_anywhere(toy, calls, words, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "")
    monkeypatch.delenv("LOCAL_RANK")
    assert main(toy, words) == 0
    assert len(calls) == 1
    assert os.environ["LOCAL_RANK"] == "3"


def test_a_local_rank_in_the_environment_wins(toy, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    main(toy, ["--local_rank=3", "train"])
    assert os.environ["LOCAL_RANK"] == "1"


def test_a_section_takes_a_mapping_that_is_laid_over_it(toy):
    for words in (["--model.heads", "{hidden: 16}"], ['--model.heads={"hidden": 16}']):
        assert train(toy, *words).model.heads == Heads(16)
    before, after = train(toy), train(toy, "--model", "{kind: deformable, heads: null}", "--training", "{seed: 3}")
    assert after.model.heads is None
    assert after.model.kind == "deformable"
    assert after.model.sizes == before.model.sizes
    assert after.training.seed == 3
    assert after.training.micro_batch_size == before.training.micro_batch_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training", "{sed: 3}"], "--training: unknown setting 'training.sed' (did you mean 'training.seed'?)"),
        (["--training", "3"], "--training: got int, expected a mapping of setting names"),
        (["--training", "null"], "--training: training is 'null', expected a section with the keys seed"),
        (["--training", "{seed: many}"], "training.seed is 'many' (from --training), expected int"),
        (["--trainig", "{seed: 3}"], "(did you mean '--training'?)"),
    ],
)
def test_a_section_that_is_wrong_is_named(toy, words, message):
    with pytest.raises(ConfigError) as caught:
        train(toy, *words)
    assert message in str(caught.value)


def test_positionals_and_options_mix(toy, calls):
    assert main(toy, ["evaluate", "--split", "test", "runs/a", "x.png", "y.png"]) == 0
    assert calls == [EvaluateSettings("runs/a", ["x.png", "y.png"], "test")]
    assert resolve_settings(toy, "evaluate", ["--run", "runs/b"]) == EvaluateSettings("runs/b")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "--training.lerning_rate", "1"],
            "'--training.lerning_rate' (did you mean '--training.learning_rate'?)",
        ),
        (["train", "--seed", "1"], "unknown option '--seed' (did you mean '--training.seed'?)"),
        (["train", "--training.seed", "x"], "training.seed is 'x' (from --training.seed), expected int"),
        (["train", "--learning-rate", "x"], "training.learning_rate is 'x' (from --learning-rate), expected float"),
        (["train", "--training.seed"], "--training.seed needs a value"),
        (["train", "--training.seed", "--model.switch"], "--training.seed needs a value"),
        (["train", "--training.seed", "-4"], "training.seed: got -4, expected 0 or more"),
        (["train", "--config"], "--config needs a value"),
        (["train", "--config", "no.yaml"], "cannot read the configuration 'no.yaml'"),
        (["train", "--preset", "small"], "no preset 'small'; available: large, tiny"),
        (["train", "--preset", "tiny", "--preset", "large"], "--preset is given twice"),
        (["train", "word"], "unexpected word 'word', expected options only"),
        (["train", "--model.sizes+", "3"], "appends to a list"),
        (["train", "--local_rank"], "--local_rank needs a value"),
        (["--local_rank=x", "train"], "--local_rank is 'x', expected a number"),
        (["trein"], "no verb 'trein' (did you mean 'train'?); verbs: train, evaluate, fail, show-config, env"),
        (["--preset", "tiny"], "got the option '--preset' first, expected a verb: train"),
        (["evaluate"], "nothing given for 'run', expected a value"),
        (["evaluate", "--preset", "tiny"], "unknown option '--preset'"),
        (["evaluate", "runs/a", "--enable_switch"], "unknown option '--enable_switch'"),
        (["show-config", "--training.sed", "1"], "(did you mean '--training.seed'?)"),
    ],
)
def test_mistakes_on_the_command_line_exit_with_2_and_one_message(toy, calls, capsys, words, message):
    assert main(toy, words) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("toy: ")
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert calls == []


def test_a_mistake_in_a_file_names_the_file(toy, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text("training:\n  seed: many\n")
    assert main(toy, ["train", "--config", "my.yaml"]) == 2
    assert "training.seed is 'many' (from my.yaml), expected int" in capsys.readouterr().err
    (tmp_path / "my.yaml").write_text("training: {sed: 1}\n")
    assert main(toy, ["train", "--config", "my.yaml"]) == 2
    assert "my.yaml: unknown setting 'training.sed' (did you mean 'training.seed'?)" in capsys.readouterr().err
    (tmp_path / "my.yaml").write_text("training: !!python/object/apply:os.system [touch canary]\n")
    assert main(toy, ["train", "--config", "my.yaml"]) == 2
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("value", 1, "toy: the record is bad\n"),
        ("file", 1, "/nowhere/at/all"),
        ("code", 7, ""),
        ("interrupt", 130, "toy: interrupted\n"),
    ],
)
def test_a_verb_that_fails_says_so_and_gives_its_code(toy, capsys, how, code, message):
    assert main(toy, ["fail", "--how", how]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_tracebacks_are_shown_on_request_and_for_faults_of_the_code(toy, monkeypatch):
    with pytest.raises(RuntimeError, match="a fault of the code"):
        main(toy, ["fail", "--how", "bug"])
    with pytest.raises(ValueError, match="the record is bad"):
        main(toy, ["fail", "--traceback"])
    monkeypatch.setenv("REGION_TRAINING_TRACEBACK", "1")
    with pytest.raises(ValueError, match="the record is bad"):
        main(toy, ["fail"])


def test_show_config_prints_what_train_would_use(toy, tmp_path, capsys, calls):
    words = ["--model.names+", "a", "--training.learning_rate", "3e-5"]
    assert main(toy, ["show-config", *words]) == 0
    text = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(text)
    assert train(toy, "--config", "shown.yaml") == train(toy, *words)
    assert yaml.safe_load(text)["run_dir"] == "runs/toy-tiny"
    assert main(toy, ["show-config", "train", "--preset", "large"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["kind"] == "deformable"
    assert calls == []


def test_help_lists_verbs_presets_options_types_and_defaults(toy, capsys):
    assert main(toy, ["--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("train a model", "evaluate a run", "show-config", "env"))
    assert main(toy, []) == 2
    assert main(toy, ["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "large, tiny (default)" in text
    assert "model - The model:" in text
    assert "--model.kind VALUE Which one. [plain | deformable; default: plain]" in text
    assert "--training.learning_rate NUMBER" in text
    assert "--model.heads null" in text
    assert main(toy, ["evaluate", "-h"]) == 0
    assert "usage: toy evaluate RUN [IMAGES ...] [options]" in capsys.readouterr().out
    assert main(toy, ["show-config", "--help"]) == 0
    assert "usage: toy show-config train [options]" in capsys.readouterr().out


def test_only_rank_0_is_chatty(toy, monkeypatch, capsys):
    def speak(settings: FailSettings) -> None:
        logging.getLogger("region_training.engine").info("an info")
        logging.getLogger("region_training.engine").warning("a warning")
        logging.getLogger("other").info("another's info")

    talker = Application("toy", "A toy.", {"speak": Verb(speak, FailSettings, "speak")}, "toy_configs")
    main(talker, ["speak"])
    shown = capsys.readouterr().err
    assert "an info" in shown
    assert "another's info" not in shown
    monkeypatch.setenv("RANK", "1")
    main(talker, ["speak"])
    shown = capsys.readouterr().err
    assert "an info" not in shown
    assert shown.startswith("[rank 1] WARNING region_training.engine: a warning")
    assert shown.count("a warning") == 1


SCRIPT = """
import sys
from dataclasses import dataclass, field
from region_training.command_line import Application, Verb, main
from region_training.settings import TrainingSettings

@dataclass(frozen=True)
class Settings:
    training: TrainingSettings = field(default_factory=TrainingSettings)

verbs = {"train": Verb(print, Settings, "train", presets=True)}
code = main(Application("toy", "A toy.", verbs, "toy_configs"), sys.argv[1:])
heavy = {"torch", "transformers", "matplotlib", "numpy", "PIL", "deepspeed"} & set(sys.modules)
print(sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["train", "--help"], 0), (["show-config"], 0), (["train", "--training.seed", "x"], 2)],
)
def test_help_and_configuration_errors_import_nothing_heavy(tmp_path, words, code):
    package = tmp_path / "toy_configs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tiny.yaml").write_text("training: {seed: 1}\n")
    (tmp_path / "toy.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "toy.py", *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
