"""Three dialects become one form: who is shown, who is meant."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from psalm.cross_image import CrossImageSource, normalise
from psalm.prompts import PROMPT_KEYS
from region_core.rle import encode_rle

TARGET_SIZE, REFERENCE_SIZE = (16, 24), (32, 20)


def filled(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


A, B = filled(TARGET_SIZE, 0, 0, 4, 4), filled(TARGET_SIZE, 8, 8, 16, 16)
SHOWN_A, SHOWN_B = filled(REFERENCE_SIZE, 2, 2, 6, 6), filled(REFERENCE_SIZE, 20, 10, 30, 18)


def annotation(mask: np.ndarray, category: float, **more: object) -> dict[str, object]:
    return {"segmentation": encode_rle(mask), "category_id": category, **more}


DAVIS = {
    "image": "target.jpg",
    "image_info": {"file_name": "target.jpg", "height": 16, "width": 24},
    "anns": [annotation(A, 1.0), annotation(B, 2.0)],
    "first_frame_image": "reference.jpg",
    "first_frame_anns": [annotation(SHOWN_A, 1.0), annotation(SHOWN_B, 2.0)],
    "new_img_id": 0,
    "video_name": "bike",
}
EGO_EXO = {**DAVIS, "instruction": "the cup"}
PAIRS = {
    "image_info": {"image": "reference.jpg", "height": 32, "width": 20, "img_id": 4},
    "annotations": [annotation(SHOWN_A, 7, **{PROMPT_KEYS["box"]: encode_rle(SHOWN_B)}), annotation(SHOWN_B, 8)],
    "image1_info": {"image": "target.jpg", "height": 16, "width": 24, "img_id": 5},
    "annotations1": [annotation(A, 7), annotation(B, 7), annotation(B, 9)],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict], CrossImageSource]:
    def write_it(record: dict, change: Callable[[dict], object] = lambda record: None) -> CrossImageSource:
        record = copy.deepcopy(record)
        change(record)
        (tmp_path / "pairs.json").write_text(json.dumps([record]))
        for name, size in (("target.jpg", TARGET_SIZE), ("reference.jpg", REFERENCE_SIZE)):
            Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(tmp_path / name)
        return CrossImageSource(tmp_path / "pairs.json", tmp_path, types=("box", "mask"))

    return write_it


def test_pairs_with_coco_images_can_be_left_out(write):
    def left_out(record: dict, change: Callable[[dict], object]) -> bool:
        file = write(record, change).file
        return not len(CrossImageSource(file, file.parent, types=("box",), excluded={4}))

    name = "COCO_train2014_000000000004.jpg"
    assert left_out(DAVIS, lambda r: r.update(image=name))
    assert left_out(DAVIS, lambda r: r.update(first_frame_image=name))
    assert left_out(PAIRS, lambda r: r["image_info"].update(image=name))
    assert left_out(PAIRS, lambda r: r["image1_info"].update(image=name))
    # Another data set's image 4 is not COCO's.
    assert not left_out(PAIRS, lambda r: None)


def test_prompts_are_drawn_with_the_pens_of_the_settings(write):
    dot = encode_rle(filled(REFERENCE_SIZE, 10, 10, 11, 11))
    file = write(DAVIS, lambda r: r["first_frame_anns"][0].update({PROMPT_KEYS["point"]: dot})).file
    source = CrossImageSource(file, file.parent, types=("point",), pens={"point": 2, "scribble": 1})
    assert source.load(0).prompts[0].sum() == 13


@pytest.mark.parametrize("record", [DAVIS, EGO_EXO])
def test_annotations_correspond_by_their_order(write, record):
    scene = write(record).load(0)
    assert scene.image.shape == (16, 24, 3)
    assert scene.reference_image.shape == (32, 20, 3)
    np.testing.assert_array_equal(scene.masks, np.stack([A, B]))
    np.testing.assert_array_equal(scene.prompts, np.stack([SHOWN_A, SHOWN_B]))
    assert scene.target_conditions.tolist() == [[True, False], [False, True]]


def test_a_region_means_all_targets_of_its_category(write):
    scene = write(PAIRS).load(0)
    # The names of the two images are the file's own: `image_info` is the reference, `image1_info` the target.
    assert scene.image.shape == (16, 24, 3)
    assert scene.image_id == 5
    np.testing.assert_array_equal(scene.masks, np.stack([A, B]))
    assert scene.target_conditions.tolist() == [[True, False], [True, False]]
    np.testing.assert_array_equal(scene.prompts, np.stack([SHOWN_B, SHOWN_B]))  # the first has a box, the other none
    assert scene.dropped == (("target no region asks for", 1),)


def test_masks_of_ego_exo_are_stored_at_a_fraction(write):
    def shrink(record: dict) -> None:
        record["image_info"].update(height=4, width=6)
        record["anns"] = [annotation(A[::4, ::4], 1.0), annotation(B[::4, ::4], 2.0)]
        record["first_frame_anns"] = [annotation(SHOWN_A[::2, ::2], 1.0), annotation(SHOWN_B[::2, ::2], 2.0)]

    scene = write(EGO_EXO, shrink).load(0)
    np.testing.assert_array_equal(scene.masks, np.stack([A, B]))
    np.testing.assert_array_equal(scene.prompts, np.stack([SHOWN_A, SHOWN_B]))


def test_what_is_not_there_any_more_is_no_target(write):
    scene = write(DAVIS, lambda r: r["anns"][0].update(segmentation=encode_rle(A & False))).load(0)
    assert scene.target_conditions.tolist() == [[False, True]]
    assert len(scene.prompts) == 2
    assert scene.dropped == (("empty target", 1),)


@pytest.mark.parametrize("side", ["anns", "first_frame_anns"])
def test_a_crowd_leaves_with_its_counterpart(write, side):
    scene = write(DAVIS, lambda r: r[side][0].update(iscrowd=1)).load(0)
    np.testing.assert_array_equal(scene.masks, B[None])
    np.testing.assert_array_equal(scene.prompts, SHOWN_B[None])


def test_a_pair_without_annotations_is_a_scene(write):
    for record, keys in ((DAVIS, ("anns", "first_frame_anns")), (PAIRS, ("annotations", "annotations1"))):
        scene = write(record, lambda r, keys=keys: r.update({key: [] for key in keys})).load(0)
        assert scene.masks.shape == (0, 16, 24)
        assert scene.prompts.shape == (0, 32, 20)
        assert scene.target_conditions.shape == (0, 0)


def test_an_unknown_dialect_names_its_keys_and_all_key_sets():
    with pytest.raises(ValueError, match="got the keys anns, image, expected those of a dialect") as error:
        normalise({"image": "a.jpg", "anns": []}, "a.json record 0")
    for known in ("DAVIS: anns, first_frame_anns", "Ego-Exo4D: anns", "category pairs: annotations, annotations1"):
        assert known in str(error.value)


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        (DAVIS, lambda r: r["anns"].pop(), "'first_frame_anns' has 2 annotations and 'anns' 1"),
        (DAVIS, lambda r: r["anns"].reverse(), r"annotation 0 is category_id 1.0 on the reference and 2.0 on"),
        (DAVIS, lambda r: r["anns"][1].update(segmentation=encode_rle(A.T)), "target 1, .*the RLE's size"),
        (DAVIS, lambda r: r.update(first_frame_image="no.jpg"), r"reference: .*no\.jpg"),
        (DAVIS, lambda r: r["image_info"].update(height=15), "the image is 16 x 24 pixels .*expected 15 x 24"),
        (PAIRS, lambda r: r["image_info"].update(height=20, width=32), "reference: the image is 32 x 20"),
        (PAIRS, lambda r: r["annotations1"][2].pop("category_id"), "'annotations1', entry 2: 'category_id' is missing"),
        (PAIRS, lambda r: r["image1_info"].pop("image"), "key 'image1_info': 'image' is missing"),
    ],
)
def test_a_faulty_record_is_named(write, record, change, message):
    with pytest.raises(ValueError, match=rf"pairs\.json record 0.*{message}"):
        write(record, change).load(0)
