import json

import pytest
from roi_region_loss import BoxFile, BoxSelection, import_coco, import_yolo

COCO = {
    "images": [
        {"id": 1, "file_name": "train/a.png", "width": 400, "height": 200},
        {"id": 2, "file_name": "train/b.png", "width": 100, "height": 100},
    ],
    "categories": [{"id": 7, "name": "dog"}],
    "annotations": [
        {"image_id": 1, "category_id": 7, "bbox": [100, 50, 100, 50]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 200, 200], "score": 0.9},
        {"image_id": 1, "category_id": 9, "bbox": [380, 100, 40, 100], "score": 0.5},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 100, 100], "score": 0.1},
        {"image_id": 1, "category_id": 7, "bbox": [10, 10, 0, 50]},
        {"image_id": 1, "category_id": 7, "bbox": [10, 10, 8, 8]},
    ],
}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_coco_annotations(write, tmp_path):
    report = import_coco(write("coco.json", COCO), tmp_path / "boxes.json")
    assert (report.num_images, report.num_boxes) == (2, 3)
    assert report.dropped == {"low_score": 1, "no_area": 1, "small": 1}
    file = BoxFile.load(tmp_path / "boxes.json")
    found = file.boxes("a")
    # The largest first; the third overshot the right edge and was cut.
    assert found.boxes.tolist() == [[0.0, 0.0, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5], [0.95, 0.5, 1.0, 1.0]]
    assert found.labels == ("dog", "dog", "9")
    assert file.boxes("b").boxes.shape == (0, 4)
    assert file.coverage([("1", "a", "b")]).fraction == 1.0


def test_a_list_of_coco_results(write, tmp_path):
    source, images = write("results.json", COCO["annotations"]), write("coco.json", COCO)
    selection = BoxSelection(min_score=0.0, min_area=0.0, max_boxes=1)
    report = import_coco(source, tmp_path / "boxes.json", images=images, selection=selection, image_names="file_name")
    assert report.dropped == {"no_area": 1, "over_cap": 4}
    assert len(BoxFile.load(tmp_path / "boxes.json").boxes("train/a.png").boxes) == 1
    with pytest.raises(ValueError, match="a list of results needs `images`"):
        import_coco(source, tmp_path / "boxes.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"image_id": 3, "category_id": 7, "bbox": [0, 0, 1, 1]}]}, "annotation 0: there is no image"),
        ({"annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}, "annotation 0: lacks category_id"),
        ({"annotations": [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 1]}]}, "annotation 0: a box is four finite"),
        ({"images": [{"id": 1, "file_name": "a.png"}]}, "image 0: lacks width, height"),
        (
            {"images": [{"id": id_, "file_name": f"{id_}/a.png", "width": 1, "height": 1} for id_ in (1, 2)]},
            "1 image names occur more than once, the first is 'a'",
        ),
        ({"annotations": None}, "expected 'images' and 'annotations'"),
    ],
)
def test_bad_coco_files(write, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        import_coco(write("coco.json", COCO | change), tmp_path / "boxes.json")


def test_yolo(write, tmp_path):
    write("labels/a.txt", "0 0.5 0.5 0.5 0.5 0.9\n\n1 0.25 0.5 0.5 1.0\n0 0.5 0.5 0.2 0.2 0.1\n")
    write("labels/more/b.txt", "")
    report = import_yolo(tmp_path / "labels", tmp_path / "boxes.json", class_names=["dog", "cat"])
    assert (report.num_images, report.num_boxes, report.dropped) == (2, 2, {"low_score": 1})
    found = BoxFile.load(tmp_path / "boxes.json").boxes("a")
    assert found.boxes.tolist() == [[0.0, 0.0, 0.5, 1.0], [0.25, 0.25, 0.75, 0.75]]
    assert found.labels == ("cat", "dog")
    import_yolo(tmp_path / "labels", tmp_path / "boxes.json")
    assert BoxFile.load(tmp_path / "boxes.json").boxes("a").labels == ("1", "0")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dog 0.5 0.5 0.5 0.5", "line 1: expected numbers"),
        ("0 0.5 0.5 0.5", "line 1: expected class, centre x"),
        ("5 0.5 0.5 0.5 0.5", "class 5 is none of the 1 names"),
        ("0 150 80 40 40", "far outside .*in pixels"),
        ("0 nan 0.5 0.5 0.5", "four finite numbers"),
    ],
)
def test_bad_yolo_lines(write, tmp_path, line, message):
    write("labels/a.txt", line)
    with pytest.raises(ValueError, match=message):
        import_yolo(tmp_path / "labels", tmp_path / "boxes.json", class_names=["dog"])


def test_bad_yolo_folders(write, tmp_path):
    with pytest.raises(ValueError, match=r"there are no \.txt files"):
        import_yolo(tmp_path, tmp_path / "boxes.json")
    write("labels/x/a.txt", "")
    write("labels/y/a.txt", "")
    with pytest.raises(ValueError, match="more than once, the first is 'a'"):
        import_yolo(tmp_path / "labels", tmp_path / "boxes.json")
