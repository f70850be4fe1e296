"""Own data: one plain file for all modes. The example of the module's docstring is read as it stands."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psalm.own_data
import pytest
from PIL import Image
from psalm.own_data import OwnFile, OwnSource

CLASSES = ["car", {"name": "road", "thing": False}]
UPPER = {"box": [0, 0, 1, 0.5]}
LEFT = {"box": [0, 0, 5, 10], "units": "pixels"}
WHOLE = {"box": [0, 0, 1, 1]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., OwnFile]:
    def write_it(*records: dict) -> OwnFile:
        (tmp_path / "own.json").write_text("\n".join(json.dumps({"image": "a.png"} | record) for record in records))
        Image.fromarray(np.zeros((10, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
        Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "b.png")
        return OwnFile(tmp_path / "own.json", tmp_path)

    return write_it


def segments(*named: tuple[str, dict], classes: list = CLASSES) -> dict:
    return {"classes": classes, "segments": [{"class": name, **region} for name, region in named]}


def test_the_example_in_the_documentation_is_read(tmp_path):
    text = psalm.own_data.__doc__ or ""
    example = textwrap.dedent(text[text.index('    {"image"') :])
    (tmp_path / "own.json").write_text("[" + example.replace("}\n{", "},\n{") + "]")
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(np.zeros((100, 120, 3), dtype=np.uint8)).save(tmp_path / name)
    own = OwnFile(tmp_path / "own.json", tmp_path)
    assert own.modes() == ["panoptic", "semantic", "instance", "referring", "region", "cross_image"]
    for mode in own.modes():
        scene = OwnSource(own, mode).load(0)
        assert scene.mode == mode
        assert len(scene.masks) == (2 if mode in ("panoptic", "semantic") else 1)


def test_class_modes_read_the_same_segments_in_their_way(write):
    own = write(segments(("car", LEFT), ("road", UPPER), ("car", WHOLE)), segments())
    panoptic, semantic, instance = (OwnSource(own, mode).load(0) for mode in ("panoptic", "semantic", "instance"))
    # Front to back: a pixel belongs to the first segment that covers it. 10 x 20 pixels: 50, 75 and 75 of them.
    assert panoptic.masks.sum((1, 2)).tolist() == [50, 75, 75]
    assert panoptic.target_conditions.argmax(1).tolist() == [0, 1, 0]
    assert semantic.masks.sum((1, 2)).tolist() == [125, 75]
    assert instance.masks.sum((1, 2)).tolist() == [50, 200]  # things alone, whole
    assert panoptic.conditions == semantic.conditions == ("car", "road")
    assert panoptic.is_thing == (True, False)
    assert OwnSource(own, "panoptic").load(1).masks.shape == (0, 10, 20)


def test_instances_are_asked_for_by_the_things_alone(write):
    # Stuff among the candidates would be background here and a target in panoptic, in one and the same sequence.
    classes = [{"name": "road", "thing": False}, "car", {"name": "sky", "thing": False}, "bus"]
    source = OwnSource(write(segments(("road", UPPER), ("bus", LEFT), classes=classes)), "instance")
    scene = source.load(0)
    assert source.label_space.names == scene.conditions == ("car", "bus")
    assert source.label_space.is_thing == scene.is_thing == (True, True)
    assert source.label_space.category_ids == (1, 3)  # as in panoptic segmentation
    assert source.texts() == ["car", "bus"]
    assert scene.target_conditions.tolist() == [[False, True]]


def test_classes_without_things_have_no_instances(write):
    own = write(segments(("road", UPPER), classes=[{"name": "road", "thing": False}]))
    assert [len(OwnSource(own, mode)) for mode in ("panoptic", "semantic", "instance")] == [1, 1, 0]


def test_points_and_scribbles_are_drawn_with_the_pens_of_the_settings(write):
    shown = [
        {"point": [10.5, 5.5], "units": "pixels"},
        {"point": [0.525, 0.55]},
        {"scribble": [4.5, 5.5, 14.5, 5.5], "units": "pixels"},
        {"scribble": [0.225, 0.55, 0.725, 0.55]},
        {"point": [10.5, 5.5], "units": "pixels", "radius": 0},
    ]
    own = write({"regions": [{"prompt": prompt, "targets": []} for prompt in shown]})
    own = OwnFile(own.file, own.images, pens={"point": 2, "scribble": 1})
    prompts = OwnSource(own, "region").load(0).prompts
    # 13 pixels have their centre within 2 of a point; a share of 10 x 20 pixels is as large as pixels are.
    assert prompts[:2].sum((1, 2)).tolist() == [13, 13]
    np.testing.assert_array_equal(prompts[2], prompts[3])
    assert prompts[2].any(1).sum() == 3  # the line and one row to either side
    assert prompts[4].sum() == 1  # a size of its own is kept


def test_images_with_coco_names_can_be_left_out(write):
    names = ("000000000007.jpg", "sub/COCO_train2014_000000000007.jpg", "000000000008.jpg", "7.jpg")
    records = [{"image": name, "sentence": "a", "targets": []} for name in names]
    records.append({"image": "b.png", "reference_image": names[0], "regions": []})
    own = write(*records)
    own = OwnFile(own.file, own.images, excluded={7})
    assert own.serving("referring") == [2, 3]
    assert own.serving("cross_image") == []


def test_a_segment_behind_others_is_counted(write):
    scene = OwnSource(write(segments(("road", WHOLE), ("car", LEFT))), "panoptic").load(0)
    assert len(scene.masks) == 1
    assert scene.dropped == (("empty target", 1),)


def test_sentences_mean_none_one_or_several(write):
    own = write({"sentence": " the  cup ", "targets": []}, {"sentence": "both", "targets": [LEFT, UPPER]})
    source = OwnSource(own, "referring")
    assert source.load(0).conditions == ("the cup",)
    assert source.load(0).masks.shape == (0, 10, 20)
    assert source.load(1).target_conditions.tolist() == [[True], [True]]
    assert own.modes() == ["referring"]
    assert source.texts() == ["the cup", "both"]


def test_regions_mean_none_one_or_several(write):
    regions = [
        {"prompt": {"point": [0.1, 0.1]}, "targets": [LEFT]},
        {"prompt": WHOLE, "targets": [LEFT, UPPER]},
        {"prompt": WHOLE, "targets": []},
    ]
    scene = OwnSource(write({"regions": regions}), "region").load(0)
    # The first two mean the same object, which is one target.
    assert scene.masks.sum((1, 2)).tolist() == [50, 100]
    assert scene.target_conditions.tolist() == [[True, True, False], [False, True, False]]
    assert scene.prompts.shape == (3, 10, 20)


@pytest.mark.parametrize(("first", "bound"), [(LEFT, True), ({"point": [0.1, 0.1]}, False)])
def test_boxes_and_masks_bound_their_regions(write, first, bound):
    regions = [{"prompt": prompt, "targets": [LEFT]} for prompt in (first, WHOLE)]
    assert OwnSource(write({"regions": regions}), "region").load(0).prompts_bound is bound


def test_prompts_lie_on_the_reference_image(write):
    record = {"reference_image": "b.png", "regions": [{"prompt": LEFT | {"box": [0, 0, 4, 8]}, "targets": [UPPER]}]}
    own = write(record)
    scene = OwnSource(own, "cross_image").load(0)
    assert own.modes() == ["cross_image"]
    assert scene.reference_image.shape == (8, 8, 3)
    assert scene.prompts.shape == (1, 8, 8)
    assert scene.prompts.sum() == 32
    assert scene.masks.sum() == 100


@pytest.mark.parametrize(
    ("mode", "record", "message"),
    [
        ("panoptic", {"segments": []}, "'segments' need 'classes'"),
        ("panoptic", segments(("cat", LEFT)), r"segment 0, key 'class': got 'cat', expected one of \['car', 'road'\]"),
        ("panoptic", {"classes": CLASSES, "segments": [LEFT]}, "segment 0: 'class' is missing"),
        ("panoptic", segments(("car", {"box": [0, 0, 2, 1]})), "segment 0: box"),
        ("referring", {"sentence": " ", "targets": []}, "key 'sentence': got no words"),
        ("referring", {"sentence": "a"}, "'targets' is missing"),
        ("referring", {"sentence": "a", "targets": [{"box": [0, 0, 0, 0]}]}, "target 0: the mask is empty"),
        ("region", {"regions": [{"targets": []}]}, "region 0: 'prompt' is missing"),
        ("region", {"regions": [{"prompt": LEFT}]}, "region 0: 'targets' is missing"),
        ("region", {"regions": [], "image": "no.png"}, "no.png"),
        ("region", {"caption": "a"}, "expected one or more of segments, sentence, regions, got image, caption"),
    ],
)
def test_a_faulty_record_is_named(write, mode, record, message):
    own = write(record)
    assert mode in own.modes()
    with pytest.raises(ValueError, match=rf"own\.json record 0.*{message}"):
        OwnSource(own, mode).load(0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (segments(classes=["car"]), "record 1, key 'classes': expected the same list as in record 0"),
        (None, "record 0, key 'classes', entry 0: got"),
    ],
)
def test_faulty_classes_are_an_error_when_the_file_is_opened(write, second, message):
    records = [segments(classes=[{"name": "car", "color": 1}])] if second is None else [segments(), second]
    with pytest.raises(ValueError, match=message):
        write(*records)


@pytest.mark.parametrize(
    ("classes", "message"),
    [([], "one or more different names"), (["a", "a"], "one or more different"), (["background"], "'background'")],
)
def test_class_names_are_different_and_leave_background_free(write, classes, message):
    with pytest.raises(ValueError, match=rf"record 0, key 'classes': .*{message}"):
        write(segments(classes=classes))
