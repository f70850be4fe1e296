"""`sprc predict`: a folder of images is searched, its features are kept, and the reference is no answer."""

import json
import os
import shutil

import pytest
import torch
from sprc.cli import main
from sprc.model import SPRCModel
from sprc.predict import list_images


@pytest.fixture(scope="module")
def run(cirr, tmp_path_factory):
    return cirr.begin_run(tmp_path_factory.mktemp("predict") / "run", transform="squarepad")


@pytest.fixture
def gallery(cirr, tmp_path):
    """Five images, one of them in a folder below."""
    folder = tmp_path / "gallery"
    (folder / "below").mkdir(parents=True)
    # Of several scenes, so that their canvases differ.
    places = ("0-0", "0-1", "1-0", "2-0", "3-0")
    files = [cirr.root / f"img_raw/dev/dev-{place}-img0.png" for place in places]
    for file in files[:4]:
        shutil.copy(file, folder)
    shutil.copy(files[4], folder / "below" / "FIFTH.PNG")
    (folder / "notes.txt").write_text("no image")
    return folder


def _predict(model, gallery, tmp_path, *words, reference="dev-0-0-img0.png"):
    output = tmp_path / "found.html"
    fixed = ["--image", str(gallery / reference), "--gallery", str(gallery), "--output", str(output), "--device", "cpu"]
    return main(["predict", str(model), *fixed, "--text", "make the circle red", *words]), output


def _lines(capsys):
    return [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if line.strip()[:1].isdigit()]


def test_images_are_found_at_any_depth_and_named_by_their_place(gallery):
    found = list_images(gallery)
    assert list(found) == sorted(found)
    assert "below/FIFTH.PNG" in found
    assert len(found) == 5
    assert "notes.txt" not in found


def test_the_best_images_are_printed_and_shown_without_the_reference(run, gallery, tmp_path, capsys):
    code, sheet = _predict(run.path, gallery, tmp_path)
    assert code == 0
    lines = _lines(capsys)
    assert [int(place) for place, _, _ in lines] == [1, 2, 3, 4]
    scores = [float(score) for _, score, _ in lines]
    assert scores == sorted(scores, reverse=True)
    paths = {path for _, _, path in lines}
    assert str(gallery / "dev-0-0-img0.png") not in paths
    assert str(gallery / "below/FIFTH.PNG") in paths
    page = sheet.read_text()
    assert "make the circle red" in page
    assert "target at rank" not in page
    assert page.count("<figure") == 5


def test_a_reference_outside_of_the_gallery_excludes_nothing(run, cirr, gallery, tmp_path, capsys):
    outside = cirr.root / "img_raw/dev/dev-7-0-img0.png"
    assert _predict(run.path, gallery, tmp_path, "--image", str(outside), "--top_k", "3")[0] == 0
    assert len(_lines(capsys)) == 3
    assert _predict(run.path, gallery, tmp_path, "--image", str(outside))[0] == 0
    assert len(_lines(capsys)) == 5


def test_the_reference_is_known_by_another_path_too(run, gallery, tmp_path, capsys):
    (tmp_path / "link.png").symlink_to(gallery / "dev-0-0-img0.png")
    assert _predict(run.path, gallery, tmp_path, "--image", str(tmp_path / "link.png"))[0] == 0
    assert str(gallery / "dev-0-0-img0.png") not in {path for _, _, path in _lines(capsys)}


def test_the_index_is_kept_and_used_again(run, gallery, tmp_path, capsys, monkeypatch):
    index = tmp_path / "index"
    assert _predict(run.path, gallery, tmp_path, "--index", str(index))[0] == 0
    first = _lines(capsys)
    (kept,) = index.iterdir()

    def encode(*_args, **_options):
        raise AssertionError("the gallery is encoded again")

    with monkeypatch.context() as patched:
        patched.setattr("sprc.predict.encode_gallery", encode)
        assert _predict(run.path, gallery, tmp_path, "--index", str(index))[0] == 0
    assert _lines(capsys) == first
    # Another picture under a known name is another gallery.
    os.utime(gallery / "dev-0-1-img0.png", ns=(1, 1))
    assert _predict(run.path, gallery, tmp_path, "--index", str(index))[0] == 0
    assert len(list(index.iterdir())) == 2
    assert kept.is_file()


def test_other_weights_have_another_index(run, gallery, tmp_path, capsys):
    index, other = tmp_path / "index", tmp_path / "other"
    shutil.copytree(run.path, other)
    model = SPRCModel.from_pretrained(other / "model")
    torch.nn.init.normal_(model.composer.vision_projection.weight)
    model.save_pretrained(other / "model")
    assert _predict(run.path, gallery, tmp_path, "--index", str(index))[0] == 0
    assert _predict(other, gallery, tmp_path, "--index", str(index))[0] == 0
    assert len(list(index.iterdir())) == 2
    with_index = _lines(capsys)[4:]
    assert _predict(other, gallery, tmp_path)[0] == 0
    assert _lines(capsys) == with_index


def test_other_normalisation_or_epsilon_has_another_index(run, gallery, tmp_path, capsys):
    """They are in the model's configuration, not among its weights."""
    index, other = tmp_path / "index", tmp_path / "other"
    assert _predict(run.path, gallery, tmp_path, "--index", str(index))[0] == 0
    for number, change in enumerate(({"image_std": [0.5, 0.5, 0.5]}, {"ln_vision_eps": 1e-2}), 2):
        shutil.copytree(run.path, other)
        config = other / "model" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
        assert _predict(other, gallery, tmp_path, "--index", str(index))[0] == 0
        assert len(list(index.iterdir())) == number
        shutil.rmtree(other)


def test_a_model_folder_of_a_run_keeps_the_runs_transform(run, gallery, tmp_path, capsys):
    """The weights of the best evaluation lie beside `model`, and are searched with as the run was trained."""
    shutil.copytree(run.model_path, run.path / "best", dirs_exist_ok=True)
    answers = []
    for folder in (run.path, run.model_path, run.path / "best"):
        assert _predict(folder, gallery, tmp_path)[0] == 0
        answers.append(_lines(capsys))
    assert answers[0] == answers[1] == answers[2]
    shutil.copytree(run.model_path, tmp_path / "alone")
    assert _predict(tmp_path / "alone", gallery, tmp_path)[0] == 0
    assert _lines(capsys) != answers[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gallery", "EMPTY"], "no image there (.jpg, .jpeg, .png, .webp)"),
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--top_k", "0"], "got k = 0, expected at least 1"),
    ],
)
def test_a_mistake_is_one_message(run, gallery, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "empty") if word == "EMPTY" else word for word in words]
    code, output = _predict(run.path, gallery, tmp_path, *words)
    assert code == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not output.exists()


def test_a_damaged_image_of_the_gallery_is_named(run, gallery, tmp_path, capsys):
    (gallery / "broken.png").write_bytes(b"\x89PNG nothing")
    assert _predict(run.path, gallery, tmp_path)[0] == 1
    assert "broken.png" in capsys.readouterr().err


def test_a_folder_without_a_model_is_named(gallery, tmp_path, capsys):
    assert _predict(tmp_path, gallery, tmp_path)[0] == 1
    assert f"{str(tmp_path)!r}: no model.safetensors there" in capsys.readouterr().err
