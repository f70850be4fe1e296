import json
from dataclasses import dataclass, field, replace

import pytest
import yaml
from region_training.run_folder import RunFolder, hide_secrets, write_atomically, write_folder_once
from region_training.settings import ConfigError, TrainingSettings


@dataclass(frozen=True)
class Tracker:
    hub_token: str | None = None
    api_key: str = "none"
    region_token: str = "<region>"
    num_region_tokens: int = 4


@dataclass(frozen=True)
class Settings:
    run_dir: str = ""
    name: str = "a"
    sizes: dict[str, float] = field(default_factory=dict)
    tracker: Tracker = field(default_factory=Tracker)
    training: TrainingSettings = field(default_factory=TrainingSettings)


def test_a_run_begins_with_configuration_and_environment(tmp_path):
    run = RunFolder(tmp_path / "runs" / "x")
    settings = Settings(sizes={"a": 1.5})
    assert run.begin(settings, environment={"versions": {"torch": "2"}}) == "new"
    assert RunFolder.open(tmp_path / "runs" / "x").load_settings(Settings) == settings
    assert run.read_environment() == {"versions": {"torch": "2"}}
    assert yaml.safe_load(run.config_path.read_text())["training"]["learning_rate"] == 2e-5
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "environment.json"]
    assert (run.read_metrics(), run.read_results(), run.samples(), run.is_finished) == ([], {}, [], False)


def test_the_same_command_goes_on_or_says_that_it_is_finished(tmp_path):
    run = RunFolder(tmp_path / "x")
    assert run.begin(Settings()) == "new"
    assert run.begin(Settings()) == "new"
    (run.path / "checkpoint-5").mkdir()
    assert run.begin(Settings()) == "resumed"
    run.finish({"accuracy": 0.5})
    assert run.begin(Settings()) == "finished"
    assert run.read_results() == {"accuracy": 0.5}


def test_an_evaluation_lies_beside_the_runs_results_and_begins_again(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.begin(Settings())
    run.finish({"accuracy": 0.5})
    for accuracy in (0.1, 0.2):
        beside = run.begin_evaluation(Settings(sizes={"a": accuracy}), "sets/a*.json", "20-records")
        assert beside.path == run.path / "evaluations" / "sets_aall.json-20-records"
        assert not beside.is_finished
        assert beside.read_config()["sizes"] == {"a": accuracy}
        assert beside.read_config()["run_dir"] == str(beside.path)
        beside.finish({"accuracy": accuracy})
        assert not (beside.path / "of the first").exists()
        (beside.path / "of the first").touch()
    assert run.read_results() == {"accuracy": 0.5}


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.begin(Settings(sizes={"a": 1.0}))
    before = run.config_path.read_text()
    other = Settings(name="b", sizes={"c": 2.0}, training=TrainingSettings(learning_rate=1e-3))
    with pytest.raises(ConfigError) as caught:
        run.begin(other)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == [
        "  name: 'a' -> 'b'",
        "  sizes.a: 1.0 -> absent",
        "  sizes.c: absent -> 2.0",
        "  training.learning_rate: 2e-05 -> 0.001",
    ]
    assert run.config_path.read_text() == before
    run.finish({})
    with pytest.raises(ConfigError, match="another configuration"):
        run.begin(other)


def test_settings_that_change_no_result_may_differ(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.begin(Settings())
    later = replace(TrainingSettings(), num_workers=3, keep_checkpoints=5, report_to=["tensorboard"], resume="never")
    assert run.begin(Settings(training=later)) == "new"
    assert run.load_settings(Settings).training.num_workers == 3
    assert run.begin(Settings(sizes={"a": 1.0}), may_differ={"sizes", "training"}) == "new"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "x").mkdir()
    assert RunFolder(tmp_path / "x").begin(Settings()) == "new"
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="holds files but no run"):
        RunFolder(tmp_path / "y").begin(Settings())
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        RunFolder(tmp_path / "y" / "thesis.tex").begin(Settings())
    assert [path.name for path in (tmp_path / "y").iterdir()] == ["thesis.tex"]


def test_a_run_that_is_not_there_names_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no run at 'runs/b': expected a folder with config.yaml$"):
        RunFolder.open("runs/b")
    RunFolder("runs/a").begin(Settings())
    with pytest.raises(ConfigError, match="; runs here: runs/a"):
        RunFolder.open("runs/b")


def test_only_rank_0_writes_and_every_rank_checks(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "x")
    monkeypatch.setenv("RANK", "1")
    assert run.begin(Settings(), environment={"a": 1}) == "new"
    run.finish({})
    assert not run.path.exists()
    monkeypatch.setenv("RANK", "0")
    run.begin(Settings())
    monkeypatch.setenv("RANK", "1")
    assert run.begin(Settings()) == "new"
    with pytest.raises(ConfigError, match="name: 'a' -> 'b'"):
        run.begin(Settings(name="b"))


def test_secrets_are_never_written(tmp_path):
    run = RunFolder(tmp_path / "x")
    secret = "hf_canary"
    tracker = Tracker(hub_token=secret, api_key=secret)
    run.begin(
        Settings(tracker=tracker),
        environment={"launcher": {"password": secret, "WORLD_SIZE": "2"}, "list": [{"api_key": secret}]},
    )
    written = "".join(path.read_text() for path in run.path.iterdir())
    assert secret not in written
    assert run.read_environment()["launcher"] == {"WORLD_SIZE": "2"}
    assert run.read_config()["tracker"] == {"region_token": "<region>", "num_region_tokens": 4}
    assert run.load_settings(Settings).tracker == Tracker()
    assert run.begin(Settings(tracker=Tracker(api_key="another"))) == "new"


def test_secrets_on_the_command_line_are_hidden():
    words = [
        "train",
        "--tracker.hub_token",
        "s1",
        "--wandb-api-key=s2",
        "--model.region_token",
        "<region>",
        "--password",
    ]
    assert hide_secrets(words) == [
        *("train", "--tracker.hub_token", "***", "--wandb-api-key=***"),
        *("--model.region_token", "<region>", "--password"),
    ]
    assert hide_secrets(["--token", "--seed", "3"]) == ["--token", "--seed", "3"]


def test_metrics_survive_a_killed_writer(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics_path.write_text('{"step": 1, "loss/total": 2.0}\n{"step": 2, "loss/total": null}\n{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss/total": 2.0}, {"step": 2, "loss/total": None}]
    run.metrics_path.write_text('{"step": 1}\n{"step": NaN}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2: got NaN"):
        run.read_metrics()


def test_results_are_finite_numbers(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.begin(Settings())
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.finish({"accuracy": float("nan")})
    assert not run.is_finished


def test_a_config_of_another_application_is_refused(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.begin(Settings())
    config = run.read_config() | {"optimiser": 3}
    run.config_path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"config\.yaml: unknown setting 'optimiser'"):
        run.load_settings(Settings)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    write_atomically(path, json.dumps("ä"))
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_was_half_written_by_a_kill_is_written_again(tmp_path):
    folder = tmp_path / "processor"

    def write(part, *, is_killed=False):
        part.mkdir()
        (part / "first.json").write_text("1")
        if is_killed:
            raise KeyboardInterrupt
        (part / "second.json").write_text("2")

    with pytest.raises(KeyboardInterrupt):
        write_folder_once(folder, lambda part: write(part, is_killed=True))
    assert not folder.exists()
    write_folder_once(folder, write)
    assert {path.name for path in folder.iterdir()} == {"first.json", "second.json"}
    (folder / "first.json").write_text("kept")
    write_folder_once(folder, write)
    assert (folder / "first.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["processor"]
