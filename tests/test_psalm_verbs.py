"""The other verbs of `psalm`, on a trained run: evaluate, report, predict, make-data, check-data, adapt-projector."""

import json
import shutil

import numpy as np
import pytest
import torch
from deformable_projector import SwinConvProjector
from PIL import Image
from psalm.synthetic import paths_of
from region_core.rle import decode_rle
from region_training.images import write_png
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SIDE = 64
CLASSES = "apple,brick,tree,kite,cross,sky,grass,water,sand"
ALL_SEGMENTS = ("--score_threshold", "0", "--overlap_threshold", "0")
SCRIBBLE = "0.3,0.3,0.6,0.4,0.5,0.6"


def _questions(folder):
    """What is asked of the image, by the name of the answer."""
    mask = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    mask[20:40, 10:50] = 255
    write_png(folder / "mask.png", mask)
    return {
        "panoptic": ("--classes", CLASSES, "--things", "apple,brick,tree,kite,cross", *ALL_SEGMENTS),
        "semantic": ("--classes", CLASSES, "--mode", "semantic"),
        "instance": ("--classes", "apple, brick", "--mode", "instance"),
        "sentence": ("--sentence", "the red apple on the left"),
        "box": ("--box", "0.2,0.2,0.6,0.7;0.5,0.5,0.9,0.9"),
        "pixels": ("--box", "12,12,40,44", "--units", "pixels"),
        "point": ("--point", "0.5,0.5"),
        "scribble": ("--scribble", SCRIBBLE),
        "mask": ("--mask", str(folder / "mask.png")),
        "pair": ("--box", "0.2,0.2,0.6,0.7", "--reference", str(folder / "reference.png")),
    }


def _square(path, source):
    """An image of the world at a size that is known."""
    with Image.open(source) as image:
        write_png(path, np.asarray(image.convert("RGB").resize((SIDE, SIDE))))


@pytest.fixture(scope="module")
def used(psalm_trained, psalm_small, psalm_commands, tmp_path_factory):
    """A copy of the trained run after all verbs: the folder, and exit code and output by name."""
    folder = tmp_path_factory.mktemp("psalm-verbs")
    shutil.copytree(psalm_trained, folder / "run")
    shutil.copytree(psalm_trained, folder / "reported")
    (folder / "reported" / "report.html").unlink()
    scenes = sorted((psalm_small.root / "coco" / "val2017").iterdir())
    _square(folder / "image.png", scenes[0])
    _square(folder / "reference.png", scenes[1])
    model, image = str(folder / "run"), str(folder / "image.png")
    questions = _questions(folder)
    world = ("--world.train_scenes", "3", "--world.eval_scenes", "2", "--world.image_size", "48")
    data = [word for key, path in paths_of(folder / "made").items() for word in (f"--data.{key}", path)]
    common = ("--device", "cpu", "--output")
    commands = {
        "evaluate": ["evaluate", model, "--device", "cpu", "--batch_size", "4"],
        "report": ["report", str(folder / "reported")],
        "make-data": ["make-data", str(folder / "made"), *world],
        "check-data": ["check-data", *data, "--data.image_size", "64", "--report", str(folder / "faults.jsonl")],
        **{
            name: ["predict", model, image, *common, str(folder / f"{name}.png"), *words]
            for name, words in questions.items()
        },
        "twice": ["predict", model, image, *common, str(folder / "twice.png"), "--sentence", "it", "--point", "0,0"],
        "outside": ["predict", model, image, *common, str(folder / "outside.png"), "--box", "0.2,0.2,1.6,0.7"],
    }
    found = psalm_commands(list(commands.values()), folder / "ranks")
    return folder, dict(zip(commands, found, strict=True))


def test_evaluating_again_gives_the_scores_of_the_training_run(used, psalm_trained):
    folder, found = used
    assert found["evaluate"][0] == 0, found["evaluate"][1]
    for name in ("results.json", "predictions/predictions.jsonl", "predictions/panoptic.json"):
        assert (folder / "run" / name).read_text() == (psalm_trained / name).read_text(), name


def test_the_report_is_written_again_from_the_files(used, psalm_trained):
    folder, found = used
    code, output = found["report"]
    assert code == 0, output
    assert str(folder / "reported" / "report.html") in output
    page, first = (run / "report.html" for run in (folder / "reported", psalm_trained))
    assert page.read_text().count("data:image/png") == first.read_text().count("data:image/png") > 0


def test_made_data_is_checked_without_a_fault(used):
    folder, found = used
    assert found["make-data"][0] == 0, found["make-data"][1]
    code, output = found["check-data"]
    assert code == 0, output
    for mode in ("panoptic", "semantic", "instance", "referring", "region", "cross_image"):
        assert mode in output
    assert (folder / "faults.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("panoptic", set(CLASSES.split(","))),
        ("semantic", set(CLASSES.split(","))),
        ("instance", {"apple", "brick"}),
        ("sentence", {"the red apple on the left"}),
        ("box", {"region 0", "region 1"}),
        *((name, {"region 0"}) for name in ("pixels", "point", "scribble", "mask", "pair")),
    ],
)
def test_every_question_is_answered_by_a_picture_and_a_coco_file(used, name, labels):
    folder, found = used
    code, output = found[name]
    assert code == 0, output
    with Image.open(folder / f"{name}.png") as picture:
        assert min(picture.size) > SIDE
    coco = json.loads((folder / f"{name}.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": "image.png", "height": SIDE, "width": SIDE}]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    assert set(names.values()) == labels
    # So little trained, the model may take every class for background; of all else there is always an answer.
    assert coco["annotations"] or (name == "panoptic" and "nothing found" in output)
    for annotation in coco["annotations"]:
        mask = decode_rle(annotation["segmentation"], height=SIDE, width=SIDE)
        assert annotation["area"] == mask.sum()
        assert annotation["category_id"] in names
    if name == "panoptic":
        things = {category["name"] for category in coco["categories"] if category["isthing"]}
        assert things == {"apple", "brick", "tree", "kite", "cross"}
    if name in ("box", "sentence", "pair"):
        best = [annotation for annotation in coco["annotations"] if annotation["role"] == "best"]
        assert len(best) == len(labels)


def test_two_questions_at_once_and_a_box_outside_are_refused(used):
    folder, found = used
    for name, said in (("twice", "expected one question"), ("outside", "--box, region 0")):
        code, output = found[name]
        assert code == 1, output
        assert said in output
        assert "Traceback" not in output
        assert not (folder / f"{name}.png").exists()


def test_a_baselines_projector_is_adapted_and_trained_further(psalm_small, psalm_commands, tmp_path):
    """`mm_projector.bin`, `adapt-projector`, `--pretrain_mm_mlp_adapter`, at the published width of the backbone."""
    torch.manual_seed(0)
    baseline = SwinConvProjector(1024, 32, 8, conv2_repeats=2)
    with torch.no_grad():
        for value in baseline.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand_like(value)
    source, output = tmp_path / "mm_projector.bin", tmp_path / "adapted" / "projector.safetensors"
    torch.save({f"model.mm_projector.{name}": value for name, value in baseline.state_dict().items()}, source)
    sizes = {"hidden_dim": 16, "num_heads": 2, "num_points": 2}
    adapt = [
        *("adapt-projector", str(source), str(output), "--swin_type", "base"),
        *(word for key, size in sizes.items() for word in (f"--projector.{key}", str(size))),
    ]
    train = psalm_small.train(
        tmp_path / "run",
        *("--pretrain_mm_mlp_adapter", str(output), "--model.conv2_repeats", "2", "--model.projector_conv_dim", "8"),
        *("--model.swin.embed_dim", "128", "--max_steps", "1", "--learning_rate", "1e-9", "--save_steps", "0"),
        *("--evaluation.max_samples", "1", "--evaluation.baselines", "false"),
    )
    for code, said in psalm_commands([adapt, train], tmp_path / "ranks"):
        assert code == 0, said
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    # At this learning rate a step leaves them where they were: they were really read.
    for name, value in baseline.named_parameters():
        torch.testing.assert_close(trained[f"projector.base.{name}"], value, rtol=0, atol=1e-6)
