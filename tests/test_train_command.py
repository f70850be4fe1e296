"""`spatialrgpt train` as a user runs it: one process, ZeRO-2, everything in the run folder."""

import json
import re

import pytest
import yaml
from spatialrgpt.config import Settings

pytestmark = pytest.mark.slow

TASKS = ("distance", "left_right", "multiple_choice", "counting")
PARTS = ("vision_tower", "projector", "region_extractor", "region_enhancer", "language_model", "region_heads")


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_everything(trained):
    assert {path.name for path in trained.iterdir()} >= {
        *("config.yaml", "environment.json", "metrics.jsonl", "results.json", "report.html", "answers.jsonl"),
        *("model", "processor", "samples", "parts.json", "checkpoint-2", "checkpoint-4"),
    }
    assert {path.name for path in (trained / "model").iterdir()} >= {
        *("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"),
    }
    assert "torch" in json.loads((trained / "environment.json").read_text())["versions"]
    assert not (trained / "bad_records.jsonl").exists()
    assert not (trained / ".staging").exists()


def test_the_configuration_is_resolved_and_complete(trained, small):
    from region_training.run_folder import RunFolder

    settings = RunFolder.open(trained).load_settings(Settings)
    assert settings.training.max_steps == 4
    assert settings.training.zero_stage == 2
    assert settings.data.root == str(small.root)
    # A default that no file names is written as well.
    assert yaml.safe_load((trained / "config.yaml").read_text())["training"]["adam_beta2"] == 0.999


def test_every_loss_and_rate_is_logged_under_its_name(trained):
    training = [line for line in _lines(trained) if "loss/total" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    seen = {key for line in training for key in line}
    assert {"loss/lm", *(f"loss/{task}" for task in TASKS)} <= seen
    for line in training:
        assert {"loss/lm", "grad_norm", "time/step_s", "memory/peak_gib", *(f"lr/{part}" for part in PARTS)} <= set(
            line
        )
        assert line["loss/lm"] > 0
        assert line["skipped_steps"] == 0
    evaluated = [line for line in _lines(trained) if "eval/score" in line]
    assert [line["step"] for line in evaluated] == [4]


def test_results_stand_beside_the_baselines(trained):
    scores = json.loads((trained / "results.json").read_text())["scores"]
    assert set(scores) == {"heads", "text", "question only", "majority / mean"}
    for values in (scores["heads"], scores["question only"], scores["majority / mean"]):
        assert {"score", "distance/success_10", "left_right/accuracy"} <= set(values)
    answers = [json.loads(line) for line in (trained / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 8
    assert {answer["task"] for answer in answers} <= set(TASKS)


def test_the_report_is_one_page_without_the_network(trained):
    page = (trained / "report.html").read_text()
    # Names of XML namespaces are no addresses that a browser opens.
    links = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert not [link for link in links if not link.startswith("http://www.w3.org/")], links
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:|#)", page)
    assert "question only" in page
    pictures = sorted(path.name for path in (trained / "samples").glob("*.png"))
    assert any(name.startswith("worst-") for name in pictures)
    assert any(name.startswith("sample-") for name in pictures)
    assert all((trained / "samples" / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_every_part_is_on_and_counted(trained):
    parts = {part["name"]: part for part in json.loads((trained / "parts.json").read_text())}
    assert tuple(parts) == PARTS
    assert all(part["trainable"] and part["num_parameters"] > 0 for part in parts.values())


def test_the_same_command_again_says_that_the_run_is_finished(trained, small, spatialrgpt_command, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    code, output = spatialrgpt_command(small.train(trained), tmp_path)
    assert code == 0
    assert "is finished" in output
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_another_configuration_in_the_same_folder_is_refused(trained, small, spatialrgpt_command, tmp_path):
    code, output = spatialrgpt_command(small.train(trained, "--training.learning_rate", "0.5"), tmp_path)
    assert code == 1
    assert "training.learning_rate: 0.001 -> 0.5" in output
    assert "Traceback" not in output
