"""The other verbs of `lmms`, on a trained run: data, evaluate, predict, report, convert, preflight, config, stop."""

import json
import shutil

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

pytestmark = pytest.mark.slow

QUESTION = "Which way does the circle move?"


@pytest.fixture(scope="module")
def used(lmms_trained, lmms_small, lmms_commands, tmp_path_factory):
    """A copy of the trained run after all verbs: the folder, and exit code and output by name."""
    folder = tmp_path_factory.mktemp("lmms-verbs")
    shutil.copytree(lmms_trained, folder / "run")
    shutil.copytree(lmms_trained, folder / "reported")
    (folder / "reported" / "report.html").unlink()
    (folder / "text.mp4").write_text("no video")
    run, made = str(folder / "run"), folder / "made"
    clip = str(lmms_small.root / json.loads((lmms_small.root / "val.json").read_text())[0]["video"])
    world = ("--world.train_clips", "3", "--world.eval_clips", "2", "--world.image_size", "32")
    config = ("--config", str(lmms_small.config), "--data.root", str(lmms_small.root))
    answer = ("--device", "cpu", "--max_new_tokens", "3", "--output")
    commands = {
        "make-data": ["make-data", str(made), *world],
        "make-data again": ["make-data", str(made), *world, "--world.seed", "1"],
        "check-data": ["check-data", str(made), "--num_workers", "1", "--frames", "4"],
        "evaluate": ["evaluate", run, "--device", "cpu", "--batch_size", "8"],
        "evaluate others": [
            *("evaluate", run, "--device", "cpu", "--root", str(made), "--files", "[train.json]"),
            *("--max_records", "2", "--controls", "false"),
        ],
        "report": ["report", str(folder / "reported")],
        "predict": ["predict", run, clip, QUESTION, *answer, str(folder / "answer.png")],
        "predict nothing": ["predict", run, "nowhere.mp4", QUESTION, *answer, str(folder / "nothing.png")],
        "predict text": ["predict", run, str(folder / "text.mp4"), QUESTION, *answer, str(folder / "nothing.png")],
        "convert": ["convert", run, str(folder / "plain")],
        "convert again": ["convert", run, str(folder / "plain")],
        "preflight": ["preflight", *config, "--run_dir", str(folder / "planned")],
        "show-config": ["show-config", "train", *config, "--frames_upbound", "3"],
        "stop": ["stop", run],
    }
    found = lmms_commands(list(commands.values()), folder / "ranks")
    return folder, dict(zip(commands, found, strict=True))


def _refused(found, name, *said):
    code, output = found[name]
    assert code == 1, output
    assert "Traceback" not in output
    for words in said:
        assert words in " ".join(output.split()), output


def test_made_data_is_checked_without_a_fault_and_is_kept(used):
    folder, found = used
    assert found["make-data"][0] == 0, found["make-data"][1]
    _refused(found, "make-data again", "a world is there", "seed 0", "seed 1")
    code, output = found["check-data"]
    assert code == 0, output
    assert "bad records" in output
    entries = [json.loads(line) for line in (folder / "made" / "manifest.jsonl").read_text().splitlines()]
    assert {entry["path"] for entry in entries if "path" in entry} == {
        *(f"videos/train/{index:06d}.mp4" for index in range(3)),
        *(f"videos/val/{index:06d}.mp4" for index in range(2)),
    }


def test_evaluating_again_gives_the_answers_and_losses_of_the_training_run(used, lmms_trained):
    """Also of the reconstruction: the tower was trained, and the weights that taught it are made again."""
    folder, found = used
    assert found["evaluate"][0] == 0, found["evaluate"][1]
    assert (folder / "run" / "answers.jsonl").read_text() == (lmms_trained / "answers.jsonl").read_text()
    again, first = (json.loads((run / "results.json").read_text())["scores"] for run in (folder / "run", lmms_trained))
    assert again.keys() == first.keys()
    assert again == first
    assert "ar_skill" in again["model"]


def test_other_records_are_evaluated_beside_the_runs_own(used):
    folder, found = used
    assert found["evaluate others"][0] == 0, found["evaluate others"][1]
    other = folder / "run" / "evaluations" / "made-train.json-2-records"
    assert set(json.loads((other / "results.json").read_text())["scores"]) == {"model", "question only"}
    assert len((other / "answers.jsonl").read_text().splitlines()) == 2
    assert (other / "report.html").is_file()


def test_the_report_is_written_again_from_the_files(used, lmms_trained):
    folder, found = used
    code, output = found["report"]
    assert code == 0, output
    page, first = (run / "report.html" for run in (folder / "reported", lmms_trained))
    assert str(page) in output
    assert page.read_text().count("data:image/png") == first.read_text().count("data:image/png") > 0


def test_a_question_about_a_video_is_answered_with_a_picture(used):
    folder, found = used
    code, output = found["predict"]
    assert code == 0, output
    assert "answer: " in output
    with Image.open(folder / "answer.png") as picture:
        assert min(picture.size) > 32


def test_a_video_that_cannot_be_read_is_one_message(used):
    folder, found = used
    _refused(found, "predict nothing", "nowhere.mp4", "no such video file")
    _refused(found, "predict text", "text.mp4")
    assert not (folder / "nothing.png").exists()


def test_the_plain_model_comes_out_once(used, lmms_trained):
    folder, found = used
    assert found["convert"][0] == 0, found["convert"][1]
    _refused(found, "convert again", "holds a model")
    plain, trained = (load_file(path / "model.safetensors") for path in (folder / "plain", lmms_trained / "model"))
    assert plain.keys() == trained.keys()
    assert not (folder / "plain" / "autoregressive").exists()
    AutoModelForImageTextToText.from_pretrained(folder / "plain")
    AutoProcessor.from_pretrained(folder / "plain")


def test_the_preflight_says_what_is_needed_before_there_is_a_run(used):
    folder, found = used
    code, output = found["preflight"]
    # With little memory left on the machine it warns.
    assert code in (0, 1), output
    for words in ("decoder", "records", "memory", "disk", "verdict"):
        assert words in output
    assert not (folder / "planned").exists()
    written = json.loads((folder / "planned.preflight.json").read_text())
    assert set(written["bytes_per_rank"]) == {"0", "1", "2", "3"}
    assert set(written["parts"]) == {"vision_tower", "projector", "language_model", "autoregressive"}


def test_the_resolved_configuration_is_printed(used, lmms_small):
    code, output = used[1]["show-config"]
    assert code == 0, output
    shown = yaml.safe_load(output)
    assert shown["data"]["root"] == str(lmms_small.root)
    assert shown["data"]["max_frames"] == 3
    assert shown["model"]["autoregressive_config"]["num_hist"] == 2


def test_stopping_a_run_that_is_not_under_way_is_an_error(used):
    _refused(used[1], "stop", "no training is under way")
