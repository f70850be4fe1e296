"""`lmms predict`: a video and a question -> the answer and a picture."""

import numpy as np
import pytest
from lmms.cli import main
from lmms.config import DataSettings, ModelSettings, Settings
from lmms.predict import answer_question, data_settings
from region_training.images import read_image, write_png
from region_training.run_folder import RunFolder

QUESTION = "Which way does the circle move?"


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A folder of frames, which needs no decoder."""
    folder = tmp_path_factory.mktemp("frames") / "clip"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        write_png(folder / f"{index:03}.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    toy.model().save_pretrained(folder)
    toy.processor.save_pretrained(folder)
    return folder


def _predict(model, video, tmp_path, *words):
    fixed = ["--output", str(tmp_path / "answer.png"), "--device", "cpu", "--max_new_tokens", "3"]
    return main(["predict", str(model), str(video), QUESTION, *fixed, *words])


def test_it_prints_the_answer_and_draws_what_the_model_saw(folder, frames, tmp_path, capsys):
    assert _predict(folder, frames, tmp_path, "--max_frames", "4") == 0
    answer, errors, picture = capsys.readouterr().out.splitlines()
    assert answer.startswith("answer: ")
    assert errors.startswith("error of predicting the frames: ")
    assert "; of copying the frame before: " in errors
    assert picture == f"picture: {tmp_path / 'answer.png'} (4 of 6 frames)"
    assert read_image(tmp_path / "answer.png").std() > 0


def test_every_family_answers_with_errors_below_its_frames(each, frames):
    model, family = each.model(), each.family()
    answer = answer_question(model, family, frames, QUESTION, data=DataSettings(max_frames=6), max_new_tokens=2)
    assert len(answer.clip.times) == 6
    predicted, copied = answer.errors
    merged = 1 if each.model_type == "llava_onevision" else 2
    known = [index for index, value in enumerate(predicted) if value is not None]
    assert known == list(range(merged, 6, merged))
    assert [value is None for value in predicted] == [value is None for value in copied]
    again = answer_question(model, family, frames, f"{QUESTION}<video>", data=DataSettings(max_frames=6))
    assert len(again.clip.times) == 6


def test_without_a_known_teacher_there_are_no_errors(toy, frames):
    model = toy.model(enable_autoregressive=False)
    answer = answer_question(model, toy.family(), frames, QUESTION, data=DataSettings(), max_new_tokens=2)
    assert answer.errors is None


def test_frames_are_drawn_as_in_the_run(tmp_path):
    run = RunFolder(tmp_path / "run")
    own = DataSettings(max_frames=5, sampling="stride", sample_rate=2)
    run.begin(Settings(run_dir=str(run.path), data=own, model=ModelSettings()))
    assert data_settings(run.path) == own
    assert data_settings(run.path / "model") == own
    assert data_settings(tmp_path) == DataSettings()


def test_a_mistake_is_one_message(folder, frames, tmp_path, capsys):
    (tmp_path / "text.mp4").write_text("no video")
    cases = [
        ((folder, "nowhere.mp4"), "'nowhere.mp4': no such video file or folder of frames"),
        ((folder, tmp_path / "text.mp4"), "text.mp4"),
        ((tmp_path, frames), "no model.safetensors there"),
    ]
    for (model, video), message in cases:
        assert _predict(model, video, tmp_path) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (tmp_path / "answer.png").exists()
