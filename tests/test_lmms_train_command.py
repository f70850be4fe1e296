"""`lmms train` as a user runs it: everything in the run folder, the guide's three values, its report, its model."""

import json
import re

import pytest
import yaml

pytestmark = pytest.mark.slow

WHO = {"model", "shuffled frames", "another video", "question only"}
KINDS = {"direction", "order", "speed", "count"}
PARTS = ("vision_tower", "projector", "language_model", "autoregressive")


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _training(run):
    return [line for line in _lines(run) if "loss/total" in line]


def _scores(run):
    return json.loads((run / "results.json").read_text())["scores"]


def test_the_run_folder_holds_everything(lmms_trained):
    assert {path.name for path in lmms_trained.iterdir()} >= {
        *("config.yaml", "environment.json", "metrics.jsonl", "parts.json", "results.json", "answers.jsonl"),
        *("report.html", "preflight.json", "teacher.json", "samples", "processor", "model"),
        *("checkpoint-2", "checkpoint-4"),
    }
    assert {path.name for path in (lmms_trained / "model").iterdir()} >= {
        *("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"),
        "autoregressive",
    }
    assert {path.name for path in (lmms_trained / "model" / "autoregressive").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    for absent in ("bad_records.jsonl", "process.json", ".staging"):
        assert not (lmms_trained / absent).exists(), absent
    pictures = {path.stem for path in (lmms_trained / "samples").glob("*.png")}
    assert "mask" in pictures
    assert len(pictures) > 2
    # A default that no file names is written as well.
    settings = yaml.safe_load((lmms_trained / "config.yaml").read_text())
    assert settings["model"]["autoregressive_config"]["loss_weight"] == 0.1


def test_every_step_logs_the_guides_three_values_which_add_up(lmms_trained):
    lines = _training(lmms_trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["main_loss"] + line["autoregressive_loss"] == pytest.approx(line["total_loss"], rel=1e-6)
        assert line["total_loss"] == pytest.approx(line["loss/total"], rel=1e-5)
        assert line["main_loss"] == pytest.approx(line["loss/main"])
        assert line["autoregressive_loss"] == pytest.approx(0.1 * line["autoregressive_loss_raw"])
        assert line["ar_skill"] == pytest.approx(1 - line["autoregressive_loss_raw"] / line["ar_copy_loss"])
        assert line["ar_ratio"] == pytest.approx(line["autoregressive_loss"] / line["main_loss"])
        # The frames of at most four clips have a frame before them, three of each; four tokens stand for each.
        assert 0 < line["ar_targets"] <= 4 * 3 * 4
        assert line["ar_targets"] % 12 == 0
        assert line["decode_ms"] > 0
        assert line["frames_per_s"] > 0
        assert line["grad_norm"] > 0
        assert line["skipped_steps"] == 0
    assert [line["step"] for line in _lines(lmms_trained) if "eval/score" in line] == [4]


def test_every_part_is_trained_and_the_teacher_is_written_down(lmms_trained):
    parts = {part["name"]: part for part in json.loads((lmms_trained / "parts.json").read_text())}
    assert tuple(parts) == PARTS
    assert all(part["trainable"] and part["num_parameters"] > 0 for part in parts.values())
    teacher = json.loads((lmms_trained / "teacher.json").read_text())
    assert teacher["kind"] == "snapshot"
    assert teacher["fingerprint"]
    own = json.loads((lmms_trained / "model" / "autoregressive" / "config.json").read_text())
    assert own["teacher"] == teacher


def test_results_stand_beside_the_controls_and_blind_answers(lmms_trained, lmms_small):
    scores = _scores(lmms_trained)
    assert set(scores) == WHO
    model, shuffled = scores["model"], scores["shuffled frames"]
    assert set(model) >= {f"{kind}/accuracy" for kind in KINDS} | {"temporal", "score", "ar_copy_loss", "ar_skill"}
    assert model["main_loss"] + model["autoregressive_loss"] == pytest.approx(model["total_loss"])
    assert set(shuffled) >= {"temporal", "autoregressive_loss", "ar_skill"}
    assert shuffled["ar_copy_loss"] != model["ar_copy_loss"]
    for values in scores.values():
        assert all(0 <= value <= 100 for name, value in values.items() if name.endswith("accuracy"))
    records = json.loads((lmms_small.root / "val.json").read_text())
    answers = [json.loads(line) for line in (lmms_trained / "answers.jsonl").read_text().splitlines()]
    assert [answer["record_id"] for answer in answers] == [record["id"] for record in records]
    for record, answer in zip(records, answers, strict=True):
        # Another clip of the same kind is not always there.
        assert set(answer["said"]) | {"another video"} == WHO
        assert answer["truth"] == record["conversations"][1]["value"]


def test_the_report_needs_no_network_and_names_everything(lmms_trained):
    page = (lmms_trained / "report.html").read_text()
    # Names of XML namespaces are no addresses that a browser opens.
    links = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert not [link for link in links if not link.startswith("http://www.w3.org/")], links
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:|#)", page)
    assert all(who in page for who in WHO)
    assert all(f"{kind}/accuracy" in page for kind in KINDS)
    assert all(name in page for name in ("autoregressive_loss", "main_loss", "ar_skill"))


def test_the_same_command_again_says_that_the_run_is_finished(lmms_trained, lmms_small, lmms_commands, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in lmms_trained.rglob("*") if path.is_file()}
    changed = lmms_small.train(lmms_trained, "--training.learning_rate", "0.5")
    (code, output), (refused, why) = lmms_commands([lmms_small.train(lmms_trained), changed], tmp_path)
    assert code == 0
    assert "is finished" in output
    assert refused == 1
    assert "training.learning_rate: 0.001 -> 0.5" in why
    assert "Traceback" not in why
    assert {path: path.stat().st_mtime_ns for path in lmms_trained.rglob("*") if path.is_file()} == before


GUIDE = """
- type: trainer
  config:
    trainer_type: autoregressive_trainer
    model_config:
      load_from_config: {model}
      enable_autoregressive: true
      autoregressive_config:
        embedding_dim: 16
        num_hist: 3
        loss_weight: 0.1
        num_heads: 2
        num_layers: 1
        use_frame_causal_mask: true
        enable_multiscale_pooling: true
        mm_spatial_pool_stride: 2
        mm_spatial_pool_mode: "average"
        add_faster_video: true
    dataset_config:
      datasets:
        - {{path: train.json, data_folder: {root}, data_type: json}}
      processor_config:
        extra_kwargs: {{mm_newline_position: grid, frames_upbound: 4, add_time_instruction: true}}
    output_dir: {run}
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 2
    max_steps: 1
    learning_rate: 2.0e-5
    logging_steps: 1
    freeze_modules: [visual]
    report_to: none
"""


@pytest.fixture(scope="module")
def guided(lmms_small, lmms_commands, tmp_path_factory):
    """A run of the guide's full configuration file, and its output."""
    folder = tmp_path_factory.mktemp("lmms-guided")
    small = yaml.safe_load(lmms_small.config.read_text())
    run, config = folder / "run", folder / "guide.yaml"
    config.write_text(GUIDE.format(model=json.dumps(small["model"]["config"]), root=lmms_small.root, run=run))
    quick = ("--evaluation.max_records", "2", "--evaluation.controls", "false", "--evaluation.max_new_tokens", "2")
    words = ["train", "--config", str(config), "--training.device", "cpu", *quick]
    ((code, output),) = lmms_commands([words], folder / "ranks")
    assert code == 0, output
    return run, output


def test_the_guides_file_trains_with_slow_and_fast_tokens_at_two_scales(guided):
    run, output = guided
    (line,) = _training(run)
    assert line.keys() >= {"autoregressive_loss", "main_loss", "total_loss", "ar_skill"}
    scales = [line["loss/autoregressive/stride1"], line["loss/autoregressive/stride2"]]
    assert line["autoregressive_loss_raw"] == pytest.approx(sum(scales) / 2)
    assert line["main_loss"] + line["autoregressive_loss"] == pytest.approx(line["total_loss"])
    own = json.loads((run / "model" / "autoregressive" / "config.json").read_text())
    assert own["video_tokens"]["faster_stride"] == 10
    assert own["video_tokens"]["newline"] == "grid"
    # A frozen tower is its own teacher.
    assert own["teacher"]["kind"] == "shared"
    assert "teacher shared" in output


def test_the_guides_file_freezes_the_tower(guided):
    parts = {part["name"]: part["trainable"] for part in json.loads((guided[0] / "parts.json").read_text())}
    assert parts == {"vision_tower": False, "projector": True, "language_model": True, "autoregressive": True}


def test_packed_rows_and_the_guides_flags_train(lmms_small, lmms_commands, tmp_path):
    """Several samples in a row under a schedule of the weight, and the guide's words on the command line."""
    run = tmp_path / "run"
    words = lmms_small.train(
        run,
        *("--data.packing", "true", "--max_steps", "2", "--per_device_train_batch_size", "1"),
        *("--learning_rate", "1e-4", "--enable_autoregressive", "true", "--frames_upbound", "3", "--bf16", "True"),
        *("--model.autoregressive_config.weight_schedule", "warmup"),
        *("--model.autoregressive_config.weight_warmup", "1.0", "--evaluation.max_records", "1"),
    )
    ((code, output),) = lmms_commands([words], tmp_path / "ranks")
    assert code == 0, output
    num_records = len(json.loads((lmms_small.root / "train.json").read_text()))
    assert f"packing: {num_records} records in" in " ".join(output.split())
    assert "--bf16 is known from the guide and has no effect here" in " ".join(output.split())
    lines = _training(run)
    shares = [line["autoregressive_loss"] / line["autoregressive_loss_raw"] for line in lines]
    assert shares == pytest.approx([0.05, 0.1])
    # A row of 256 tokens holds more than one clip of 2 x 4 tokens to compare.
    assert max(line["ar_targets"] for line in lines) > 8
