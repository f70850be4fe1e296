"""What all data sets share: regions that follow the transform, draws, coverage."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from roi_region_loss.config import RegionLossConfig
from sprc.data import TripletDataset, image_id
from sprc.regions import BoxOptions
from sprc.transforms import build_transform
from sprc.triplets import Triplet, TripletSplit, check_images

TRANSFORM = build_transform("targetpad", 64)
OPTIONS = BoxOptions(grid=(8, 8))
MIDDLE = [0.25, 0.25, 0.75, 0.75]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TripletDataset]:
    """A data set of three triplets over images of two shapes, with a box file of the given content."""

    def open_it(boxes: dict[str, object] | None = None, **options: object) -> TripletDataset:
        files = {}
        for name, size in {"wide": (60, 40), "tall": (40, 60), "square": (40, 40)}.items():
            files[name] = tmp_path / f"{name}.png"
            Image.fromarray(np.zeros((size[1], size[0], 3), dtype=np.uint8)).save(files[name])
        triplets = [
            Triplet("1", "wide", "tall", ("a", "b")),
            Triplet("2", "tall", "square", ("a", "b")),
            Triplet("3", "square", "wide", ("a", "b")),
        ]
        split = TripletSplit("train", tmp_path / "cap.json", triplets, list(files), files)
        if boxes is not None:
            (tmp_path / "boxes.json").write_text(json.dumps(boxes))
            options = {"box_file": tmp_path / "boxes.json", "box_options": OPTIONS} | options
        return TripletDataset(split, transform=TRANSFORM, **options)

    return open_it


def test_boxes_of_a_pair_follow_their_own_image(make):
    # Trap "TargetPad moves every box": a wide and a tall image move the same box differently.
    sample = make({"1": [{"ref": MIDDLE, "target": MIDDLE, "weight": 0.5}]})[0]
    # 60 x 40 is padded to 60 x 48, resized to 80 x 64, and 8 pixels go on either side.
    wide = [(15 * 80 / 60 - 8) / 64, (10 + 4) / 48, (45 * 80 / 60 - 8) / 64, (30 + 4) / 48]
    torch.testing.assert_close(sample.reference_boxes, torch.tensor([wide]))
    torch.testing.assert_close(sample.target_boxes, torch.tensor([[wide[1], wide[0], wide[3], wide[2]]]))
    torch.testing.assert_close(sample.pair_weights, torch.tensor([0.5]))
    assert sample.reference_boxes.dtype == torch.float32


def test_the_guides_plain_file_pairs_by_index(make):
    # S8, S9: an image that the file lacks has no boxes.
    other = [0.3, 0.4, 0.6, 0.7]
    dataset = make({"wide": [MIDDLE, other], "tall": [other]})
    assert [len(dataset[index].pair_weights) for index in range(3)] == [1, 0, 0]
    boxes = dataset.original_boxes(dataset.split.triplets[0])
    assert boxes == ((tuple(MIDDLE),), (tuple(other),))


def test_labels_decide_over_the_order(make):
    dog, cat = [0.3, 0.3, 0.5, 0.5], [0.5, 0.5, 0.8, 0.8]
    dataset = make(
        {
            "wide": {"boxes": [dog, cat], "labels": ["dog", "cat"]},
            "tall": {"boxes": [cat, dog], "labels": ["cat", "dog"]},
        }
    )
    reference, target = dataset.original_boxes(dataset.split.triplets[0])
    assert set(reference) == {tuple(dog), tuple(cat)}
    assert reference == target


def test_a_pair_that_is_cut_off_on_one_side_is_dropped(make):
    # Traps "degenerate" and "visible": the outer tenth of a wide image is not in the model's input.
    edge = [0.0, 0.3, 0.09, 0.7]
    kept = {"ref": MIDDLE, "target": MIDDLE}
    sample = make({"1": [{"ref": edge, "target": MIDDLE}, kept, {"ref": MIDDLE, "target": [0.4, 0.4, 0.42, 0.6]}]})[0]
    assert len(sample.reference_boxes) == len(sample.target_boxes) == len(sample.pair_weights) == 1
    assert bool(((sample.reference_boxes >= 0) & (sample.reference_boxes <= 1)).all())


def test_changed_regions_have_no_weight_unless_asked_for(make):
    records = {"1": [{"ref": MIDDLE, "target": MIDDLE, "relation": "changed"}]}
    assert make(records)[0].pair_weights.tolist() == [0.0]
    asked = BoxOptions(grid=(8, 8), loss=RegionLossConfig(use_changed_pairs=True))
    assert make(records, box_options=asked)[0].pair_weights.tolist() == [1.0]


def test_pixels_take_the_size_from_the_image(make):
    dataset = make(
        {"wide": [[15, 10, 45, 30]], "tall": [[10, 15, 30, 45]]}, box_options=BoxOptions((8, 8), "xyxy_pixel")
    )
    assert dataset.original_boxes(dataset.split.triplets[0]) == ((tuple(MIDDLE),), (tuple(MIDDLE),))
    assert len(dataset[0].pair_weights) == 1


def test_regions_of_cached_tokens_are_those_of_pixels(make):
    records = {"1": [{"ref": MIDDLE, "target": MIDDLE}]}
    tokens = {name: torch.zeros(3, 2) for name in ("wide", "tall", "square")}
    live, cached = make(records)[0], make(records, tokens=tokens)[0]
    assert cached.reference_image.shape == (3, 2)
    assert torch.equal(live.reference_boxes, cached.reference_boxes)
    assert torch.equal(live.target_boxes, cached.target_boxes)


def test_names_that_do_not_match_are_reported(make, caplog):
    # Trap "unknown box keys": zero boxes, a loss of zero, and nobody notices.
    records = {"wide.png": [MIDDLE], "tall.png": [MIDDLE]}
    with caplog.at_level(logging.INFO):
        make(records, training=True)
    assert "0 of 3 image keys found" in caplog.text
    assert "the region loss trains nothing" in caplog.text
    with pytest.raises(ValueError, match="differ in their folder or file ending"):
        make(records, box_options=BoxOptions(grid=(8, 8), min_coverage=0.5))


def test_pairs_that_are_cut_away_do_not_take_the_place_of_others(make):
    # TargetPad cuts a tenth off either end of the wide image.
    cut = [0.0, 0.3, 0.1, 0.7]
    records = {"1": [{"ref": cut, "target": MIDDLE}, {"ref": MIDDLE, "target": MIDDLE, "weight": 0.5}]}
    one = BoxOptions(grid=(8, 8), loss=RegionLossConfig(max_pairs_per_triplet=1))
    dataset = make(records, box_options=one)
    assert dataset[0].pair_weights.tolist() == [0.5]
    assert dataset[0].dropped == {"not_visible": 1, "too_small": 0, "over_cap": 0}
    assert dataset.original_boxes(dataset.split.triplets[0]) == ((tuple(MIDDLE),), (tuple(MIDDLE),))


def test_boxes_without_a_partner_are_counted_where_no_pair_is_left(make):
    assert make({"wide": [MIDDLE, MIDDLE]})[0].dropped == {"no_partner": 2}


def test_pairs_without_a_weight_do_not_count_as_covered(make):
    changed = [{"ref": MIDDLE, "target": MIDDLE, "relation": "changed"}]
    records = {"1": changed, "2": changed, "3": [{"ref": MIDDLE, "target": MIDDLE}]}
    half = BoxOptions(grid=(8, 8), min_coverage=0.5)
    with pytest.raises(ValueError, match=r"boxes\.json: .*1 of 3 triplets .*0\.5 or more, got 0\.333\. .*lower"):
        make(records, box_options=half)
    make(records, box_options=BoxOptions(grid=(8, 8), min_coverage=0.3))
    asked = RegionLossConfig(use_changed_pairs=True)
    make(records, box_options=BoxOptions(grid=(8, 8), min_coverage=0.5, loss=asked))


def test_names_without_pairs_do_not_count_as_covered(make):
    empty = {"wide": [], "tall": [], "square": []}
    with pytest.raises(ValueError, match=r"0 of 3 triplets .*expected a share of 0\.5"):
        make(empty, box_options=BoxOptions(grid=(8, 8), min_coverage=0.5))


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([10, 10, 40, 30], "'wide'.*pixels"),
        ([0.8, 0.1, 0.2, 0.9], "'wide'.*inverted"),
        ([0.1, 0.1, 0.1, 0.9], "'wide'.*empty"),
    ],
)
def test_faulty_boxes_stop_at_the_start(make, box, says):
    with pytest.raises(ValueError, match=says):
        make({"wide": [box], "tall": [MIDDLE]})


def test_drawn_captions_are_a_function_of_seed_epoch_and_index(make):
    dataset, same, other = make(training=True, seed=1), make(training=True, seed=1), make(training=True, seed=2)

    def drawn(dataset: TripletDataset) -> list[str]:
        captions = []
        for epoch in range(20):
            dataset.set_epoch(epoch)
            captions += [dataset[index].caption for index in range(3)]
        return captions

    first = drawn(dataset)
    assert set(first) == {"a and b", "b and a", "a", "b"}
    assert drawn(same) == first
    assert drawn(other) != first
    dataset.set_epoch(7)
    assert [dataset[index].caption for index in (2, 0, 1)] == [first[21 + index] for index in (2, 0, 1)]


def test_outside_training_nothing_is_drawn(make):
    dataset = make()
    assert [dataset[index].caption for index in range(3)] == ["a and b"] * 3
    assert dataset.evaluation_caption(dataset.split.triplets[0]) == "a and b"
    assert make(training=True).evaluation_caption(dataset.split.triplets[0]) == "a and b"


def test_a_data_set_goes_to_workers(make):
    dataset = make(
        {"wide": [[15, 10, 45, 30]], "tall": [[10, 15, 30, 45]]}, box_options=BoxOptions((8, 8), "xyxy_pixel")
    )
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 our own bytes
    assert torch.equal(copy[0].reference_boxes, dataset[0].reference_boxes)
    assert torch.equal(copy[0].reference_image, dataset[0].reference_image)


def test_ids_of_images_fit_in_64_bits_and_never_change():
    assert image_id("dev-1-img0") == image_id("dev-1-img0")
    ids = [image_id(f"image {index}") for index in range(1000)]
    assert len(set(ids)) == 1000
    assert torch.tensor(ids).dtype == torch.int64
    assert image_id("dev-0-0-img0") == -724983340732704986


def test_an_image_that_the_split_lacks_is_named(make):
    with pytest.raises(ValueError, match="the split 'train' has no image 'nowhere'"):
        make().split.image_path("nowhere")


def test_a_whole_split_comes_back_as_it_is(make):
    split = make().split
    assert check_images(split, whole_gallery=True) is split
