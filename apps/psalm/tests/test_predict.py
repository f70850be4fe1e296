"""`psalm predict`: classes, a sentence, regions or a reference image -> a picture and a COCO file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval import COCO
from psalm.cli import main
from psalm.predict import make_scene, read_prompts
from psalm.verbs import PredictSettings
from region_core.rle import decode_rle
from region_training.images import read_image, write_png

HEIGHT, WIDTH = 40, 56
SURE = ["--score_threshold", "0", "--overlap_threshold", "0"]


@pytest.fixture(scope="module")
def folder(toy, model, tmp_path_factory):
    """A model folder, two images and a mask beside it."""
    folder = tmp_path_factory.mktemp("predict")
    model.save_pretrained(folder / "model")
    toy.processor().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    write_png(folder / "image.png", rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    write_png(folder / "reference.png", rng.integers(0, 256, (30, 20, 3), dtype=np.uint8))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[5:20, 7:30] = 255
    write_png(folder / "mask.png", mask)
    return folder


def _predict(folder, tmp_path, *words) -> int:
    fixed = ["--output", str(tmp_path / "out.png"), "--device", "cpu"]
    here = [str(folder / word) if word.endswith(".png") else word for word in words]
    return main(["predict", str(folder / "model"), str(folder / "image.png"), *fixed, *here])


def _coco(tmp_path) -> dict:
    coco = json.loads((tmp_path / "out.json").read_text())
    for entry in coco["annotations"]:
        mask = decode_rle(entry["segmentation"], height=HEIGHT, width=WIDTH)
        assert entry["area"] == mask.sum()
    assert coco["images"] == [{"id": 1, "file_name": "image.png", "height": HEIGHT, "width": WIDTH}]
    return coco


@pytest.mark.parametrize("mode", ["panoptic", "semantic", "instance"])
def test_classes_give_masks_with_their_names(folder, tmp_path, capsys, mode):
    words = ["--classes", "sky, grass,ring", "--things", "ring", "--mode", mode, *SURE]
    assert _predict(folder, tmp_path, *words) == 0
    assert f"picture: {tmp_path / 'out.png'}" in capsys.readouterr().out
    coco = _coco(tmp_path)
    assert [(entry["name"], entry["isthing"]) for entry in coco["categories"]] == [
        ("sky", 0),
        ("grass", 0),
        ("ring", 1),
    ]
    if mode == "instance":
        assert {entry["category_id"] for entry in coco["annotations"]} <= {3}
    if mode == "semantic":
        assert sum(entry["area"] for entry in coco["annotations"]) == HEIGHT * WIDTH
    assert read_image(tmp_path / "out.png").std() > 0
    COCO(str(tmp_path / "out.json"))


def test_a_sentence_gives_the_best_mask_and_those_above_the_threshold(folder, tmp_path, capsys):
    assert _predict(folder, tmp_path, "--sentence", "the red square", "--target_threshold", "0.99") == 0
    assert "best  the red square  score 0." in capsys.readouterr().out
    best, united = _coco(tmp_path)["annotations"]
    assert (best["role"], united["role"]) == ("best", "united")
    # Above 0.99 there is nothing: no target.
    assert united["area"] == 0
    assert united["bbox"] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["--box", "0.1,0.1,0.5,0.6"], 1),
        (["--box", "5,4,30,20;30,10,50,30", "--units", "pixels"], 2),
        (["--point", "0.5,0.5", "--scribble", "0.1,0.1,0.5,0.5,0.9,0.1", "--mask", "mask.png"], 3),
    ],
)
def test_regions_in_any_form_give_one_mask_each(folder, tmp_path, words, count):
    assert _predict(folder, tmp_path, *words) == 0
    annotations = _coco(tmp_path)["annotations"]
    assert [entry["role"] for entry in annotations] == ["best"] * count
    assert [entry["category_id"] for entry in annotations] == list(range(1, count + 1))


def test_regions_on_a_reference_image_are_segmented_in_the_image(folder, tmp_path):
    assert _predict(folder, tmp_path, "--reference", "reference.png", "--box", "0.2,0.2,0.8,0.8") == 0
    assert [entry["role"] for entry in _coco(tmp_path)["annotations"]] == ["best", "united"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one question: --classes, --sentence, or regions"),
        (["--classes", "sky", "--sentence", "the sky"], "got --classes, --sentence"),
        (["--sentence", "the sky", "--point", "0.5,0.5", "--mask", "mask.png"], "got --sentence, --point, --mask"),
        (["--sentence", "the sky", "--reference", "reference.png"], "--reference shows regions"),
        (["--sentence", "the sky", "--things", "sky"], "--things says which of --classes are countable"),
        (["--classes", "sky", "--things", "car"], "--things ['car'] are not among --classes ['sky']"),
        (["--classes", " , "], "--classes []"),
        (["--classes", "sky,grass, sky"], "sky more than once"),
        (["--classes", "sky,background"], "without 'background', which is always added"),
        (["--sentence", " "], "as a class name or sentence, expected words"),
        (["--box", "0.1,0.1,0.5"], "--box, region 0"),
        (["--box", "0,0,1,1;5,5,9,9"], "--box, region 1"),
        (["--point", "a,b"], "--point, region 0: expected numbers with commas between them, got 'a,b'"),
        (["--box", "0.5,0.5,0.5,0.5"], "covers no pixel of the 56 x 40 image"),
        (["--reference", "reference.png", "--mask", "mask.png"], "--mask, region 0"),
        (["--mask", "nowhere.png"], "nowhere.png"),
        (
            ["--classes", ",".join(f"name {number}" for number in range(400))],
            "divide them among several samples or calls",
        ),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(folder, tmp_path, capsys, words, message):
    assert _predict(folder, tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out.png").exists()


def test_a_folder_without_a_model_is_named(folder, tmp_path, capsys):
    words = ["predict", str(tmp_path), str(folder / "image.png"), "--sentence", "the sky", "--device", "cpu"]
    assert main(words) == 1
    assert f"{str(tmp_path)!r}: no model.safetensors there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("point", "units"), [("10.5,12.5", "pixels"), (f"{10.5 / WIDTH},{12.5 / HEIGHT}", "normalised")]
)
def test_points_are_drawn_with_the_pens_of_the_training(folder, point, units):
    settings = PredictSettings(model="", image=str(folder / "image.png"), point=point, units=units)
    prompts = make_scene(settings, {"point": 2, "scribble": 1}).prompts
    assert prompts.sum() == 13


def test_prompts_keep_the_order_of_their_forms(folder):
    settings = PredictSettings(
        model="", image=str(folder / "image.png"), mask=str(folder / "mask.png"), box="0,0,1,1; 0,0,0.5,1"
    )
    prompts = read_prompts(settings, HEIGHT, WIDTH)
    assert prompts.sum((1, 2)).tolist() == [HEIGHT * WIDTH, HEIGHT * WIDTH // 2, 15 * 23]
    scene = make_scene(settings)
    assert scene.mode == "region"
    assert scene.prompts_bound
    assert not make_scene(replace(settings, point="0.5,0.5")).prompts_bound
    assert scene.conditions == ("", "", "")
    assert scene.masks.shape == (0, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one question: --classes"),
        (["--box", "0.1,0.1,0.5"], "--box, region 0"),
        (["--box", "0,0,1,1", "--reference", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_mistake_is_said_before_the_weights_are_read(folder, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.setattr("psalm.predict.load_model", lambda *_: pytest.fail("the model was loaded"))
    assert _predict(folder, tmp_path, *words) == 1
    assert message in capsys.readouterr().err
    missing = ["predict", str(folder / "model"), str(folder / "missing.png"), "--sentence", "the sky"]
    assert main(missing) == 1
    assert "missing.png" in capsys.readouterr().err
