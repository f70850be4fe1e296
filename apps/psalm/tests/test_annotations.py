"""Images and masks that do not fit one another are errors with the record's name."""

import json

import numpy as np
import pytest
from PIL import Image
from psalm.annotations import (
    decode_mask,
    find_image_id,
    image_name,
    is_crowd,
    one_hot,
    read_json_object,
    read_scene_image,
    require_id,
    require_objects,
    segmentation_to_mask,
)
from region_core.rle import encode_rle

WHERE = "a.json record 3"
SQUARE = np.zeros((6, 8), dtype=bool)
SQUARE[1:3, 2:6] = True


def test_an_object_is_read_strictly(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"images": [], "info": {"year": 2017}}))
    assert read_json_object(file)["info"] == {"year": 2017}
    file.write_text('{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match=r"a\.json record 0: the key 'a' stands twice"):
        read_json_object(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match=r"starts with '\[\]', expected one JSON object"):
        read_json_object(file)
    file.write_bytes(b"{\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_json_object(file)


def test_an_image_is_read_with_its_declared_size(tmp_path):
    Image.fromarray(np.full((6, 8, 3), 7, dtype=np.uint8)).save(tmp_path / "a.png")
    image = read_scene_image(tmp_path, "a.png", WHERE, declared={"height": 6, "width": 8})
    assert image.shape == (6, 8, 3)
    with pytest.raises(ValueError, match=r"record 3: the image 'a.png' has a height of 6 .*expected 8"):
        read_scene_image(tmp_path, "a.png", WHERE, declared={"height": 8, "width": 6})


def test_an_image_that_exif_turns_has_the_upright_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 6, 3), dtype=np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    # Upright it is 6 x 8; whoever annotated the stored 8 x 6 pixels has masks that do not fit.
    assert read_scene_image(tmp_path, "a.jpg", WHERE, declared={"height": 6, "width": 8}).shape == (6, 8, 3)
    with pytest.raises(ValueError, match="EXIF"):
        read_scene_image(tmp_path, "a.jpg", WHERE, declared={"height": 8, "width": 6})


def test_a_truncated_image_is_an_error_with_its_record(tmp_path):
    file = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"record 3: .*a\.jpg: damaged picture"):
        read_scene_image(tmp_path, "a.jpg", WHERE)
    with pytest.raises(ValueError, match=r"record 3: .*b\.jpg"):
        read_scene_image(tmp_path, "b.jpg", WHERE)
    with pytest.raises(ValueError, match="leads out of"):
        read_scene_image(tmp_path, "../a.jpg", WHERE)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[2, 1, 6, 1, 6, 3, 2, 3]],
        [[2, 1, 6, 1, 6, 3, 2, 3], [0, 0, 1, 1]],  # COCO has "polygons" of two points
        dict(encode_rle(SQUARE)),
        dict(encode_rle(SQUARE, compressed=False)),
    ],
)
def test_polygons_and_both_kinds_of_rle_give_the_same_mask(segmentation):
    mask = segmentation_to_mask({"segmentation": segmentation}, height=6, width=8, where=WHERE)
    np.testing.assert_array_equal(mask, SQUARE)


def test_polygons_without_area_are_an_empty_mask():
    assert not segmentation_to_mask({"segmentation": [[0, 0, 1, 1]]}, height=6, width=8, where=WHERE).any()
    assert not segmentation_to_mask({"segmentation": []}, height=6, width=8, where=WHERE).any()


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({}, "key 'segmentation': got None, expected an RLE or a list of polygons"),
        ({"segmentation": encode_rle(SQUARE.T)}, r"the RLE's size is \[8, 6\], expected the image's .*\[6, 8\]"),
        ({"segmentation": [[0, 0, 1, 99, 2, 2]]}, "point 1 is"),
        ({"segmentation": [["a"] * 6]}, r"key 'segmentation': polygons\[0\] is numbers"),
        ({"segmentation": {"size": [6, 8]}}, "needs the keys"),
    ],
)
def test_faulty_segmentations_are_named(annotation, message):
    with pytest.raises(ValueError, match=rf"record 3, .*{message}"):
        segmentation_to_mask(annotation, height=6, width=8, where=WHERE)


def test_a_mask_may_be_stored_at_a_fraction_where_that_is_allowed():
    small = np.array([[True, False], [False, True]])
    rle = dict(encode_rle(small))
    mask = decode_mask(rle, height=4, width=4, where=WHERE, fractions=(1, 2))
    np.testing.assert_array_equal(mask, np.kron(small, np.ones((2, 2))) > 0)
    with pytest.raises(ValueError, match="the RLE's size"):
        decode_mask(rle, height=4, width=4, where=WHERE)
    with pytest.raises(ValueError, match="the RLE's size"):
        decode_mask(rle, height=5, width=5, where=WHERE, fractions=(1, 2))


def test_fields_of_the_list_formats():
    record = {"image": "a.jpg", "image_info": {"file_name": "b.jpg", "id": 4}}
    assert image_name(record, WHERE) == "a.jpg"
    assert image_name({"image_info": {"file_name": "b.jpg"}}, WHERE) == "b.jpg"
    assert find_image_id(record) == 4
    assert find_image_id({"image": "a.jpg"}) is None
    with pytest.raises(ValueError, match="'file_name' is missing"):
        image_name({}, WHERE)
    assert require_id({"id": "a"}, "id", WHERE) == "a"
    with pytest.raises(ValueError, match=r"'id' is 1\.5"):
        require_id({"id": 1.5}, "id", WHERE)
    with pytest.raises(ValueError, match="key 'anns', entry 1: got 3, expected an object"):
        require_objects({"anns": [{}, 3]}, "anns", WHERE)


def test_crowds():
    assert [is_crowd(entry, WHERE) for entry in ({}, {"iscrowd": 0}, {"iscrowd": 1})] == [False, False, True]
    with pytest.raises(ValueError, match="key 'iscrowd': got 2"):
        is_crowd({"iscrowd": 2}, WHERE)


def test_one_hot():
    assert one_hot([2, 0], 3).tolist() == [[False, False, True], [True, False, False]]
    assert one_hot([], 3).shape == (0, 3)
