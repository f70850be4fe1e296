"""`psalm train` as a user runs it: all six modes in one run folder, its losses, its report, the guide's own flags."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from psalm.building import PARTS
from psalm.cli import APPLICATION
from psalm.data import open_dataset
from psalm.modes import KIND_OF_MODE, MODES
from psalm.prompts import read_prompt
from psalm.schedule import ModeSchedule
from region_core.rle import decode_rle
from region_training.command_line import resolve_settings
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

WEIGHTS = {"loss_mask": 5, "loss_dice": 5, "loss_class_name_class": 2, "loss_SEG_class": 2, "loss_region_class": 2}
LOSS_OF_KIND = {"class_name": "loss_class_name_class", "sentence": "loss_SEG_class", "region": "loss_region_class"}
WHO = {"model", "untrained", "trivial"}
GROUPS = {
    **{"panoptic": "PQ", "semantic": "mIoU", "instance": "AP", "referring": "gIoU", "cross_image": "gIoU"},
    **{f"region/{prompt}": "gIoU" for prompt in ("point", "scribble", "box", "mask")},
}
GUIDE_FLAGS = (
    *("--seg_task", "region", "--cross_image_seg_task", "False"),
    *("--region_mask_type", "box_visual_prompt_mask||point_visual_prompt_mask"),
)


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _training(run):
    return [line for line in _lines(run) if "loss/total" in line]


def _results(run):
    return json.loads((run / "results.json").read_text())


def _settings(words):
    return resolve_settings(APPLICATION, "train", words[1:])


def test_the_run_folder_holds_everything(psalm_trained):
    assert {path.name for path in psalm_trained.iterdir()} >= {
        *("config.yaml", "environment.json", "metrics.jsonl", "parts.json", "results.json", "report.html"),
        *("model", "processor", "predictions", "samples", "checkpoint-2", "checkpoint-4"),
    }
    assert {path.name for path in (psalm_trained / "model").iterdir()} >= {
        *("config.json", "model.safetensors", "tokenizer.json", "processor_config.json", "README.md"),
    }
    assert not (psalm_trained / "bad_records.jsonl").exists()
    assert not (psalm_trained / ".staging").exists()
    assert {path.stem.rpartition("-")[0] for path in (psalm_trained / "samples").glob("*.png")} == {
        group.replace("/", "-") for group in GROUPS
    }
    # A default that no file names is written as well.
    assert yaml.safe_load((psalm_trained / "config.yaml").read_text())["model"]["criterion"]["mask_weight"] == 5.0


def test_each_step_logs_the_losses_of_the_kinds_it_has(psalm_trained, psalm_small):
    """And no others: a term with nothing to count would be 0 or NaN."""
    settings = _settings(psalm_small.train(psalm_trained))
    dataset = open_dataset(settings.data, "train", training=True)
    assert [source.mode for source in dataset.sources] == list(MODES)
    lengths = [len(source) for source in dataset.sources]
    order = list(ModeSchedule(lengths, [1.0] * len(lengths), seed=settings.training.seed))
    batch_size, lines = settings.training.micro_batch_size, _training(psalm_trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    seen = []
    for step, line in enumerate(lines):
        indices = order[step * batch_size : (step + 1) * batch_size]
        kinds = {KIND_OF_MODE[dataset.source_of(index).mode] for index in indices}
        wanted = {"loss_mask", "loss_dice", *(LOSS_OF_KIND[kind] for kind in kinds)}
        found = {key.removeprefix("loss/") for key in line if key.startswith("loss/")} - {"total"}
        assert found == wanted, step
        assert all(line[f"loss/{name}"] > 0.01 for name in found)
        total = sum(WEIGHTS[name] * line[f"loss/{name}"] for name in found)
        assert line["loss/total"] == pytest.approx(total, rel=1e-5)
        assert line["grad_norm"] > 0
        assert line["skipped_steps"] == 0
        seen.append(found)
    # Both happened: every term somewhere, and a step without one of them.
    assert set().union(*seen) == set(WEIGHTS)
    assert any(found != set(WEIGHTS) for found in seen)


def test_every_part_is_trained_but_the_word_head(psalm_trained):
    parts = {part["name"]: part for part in json.loads((psalm_trained / "parts.json").read_text())}
    assert tuple(parts) == tuple(PARTS)
    assert {name for name, part in parts.items() if not part["trainable"]} == {"language_head"}
    assert all(part["num_parameters"] > 0 for part in parts.values())
    rates = {name: part["learning_rate"] for name, part in parts.items() if part["trainable"]}
    assert rates.pop("sampling_offsets") == pytest.approx(1e-4)
    assert set(rates.values()) == {1e-3}


def test_every_mode_is_scored_beside_the_untrained_model_and_trivial_answers(psalm_trained):
    results = _results(psalm_trained)
    scores = results["scores"]
    assert set(scores) == WHO
    assert set(results["groups"]) == set(GROUPS)
    for who, values in scores.items():
        for group, measure in GROUPS.items():
            assert 0 <= values[f"{group}/{measure}"] <= 100, (who, group)
    # A stroke of a broad brush is part of its object, and far from all of it.
    assert 20 < scores["trivial"]["region/mask/gIoU"] < 80
    evaluated = [line for line in _lines(psalm_trained) if "eval/score" in line]
    assert [line["step"] for line in evaluated] == [4]
    assert evaluated[0]["eval/score"] == pytest.approx(scores["model"]["score"])


def test_the_result_files_hold_every_record(psalm_trained):
    folder = psalm_trained / "predictions"
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {record["group"] for record in records} == set(GROUPS)
    numbers = {name: group["num_records"] for name, group in _results(psalm_trained)["groups"].items()}
    for name, number in numbers.items():
        assert sum(record["group"] == name for record in records) == number > 0
    for record in records:
        height, width = record["size"]
        for found in record["masks"]:
            decode_rle(found["rle"], height=height, width=width)
        if record["mode"] in ("referring", "region", "cross_image"):
            assert record["masks"], record["record_id"]
    panoptic = json.loads((folder / "panoptic.json").read_text())["annotations"]
    assert len(panoptic) == numbers["panoptic"]
    for entry in panoptic:
        pixels = np.array(Image.open(folder / "panoptic" / entry["file_name"]))
        ids = set((pixels.astype(int) @ [1, 256, 65536]).ravel().tolist()) - {0}
        assert ids == {segment["id"] for segment in entry["segments_info"]}
    assert isinstance(json.loads((folder / "instance.json").read_text()), list)


def test_the_report_needs_no_network_and_names_everything(psalm_trained):
    page = (psalm_trained / "report.html").read_text()
    # Names of XML namespaces are no addresses that a browser opens.
    links = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert not [link for link in links if not link.startswith("http://www.w3.org/")], links
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"'](?!data:|#)", page)
    assert all(who in page for who in WHO)
    assert all(f"{group}/{measure}" in page for group, measure in GROUPS.items())
    assert page.count("data:image/png;base64,") + page.count("<svg") >= len(GROUPS)


# The answers are given in the batches and with the one thread of the training run's own evaluation.
ANSWER = """
import json, sys
from dataclasses import asdict
import torch
torch.set_num_threads(1)
from pathlib import Path
from psalm.config import EvaluationSettings, Settings
from psalm.data import open_dataset
from psalm.evaluate import evaluate
from region_training.run_folder import RunFolder

settings = RunFolder.open(Path(sys.argv[1])).load_settings(Settings)
dataset = open_dataset(settings.data, "val", training=False)
found = evaluate(model.eval(), processor, dataset, EvaluationSettings(batch_size=4, baselines=False))
training_code = [
    name
    for name in sys.modules
    if name.partition(".")[0] == "deepspeed"
    or name in ("psalm.train", "region_training.engine", "region_training.trainer")
]
print(json.dumps({"records": [asdict(record) for record in found.records], "training_code": training_code}))
"""


def test_the_model_card_opens_the_trained_model_in_a_fresh_process(psalm_trained, tmp_path):
    card = (psalm_trained / "model" / "README.md").read_text()
    load = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    script = tmp_path / "script.py"
    script.write_text(load.replace("path/to/model", str(psalm_trained / "model")) + ANSWER)
    command = [sys.executable, str(script), str(psalm_trained)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["training_code"] == []
    lines = (psalm_trained / "predictions" / "predictions.jsonl").read_text().splitlines()
    assert printed["records"] == [json.loads(line) for line in lines]


def test_the_same_command_again_says_that_the_run_is_finished(psalm_trained, psalm_small, psalm_commands, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in psalm_trained.rglob("*") if path.is_file()}
    changed = psalm_small.train(psalm_trained, "--training.learning_rate", "0.5")
    (code, output), (refused, why) = psalm_commands([psalm_small.train(psalm_trained), changed], tmp_path)
    assert code == 0
    assert "is finished" in output
    assert refused == 1
    assert "training.learning_rate: 0.001 -> 0.5" in why
    assert "Traceback" not in why
    assert {path: path.stat().st_mtime_ns for path in psalm_trained.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def guided(psalm_small, psalm_commands, tmp_path_factory):
    """Runs with the guide's own flags: deformable and baseline, each with its output."""
    folder = tmp_path_factory.mktemp("psalm-guided")
    quick = ("--max_steps", "1", "--evaluation.max_samples", "1", "--evaluation.baselines", "false")
    deformable = psalm_small.train(
        folder / "deformable",
        *quick,
        *GUIDE_FLAGS,
        *("--mm_projector_type", "deformable", "--mm_hidden_dim", "16", "--mm_n_heads", "4", "--mm_n_points", "3"),
        *("--projector_outdim", "32", "--per_device_train_batch_size", "8", "--report_to", "none"),
    )
    baseline = psalm_small.train(
        folder / "baseline", *quick, "--mm_projector_type", "swin_conv", "--task_ratio", "{panoptic: 0, region: 4}"
    )
    found = psalm_commands([deformable, baseline], folder / "ranks")
    for code, output in found:
        assert code == 0, output
    outputs = [output for _, output in found]
    return {"deformable": (deformable, outputs[0]), "baseline": (baseline, outputs[1])}, folder


def test_the_guides_lines_say_that_the_deformable_projector_is_on(guided):
    """Literally what the guide tells its reader to look for; the baseline's run must not say it."""
    runs, _ = guided
    assert "MultiScaleDeformableCrossAttentionAlignment" in runs["deformable"][1]
    assert "n_levels=4, n_heads=4, n_points=3" in runs["deformable"][1]
    assert "MultiScaleDeformableCrossAttentionAlignment" not in runs["baseline"][1]
    assert "n_levels=" not in runs["baseline"][1]


def test_the_guides_flags_change_the_mix(guided):
    runs, folder = guided
    words, output = runs["deformable"]
    mix = r"training data: panoptic \(6 samples\), referring/refcoco \(\d+ samples\), region \(6 samples\)\s*$"
    assert re.search(mix, output, re.MULTILINE), output
    settings = _settings(words)
    dataset = open_dataset(settings.data, "train", training=True, seed=settings.training.seed)
    assert [source.mode for source in dataset.sources] == ["panoptic", "referring", "region"]
    results = _results(folder / "deformable")
    assert set(results["groups"]) == {"panoptic", "referring", "region/point", "region/box"}
    # --seg_task names the mode whose score is the headline.
    model = results["scores"]["model"]
    assert model["score"] == pytest.approx((model["region/point/gIoU"] + model["region/box/gIoU"]) / 2)
    (line,) = _training(folder / "deformable")
    assert line["throughput/samples_per_s"] * line["time/step_s"] == pytest.approx(8)


def test_only_the_wanted_prompts_are_drawn_in_training(guided, psalm_small):
    words, _ = guided[0]["deformable"]
    settings = _settings(words)
    dataset = open_dataset(settings.data, "train", training=True, seed=settings.training.seed)
    file = psalm_small.root / "coco_interactive_train_psalm.json"
    records = json.loads(file.read_text())
    drawn = set()
    for index in range(len(dataset)):
        source = dataset.source_of(index)
        if source.mode != "region":
            continue
        scene = dataset.scene(index)
        record = records[int(re.search(r"record (\d+)", scene.record_id)[1])]
        height, width = scene.image.shape[:2]
        for prompt, annotation in zip(scene.prompts, record["anns"], strict=True):
            size = {"height": height, "width": width, "where": scene.record_id}
            same = {
                kind
                for kind in ("point", "scribble", "box", "mask")
                if np.array_equal(prompt, read_prompt(annotation, (kind,), **size))
            }
            assert same & {"point", "box"}, (scene.record_id, same)
            drawn |= same & {"point", "box"}
    assert drawn == {"point", "box"}


def test_the_guides_bf16_flag_trains_in_bf16(psalm_small, psalm_commands, tmp_path):
    """Parameters alone: in bf16 the running statistics of the projector's batch normalisation would stand still."""
    quick = ("--max_steps", "1", "--evaluation.max_samples", "1", "--evaluation.baselines", "false")
    words = psalm_small.train(tmp_path / "run", *quick, "--bf16", "True")
    ((code, output),) = psalm_commands([words], tmp_path / "ranks")
    assert code == 0, output
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    wide = {name for name, weight in weights.items() if weight.dtype == torch.float32}
    assert wide == {name for name in weights if name.endswith(("running_mean", "running_var"))} != set()


def test_the_task_ratio_decides_what_is_trained(guided):
    """Without panoptic samples and with as many of regions as of four other modes."""
    settings = _settings(guided[0]["baseline"][0])
    assert settings.data.mode_ratios == {"panoptic": 0, "region": 4}
    assert "panoptic (6 samples, left out)" in guided[0]["baseline"][1]
