import json
import logging
import pickle

import numpy as np
import pytest
from roi_region_loss import BoxFile, write_box_file
from roi_region_loss.box_formats import check_format


@pytest.fixture
def load(tmp_path):
    def load(records, **options):
        path = tmp_path / "boxes.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records))
        return BoxFile.load(path, **options)

    return load


LEFT, RIGHT = [0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]


# The forms


def test_the_guides_form(load):
    file = load({"a": [LEFT, RIGHT], "b": [RIGHT], "c": []})
    assert not file.is_pair_keyed
    assert file.boxes("a").boxes.tolist() == [LEFT, RIGHT]
    assert file.boxes("c").boxes.shape == (0, 4)
    assert file.boxes("unknown").boxes.shape == (0, 4)
    pairs = file.pairs("1", "a", "b")
    assert (pairs.reference.tolist(), pairs.target.tolist()) == ([LEFT], [RIGHT])
    assert pairs.dropped == {"no_partner": 1}
    assert len(file.pairs("1", "a", "unknown")) == len(file.pairs("1", "a", "c")) == 0


def test_labelled_images_are_paired_by_label(load):
    file = load(
        {"a": {"boxes": [LEFT, RIGHT], "labels": ["dog", "cat"]}, "b": {"boxes": [LEFT, RIGHT], "labels": ["cat", "x"]}}
    )
    pairs = file.pairs("1", "a", "b")
    assert (pairs.reference.tolist(), pairs.target.tolist(), pairs.labels) == ([RIGHT], [LEFT], ("cat",))
    assert len(load({"a": [LEFT], "b": [LEFT]}, pairing="label").pairs("1", "a", "b")) == 0


PAIRS = {
    "12": [
        {"ref": LEFT, "target": RIGHT, "label": "dog", "relation": "changed", "weight": 2.0},
        {"ref": RIGHT, "target": RIGHT, "weight": 0.5},
    ],
    "13": [],
}


def test_pairs_by_triplet_and_changed_ones_have_no_weight(load):  # trap: positive pairs that should differ
    file = load(PAIRS)
    assert file.is_pair_keyed
    pairs = file.pairs("12", "a", "b")
    assert (pairs.reference.tolist(), pairs.target.tolist()) == ([LEFT, RIGHT], [RIGHT, RIGHT])
    assert (pairs.weights.tolist(), pairs.labels) == ([0.0, 0.5], ("dog", ""))
    assert len(file.pairs("13", "a", "b")) == len(file.pairs("14", "a", "b")) == 0
    assert load(PAIRS, use_changed_pairs=True).pairs("12", "a", "b").weights.tolist() == [2.0, 0.5]


def test_one_box_per_image_in_pixels(load):  # OACIRR
    file = load({"a": [100, 50, 300, 200]}, box_format="xyxy_pixel", image_size=lambda name: (400, 200))
    assert file.boxes("a").boxes.tolist() == [[0.25, 0.25, 0.75, 1.0]]


@pytest.mark.parametrize(
    ("box_format", "box"),
    [
        ("xyxy_norm", [0.25, 0.25, 0.75, 1.0]),
        ("cxcywh_norm", [0.5, 0.625, 0.5, 0.75]),
        ("xyxy_pixel", [100, 50, 300, 200]),
        ("xywh_pixel", [100, 50, 200, 150]),
    ],
)
def test_every_format_in_every_place(load, box_format, box):
    wanted = [[0.25, 0.25, 0.75, 1.0]]
    entry = {"boxes": [box], "size": [400, 200]}
    assert load({"a": entry}, box_format=box_format).boxes("a").boxes.tolist() == wanted
    assert load({"a": entry | {"format": box_format}}).boxes("a").boxes.tolist() == wanted
    late = load({"a": [box]}, box_format=box_format, image_size=lambda name: {"a": (400, 200)}[name])
    assert late.boxes("a").boxes.tolist() == wanted
    pair = {"ref": box, "target": box, "ref_size": [400, 200], "target_size": [400, 200], "format": box_format}
    pairs = load({"1": [pair]}).pairs("1", "a", "b")
    assert (pairs.reference.tolist(), pairs.target.tolist()) == (wanted, wanted)


def test_a_rounding_error_over_the_edge_is_cut_off(load):
    assert load({"a": [[-0.0009, 0.0, 0.5, 1.0009]]}).boxes("a").boxes.tolist() == [[0.0, 0.0, 0.5, 1.0]]


def test_all_pairs_are_given_since_the_cap_comes_after_the_filter(load):
    pairs = load({"a": [LEFT] * 6, "b": [RIGHT] * 5}).pairs("1", "a", "b")
    assert len(pairs) == 5
    assert pairs.dropped == {"no_partner": 1}


def test_pairing_by_order_is_said_once(load, caplog):
    with caplog.at_level(logging.INFO, logger="roi_region_loss"):
        load({"a": [LEFT], "b": [], "c": {"boxes": [LEFT], "labels": ["dog"]}})
        assert "1 images have boxes without labels; the k-th box" in caplog.text
        caplog.clear()
        load({"a": [LEFT]}, pairing="index")
        assert not caplog.text


def test_it_travels_to_data_workers(load):
    file = pickle.loads(pickle.dumps(load({"a": [LEFT], "b": [RIGHT]})))  # noqa: S301
    assert len(file.pairs("1", "a", "b")) == 1


# Errors


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([12, 20, 100, 150], "far outside .* pixels"),
        ([0.5, 0.0, 0.2, 1.0], "inverted, empty, or width"),
        ([0.2, 0.0, 0.2, 1.0], "inverted, empty, or width"),
        ([0.0, 0.0, 0.0, 0.0], "inverted, empty, or width"),
        ([0.0, float("nan"), 0.5, 1.0], "which is not finite"),
        ([0.0, 0.0, 0.5, 1.01], "which reaches outside the image"),
        ([-0.01, 0.0, 0.5, 1.0], "which reaches outside the image"),
    ],
)
def test_bad_boxes_name_file_key_and_box(load, box, message):  # traps: pixels, inverted, degenerate, NaN
    with pytest.raises(ValueError, match=rf"boxes\.json: 1 bad boxes:\n.*boxes\.json: 'a': box 1 is .*{message}"):
        load({"a": [LEFT, box]})
    with pytest.raises(ValueError, match=rf"'12': pair 0: 'target': box 0 is .*{message}"):
        load({"12": [{"ref": LEFT, "target": box}]})


def test_all_bad_boxes_are_counted(load):
    with pytest.raises(ValueError, match="7 bad boxes") as error:
        load({str(index): [[0.5, 0.0, 0.2, 1.0]] for index in range(7)})
    assert str(error.value).count("\n") == 5


def test_pixels_outside_their_image_are_found_once_its_size_is_known(load):
    with pytest.raises(ValueError, match=r"'a': box 0 is .* which reaches outside the image"):
        load({"a": {"boxes": [[0, 0, 410, 100]], "size": [400, 200], "format": "xyxy_pixel"}})
    file = load({"a": [[0, 0, 410, 100]]}, box_format="xyxy_pixel", image_size=lambda name: (400, 200))
    with pytest.raises(ValueError, match=r"'a': box 0 is .* which reaches outside the image"):
        file.boxes("a")
    with pytest.raises(ValueError, match="inverted"):
        load({"a": [[50, 0, 40, 100]]}, box_format="xyxy_pixel", image_size=lambda name: (400, 200))


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("[1, 2]", "expected an object of image names or triplets, got a list"),
        ("{", "not JSON"),
        ('{"a": [], "a": []}', "key 'a' occurs more than once"),
        ({"a": 3}, "'a': expected a list of boxes, got 3"),
        ({"a": [[0.1, 0.2, 0.3]]}, "'a': box 0 is not four numbers"),
        ({"a": [LEFT, "x"]}, "'a': box 1 is not four numbers"),
        ({"a": [[0.1, 0.2, True, 0.3]]}, "'a': box 0 is not four numbers"),
        ({"a": {"labels": []}}, r"'a': expected the keys .* of them \['boxes'\], got \['labels'\]"),
        ({"a": {"boxes": [], "label": []}}, "'a': expected the keys"),
        ({"a": {"boxes": [LEFT], "labels": []}}, "'labels' is one text for each of the 1 boxes"),
        ({"a": {"boxes": [LEFT], "labels": [3]}}, "'labels' is one text"),
        ({"a": {"boxes": [LEFT], "size": [640]}}, r"'size' is \[width, height\] in pixels, got \[640\]"),
        ({"a": {"boxes": [LEFT], "format": "xyxy"}}, "'a': a box format is one of xyxy_norm, .* got 'xyxy'"),
        ({"a": {"boxes": [[1, 2, 3, 4]], "format": "xyxy_pixel"}}, "'a' has boxes in pixels but no 'size'"),
        ({"1": [{"ref": LEFT}]}, "'1': pair 0: expected the keys"),
        ({"1": [{"ref": LEFT, "target": [LEFT, LEFT]}]}, "'1': pair 0: 'target': expected one box"),
        ({"1": [{"ref": LEFT, "target": LEFT, "relation": "moved"}]}, "'relation' is 'preserved' or 'changed'"),
        ({"1": [{"ref": LEFT, "target": LEFT, "weight": -1}]}, "'weight' is a number of 0 or more, got -1"),
        ({"1": [{"ref": LEFT, "target": LEFT, "label": 3}]}, "'label' is text, got 3"),
        ({"1": [{"ref": LEFT, "target": LEFT, "format": "xywh_pixel"}]}, "a box in pixels needs 'ref_size'"),
        ({"1": [{"ref": LEFT, "target": LEFT}], "2": [LEFT]}, "'2': expected a list of objects with 'ref'"),
    ],
)
def test_files_that_are_built_wrongly(load, records, message):
    with pytest.raises(ValueError, match=message):
        load(records)


def test_other_errors(load, tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json: there is no such box file"):
        BoxFile.load(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="pairing 'index' would have no effect"):
        load(PAIRS, pairing="index")
    with pytest.raises(ValueError, match=r"a box format is one of .*, got 'xyxy'"):
        check_format("xyxy", "here")
    with pytest.raises(ValueError, match="give one of images and pairs"):
        BoxFile(tmp_path)


# Coverage

TRIPLETS = [("12", "a", "b"), ("13", "b", "c"), ("14", "c", "a")]


def test_coverage_by_image(load):  # trap: unknown box keys
    coverage = load({"a": [LEFT, RIGHT], "b": [LEFT], "z": []}).coverage(TRIPLETS)
    assert (coverage.keyed_by, coverage.num_keys, coverage.num_keys_found) == ("image", 3, 2)
    assert (coverage.num_triplets, coverage.num_triplets_with_pairs, coverage.num_pairs) == (3, 1, 1)
    assert coverage.dropped == {"no_partner": 1 + 1 + 2}
    assert (coverage.missing, coverage.unused) == (("c",), ("z",))
    assert coverage.fraction == pytest.approx(2 / 3)
    assert coverage.pairs_per_triplet == pytest.approx(1 / 3)
    assert "2 of 3 image keys found; 1 of 3 triplets have 1 region pairs (0.33 per triplet, 4 no_partner)" in (
        coverage.describe()
    )
    coverage.check(0.6)
    with pytest.raises(ValueError, match=r"a share of 0\.7 or more, got 0\.667.*has \['c'\], the file has \['z'\]$"):
        coverage.check(0.7)


def test_coverage_by_triplet(load):
    coverage = load(PAIRS).coverage(TRIPLETS)
    assert (coverage.keyed_by, coverage.num_keys, coverage.num_keys_found) == ("pair", 3, 2)
    assert (coverage.num_triplets_with_pairs, coverage.num_pairs, coverage.missing) == (1, 1, ("14",))
    assert coverage.num_pairs_without_weight == 1
    assert "1 of 3 triplets have 1 region pairs (0.33 per triplet, 1 more without weight)" in coverage.describe()
    assert load(PAIRS, use_changed_pairs=True).coverage(TRIPLETS).num_pairs == 2


def test_pairs_without_a_weight_cover_nothing(load):
    changed = {key: [{"ref": LEFT, "target": LEFT, "relation": "changed"}] for key in ("12", "13", "14")}
    coverage = load(changed).coverage(TRIPLETS)
    assert (coverage.num_triplets_with_pairs, coverage.num_pairs, coverage.num_pairs_without_weight) == (0, 0, 3)


def test_names_that_differ_in_folder_or_ending_are_recognised(load):  # trap: unknown box keys
    coverage = load({"images/a.png": [LEFT], "images/b.png": [LEFT]}).coverage(TRIPLETS)
    with pytest.raises(ValueError, match="the names differ in their folder or file ending only"):
        coverage.check(0.5)


def test_a_split_without_triplets_is_covered(load):
    coverage = load({"a": [LEFT]}).coverage([])
    assert (coverage.fraction, coverage.pairs_per_triplet) == (1.0, 0.0)


# Writing


def test_writing_replaces_the_file_at_once(tmp_path):
    path = tmp_path / "deep" / "boxes.json"
    write_box_file(path, {"a": [LEFT]})
    write_box_file(path, {"a": [RIGHT]})
    np.testing.assert_array_equal(BoxFile.load(path).boxes("a").boxes, [RIGHT])
    assert [entry.name for entry in path.parent.iterdir()] == ["boxes.json"]
    with pytest.raises(ValueError, match="Out of range float"):
        write_box_file(path, {"a": [[float("nan")] * 4]})
    assert BoxFile.load(path).boxes("a").boxes.tolist() == [RIGHT]
