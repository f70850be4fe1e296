"""`spatialrgpt predict`: an image, regions as JSON and a question -> text, the head's value and a picture."""

import json

import numpy as np
import pytest
from region_core.rle import encode_rle
from region_training.images import read_image, write_png
from spatialrgpt.cli import main
from spatialrgpt.data import Frame
from spatialrgpt.predict import answer_question, read_regions

QUESTION = "How far is the pallet <mask> from the shelf <mask>?"
REGIONS = [{"box": [0.1, 0.1, 0.4, 0.5]}, {"box": [16, 4, 30, 20], "units": "pixels"}]


@pytest.fixture(scope="module")
def folder(toy, model, tmp_path_factory):
    """A model folder, and a picture with a depth map beside it."""
    folder = tmp_path_factory.mktemp("predict")
    model.save_pretrained(folder / "model")
    toy.processor().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    write_png(folder / "image.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    write_png(folder / "depth.png", rng.integers(0, 256, (24, 32), dtype=np.uint8))
    return folder


def _predict(folder, tmp_path, *words):
    fixed = ["--image", str(folder / "image.png"), "--output", str(tmp_path / "answer.png"), "--device", "cpu"]
    return main(["predict", str(folder / "model"), *fixed, "--max_new_tokens", "4", *words])


@pytest.mark.parametrize("depth", [True, False])
def test_it_prints_text_and_head_and_writes_a_picture(folder, tmp_path, capsys, depth):
    words = ["--depth", str(folder / "depth.png")] if depth else []
    assert _predict(folder, tmp_path, "--question", QUESTION, "--regions", json.dumps(REGIONS), *words) == 0
    text, head, picture = capsys.readouterr().out.splitlines()[:3]
    assert text.startswith("text: ")
    value, _, rest = head.removeprefix("head: ").partition(" (confidence ")
    assert float(value) > 0
    assert rest.endswith("routed by distance phrase")
    assert picture.startswith("picture: ")
    image = read_image(tmp_path / "answer.png")
    assert image.shape[2] == 3
    assert image.std() > 0


def test_regions_may_come_from_a_file_in_any_form(folder, tmp_path, capsys):
    mask = np.zeros((24, 32), dtype=bool)
    mask[3:9, 4:12] = True
    regions = [{"rle": encode_rle(mask)}, {"polygon": [0.5, 0.2, 0.9, 0.2, 0.7, 0.8]}]
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    assert _predict(folder, tmp_path, "--question", QUESTION, "--regions", str(tmp_path / "regions.json")) == 0
    assert "head: " in capsys.readouterr().out


def test_a_question_of_no_kind_has_no_typed_answer(folder, tmp_path, capsys):
    assert _predict(folder, tmp_path, "--question", "Hello?") == 0
    assert "head: no typed answer; routed by unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--question", QUESTION], "found 2 '<mask>' in the text, expected 0 (one per region)"),
        (["--question", "How far?", "--regions", json.dumps(REGIONS)], "found 0 '<mask>' in the text, expected 2"),
        (["--question", QUESTION, "--regions", "[{]"], "--regions: not JSON"),
        (["--question", QUESTION, "--regions", '{"box": [0, 0, 1, 1]}'], "--regions: expected a JSON list"),
        (["--question", QUESTION, "--regions", "nowhere.json"], "nowhere.json"),
        (["--question", QUESTION, "--regions", '[{"box": [0, 0, 1]}, {}]'], "--regions, region 0"),
        (["--question", "What is <mask>?", "--regions", '[{"box": [0.5, 0.5, 0.5, 0.5]}]'], "region 0"),
        (["--question", QUESTION, "--image", "nowhere.png"], "nowhere.png"),
        (["--question", QUESTION, "--depth", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_mistake_is_one_message(folder, tmp_path, capsys, words, message):
    """T46: a count of regions that is not the count of mentions names both."""
    assert _predict(folder, tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "answer.png").exists()


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert main(["predict", str(tmp_path), "--image", "x.png", "--question", "What?", "--device", "cpu"]) == 1
    assert f"no run at {str(tmp_path)!r}" in capsys.readouterr().err


def test_the_function_answers_the_same_whatever_was_asked_before(toy, model):
    rng = np.random.default_rng(1)
    frame = Frame(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), rng.random((24, 32), dtype=np.float32))
    masks = np.zeros((2, 24, 32), dtype=bool)
    masks[0, 2:8, 2:8] = masks[1, 10:20, 10:20] = True
    first = answer_question(model, toy.processor(), frame, masks, QUESTION, max_new_tokens=4)
    answer_question(model, toy.processor(), frame, masks[:0], "What is this?", max_new_tokens=2)
    assert answer_question(model, toy.processor(), frame, masks, QUESTION, max_new_tokens=4) == first
    # The order of the regions is the order of mention: swapped masks are another question.
    swapped = answer_question(model, toy.processor(), frame, masks[::-1].copy(), QUESTION, max_new_tokens=4)
    assert swapped.head != first.head


def test_read_regions_gives_what_stands_there():
    assert read_regions(" []") == []
    assert read_regions(json.dumps(REGIONS)) == REGIONS
