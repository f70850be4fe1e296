"""The small world is a data set of the real layout, the same from the same settings, that half a query can't solve."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from region_core.drawing import PALETTE
from region_training.images import read_image
from sprc.cirr import CIRRDataset, read_cirr
from sprc.config import SyntheticSettings
from sprc.fashioniq import CATEGORIES, FashionIQDataset, read_fashioniq
from sprc.regions import BoxOptions
from sprc.synthetic import write_world
from sprc.transforms import build_transform

SETTINGS = SyntheticSettings(train_scenes=7, eval_scenes=3, edits=4, image_size=48, seed=0)
FASHION = SyntheticSettings(train_scenes=9, eval_scenes=9, edits=2, image_size=32, seed=0)
TRANSFORM = build_transform("targetpad", 32)


@pytest.fixture(scope="module")
def cirr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cirr")
    write_world(root, SETTINGS)
    return root


@pytest.fixture(scope="module")
def fashioniq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fashioniq")
    write_world(root, FASHION, dataset="FashionIQ")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_real_reader_reads_all_splits(cirr):
    for split, num_scenes in (("train", 7), ("val", 3), ("test1", 3)):
        dataset = CIRRDataset(cirr, split, transform=TRANSFORM)
        assert len(dataset) == num_scenes * 4
        assert len(dataset.split.gallery) == num_scenes * 5
        assert dataset[0].reference_image.shape == (3, 32, 32)
    assert all(triplet.target is None for triplet in dataset.split.triplets)


def test_images_lie_where_cirr_has_them(cirr):
    paths = json.loads((cirr / "cirr/image_splits/split.rc2.train.json").read_text())
    assert paths["train-6-4-img0"] == "./train/6/train-6-4-img0.png"
    assert json.loads((cirr / "cirr/image_splits/split.rc2.val.json").read_text())["dev-0-0-img0"].startswith("./dev/")
    assert (cirr / "img_raw" / paths["train-6-4-img0"]).is_file()


def test_records_have_the_fields_of_cirr(cirr):
    for split, has_target in (("train", True), ("val", True), ("test1", False)):
        for record in json.loads((cirr / f"cirr/captions/cap.rc2.{split}.json").read_text()):
            image_set = record["img_set"]
            assert ("target_hard" in record) == ("target_soft" in record) == ("target_rank" in image_set) == has_target
            assert image_set["members"][image_set["reference_rank"]] == record["reference"]
            if has_target:
                assert image_set["members"][image_set["target_rank"]] == record["target_hard"]


def test_pair_ids_differ_between_splits(cirr):
    ids = [triplet.pair_id for split in ("train", "val", "test1") for triplet in read_cirr(cirr, split).triplets]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("split", ["train", "val"])
def test_neither_half_of_a_query_finds_its_target(cirr, split):
    triplets = read_cirr(cirr, split).triplets
    # One caption, several targets: whoever reads it alone is right for one of three at most.
    targets_of_caption = Counter(triplet.captions for triplet in triplets)
    assert min(targets_of_caption.values()) >= 3
    # One reference, several targets: whoever sees it alone is right for one of four at most.
    targets_of_reference = Counter(triplet.reference for triplet in triplets)
    assert set(targets_of_reference.values()) == {4}
    assert len({(triplet.captions, triplet.reference) for triplet in triplets}) == len(triplets)


def test_the_subset_holds_look_alikes_of_both_kinds(cirr):
    triplets = read_cirr(cirr, "val").triplets
    edits = {triplet.target: triplet.captions for triplet in triplets}
    references = {triplet.target: triplet.reference for triplet in triplets}
    for triplet in triplets:
        others = [name for name in triplet.members if name not in (triplet.reference, triplet.target)]
        assert len(set(triplet.members)) == 6
        assert sum(edits.get(name) == triplet.captions for name in others) == 2
        assert sum(references.get(name) == triplet.reference for name in others) == 2


def test_boxes_of_pairs_are_those_of_the_pictures(cirr):
    split = read_cirr(cirr, "train")
    pairs = json.loads((cirr / "boxes/pairs.train.json").read_text())
    assert set(pairs) == {triplet.pair_id for triplet in split.triplets}
    relations = Counter()
    for triplet in split.triplets[:12]:
        reference, target = (read_image(split.image_path(name)) for name in (triplet.reference, triplet.target))
        for region in pairs[triplet.pair_id]:
            relations[region["relation"]] += 1
            colour = PALETTE[region["label"].split()[0]]
            assert colour_share(reference, region["ref"], colour) > 0.25
            if region["relation"] == "preserved":
                assert colour_share(target, region["target"], colour) > 0.25
    assert set(relations) == {"preserved", "changed"}


def colour_share(image: np.ndarray, box: list[float], colour: tuple[int, int, int]) -> float:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = np.round(np.array(box) * [width, height, width, height]).astype(int)
    return float((image[y0:y1, x0:x1] == colour).all(-1).mean())


def test_changed_means_that_the_caption_says_so(cirr):
    split = read_cirr(cirr, "train")
    pairs = json.loads((cirr / "boxes/pairs.train.json").read_text())
    for triplet in split.triplets:
        changed = [region["label"] for region in pairs[triplet.pair_id] if region["relation"] == "changed"]
        repaints = triplet.captions[0].split()[0] in ("make", "turn")
        assert len(changed) == repaints
        assert all(label in triplet.captions[0] for label in changed)


@pytest.mark.parametrize("kind", ["pairs", "images"])
def test_both_files_of_boxes_give_regions(cirr, kind):
    options = BoxOptions(grid=(8, 8), min_coverage=1.0)
    dataset = CIRRDataset(
        cirr, "train", transform=TRANSFORM, box_file=cirr / f"boxes/{kind}.train.json", box_options=options
    )
    samples = [dataset[index] for index in range(len(dataset))]
    assert all((sample.pair_weights > 0).sum() >= 1 for sample in samples)
    assert all(sample.reference_boxes.shape == sample.target_boxes.shape for sample in samples)


def test_every_image_has_labelled_boxes(cirr):
    split = read_cirr(cirr, "test1")
    boxes = json.loads((cirr / "boxes/images.test1.json").read_text())
    assert set(boxes) == set(split.gallery)
    for name, entry in boxes.items():
        assert len(entry["boxes"]) == len(entry["labels"]) == len(set(entry["labels"]))
        assert tuple(entry["size"]) == TRANSFORM.original_size(split.image_path(name))
    assert not (cirr / "boxes/pairs.test1.json").exists()


def test_the_same_settings_give_the_same_files(cirr, tmp_path):
    write_world(tmp_path, SETTINGS)
    assert contents(tmp_path) == contents(cirr)


def test_another_seed_gives_other_pictures(cirr, tmp_path):
    write_world(tmp_path, SyntheticSettings(train_scenes=3, eval_scenes=3, edits=2, image_size=32, seed=1))
    first, second = (folder / "img_raw/dev/dev-0-0-img0.png" for folder in (cirr, tmp_path))
    assert first.read_bytes() != second.read_bytes()


def test_another_world_or_another_layout_is_refused_and_nothing_written(cirr, tmp_path):
    copy = tmp_path / "world"
    shutil.copytree(cirr, copy)
    for settings, dataset in ((replace(SETTINGS, seed=1), "CIRR"), (FASHION, "FashionIQ")):
        with pytest.raises(ValueError, match=r"a world is there .*and another was asked for .*delete the folder"):
            write_world(copy, settings, dataset=dataset)
    assert contents(copy) == contents(cirr)


def test_held_out_pictures_are_not_training_pictures(cirr):
    folders = [cirr / "img_raw" / folder for folder in ("train", "dev", "test1")]
    pictures = [path.read_bytes() for folder in folders for path in folder.rglob("*.png")]
    assert len(set(pictures)) == len(pictures) == 5 * (7 + 3 + 3)


def test_a_half_written_split_is_written_again_and_a_whole_one_kept(cirr, tmp_path):
    write_world(tmp_path, SETTINGS)
    (tmp_path / "cirr/captions/cap.rc2.val.json").unlink()
    (tmp_path / "img_raw/dev/dev-0-1-img0.png").write_bytes(b"cut o")
    (tmp_path / "img_raw/train/0/train-0-0-img0.png").write_bytes(b"left alone")
    write_world(tmp_path, SETTINGS)
    found, expected = contents(tmp_path), contents(cirr)
    assert found.pop("img_raw/train/0/train-0-0-img0.png") == b"left alone"
    expected.pop("img_raw/train/0/train-0-0-img0.png")
    assert found == expected


def test_fashioniq_has_three_categories_with_galleries_of_their_own(fashioniq):
    for split in ("train", "val"):
        records = read_fashioniq(fashioniq, split)
        assert Counter(triplet.category for triplet in records.triplets) == dict.fromkeys(CATEGORIES, 6)
        assert [len(names) for names in records.category_galleries.values()] == [9, 9, 9]
        assert len(records.gallery) == 27
    dataset = FashionIQDataset(
        fashioniq,
        "train",
        transform=TRANSFORM,
        box_file=fashioniq / "boxes/pairs.train.json",
        box_options=BoxOptions(grid=(8, 8), min_coverage=1.0),
        training=True,
    )
    assert dataset[0].target_image.shape == (3, 32, 32)
    assert len(dataset[0].pair_weights) >= 1


def test_either_caption_of_fashioniq_says_all(fashioniq):
    for triplet in read_fashioniq(fashioniq, "val").triplets:
        first, second = triplet.captions
        assert first != second
        # Both name the colour and the shape of what is edited.
        assert len(set(first.split()) & set(second.split()) - {"the", "a"}) >= 2


@pytest.mark.parametrize(
    ("changes", "dataset", "says"),
    [
        ({"train_scenes": 2}, "CIRR", "CIRR world needs train_scenes of at least 3, got 2"),
        ({"eval_scenes": 8}, "FashionIQ", "FashionIQ world needs eval_scenes of at least 9, got 8"),
        ({"edits": 1}, "CIRR", "needs edits of at least 2, got 1"),
    ],
)
def test_a_world_that_is_too_small_is_an_error(tmp_path, changes, dataset, says):
    given = {"train_scenes": 9, "eval_scenes": 9, "edits": 2, "image_size": 32} | changes
    with pytest.raises(ValueError, match=says):
        write_world(tmp_path, SyntheticSettings(**given), dataset=dataset)
    assert not list(tmp_path.iterdir())
