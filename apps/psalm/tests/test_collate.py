"""Batches: packed rows and whose they are, all modes in one batch, and nothing at all."""

from dataclasses import replace

import pytest
import torch
from psalm.collate import SegmentationCollator
from psalm.config import CriterionConfig
from psalm.modes import CONDITION_KINDS, MODES


@pytest.fixture(scope="module")
def collate(toy) -> SegmentationCollator:
    return SegmentationCollator(toy.processor(), toy.settings())


def test_all_modes_in_one_batch(toy, collate):
    samples = toy.samples()
    batch = collate(samples)
    assert batch["record_ids"] == [f"toy {mode} 0" for mode in MODES]
    # Three class lists of 4 + background, one sentence, two regions, two regions of a reference image.
    assert batch["condition_owner"].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] + [4, 4, 5, 5]
    assert [CONDITION_KINDS[kind] for kind in batch["condition_kinds"]] == [
        *["class_name"] * 3,
        "sentence",
        *["region"] * 2,
    ]
    assert batch["images"].shape == (7, 3, toy.side, toy.side)
    assert torch.equal(batch["images"][6], samples[5].reference_image)
    assert batch["reference_owner"].tolist() == [5]
    assert batch["prompt_owner"].tolist() == [4, 4, 5, 5]
    assert batch["prompt_images"].tolist() == [4, 4, 6, 6]
    assert torch.equal(batch["prompt_masks"][2:], samples[5].prompts)
    assert batch["target_owner"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert batch["target_conditions"].shape == (12, 5)
    assert not batch["target_conditions"][:, 4].any()  # the background has no target
    assert batch["content_sizes"].tolist() == [[toy.side, toy.side * 3 // 4]] * 7


def test_every_condition_has_its_tokens(toy, collate):
    batch = collate(toy.samples())
    index, owner = batch["condition_index"], batch["condition_owner"]
    for condition in range(len(owner)):
        rows = (index == condition).any(dim=1).nonzero().flatten().tolist()
        assert rows == [owner[condition]]
    assert (index[batch["attention_mask"] == 0] == -1).all()


def test_sequences_are_padded_on_the_right(toy, collate):
    samples = [toy.sample("region", num_regions=1), toy.sample("panoptic")]
    batch = collate(samples)
    alone = collate(samples[:1])["input_ids"][0]
    length = len(alone)
    assert torch.equal(batch["input_ids"][0, :length], alone)
    assert (batch["input_ids"][0, length:] == toy.tokenizer.pad_token_id).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [length, batch["input_ids"].shape[1]]


def test_several_pairs_keep_their_reference_images(toy, collate):
    samples = [
        toy.sample("cross_image", seed=1, num_regions=1),
        toy.sample("region"),
        toy.sample("cross_image", seed=2, num_regions=0),
        toy.sample("cross_image", seed=3, num_regions=2),
    ]
    batch = collate(samples)
    assert batch["reference_owner"].tolist() == [0, 2, 3]
    assert batch["prompt_images"].tolist() == [4, 1, 1, 6, 6]
    assert torch.equal(batch["images"][5], samples[2].reference_image)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_to_find_is_legal(toy, collate, mode):  # upstream ends with an IndexError
    batch = collate([toy.sample(mode, num_targets=0, num_regions=0)])
    assert batch["target_masks"].shape == (0, toy.side, toy.side)
    assert batch["prompt_masks"].shape == (0, toy.side, toy.side)
    assert batch["loss_counts"]["loss_mask"] == 0


def test_counts_follow_the_settings(toy):
    collate = SegmentationCollator(toy.processor(), toy.settings(criterion=CriterionConfig(no_object_weight=0.5)))
    counts = collate([toy.sample("panoptic"), toy.sample("region", num_regions=3)])["loss_counts"]
    # 6 queries: 2 of the panoptic sample have a target and 4 weigh a half.
    assert counts == {
        "loss_mask": 5,
        "loss_dice": 5,
        "loss_class_name_class": 2 + 0.5 * 4,
        "loss_SEG_class": 0,
        "loss_region_class": 3,
    }


def test_a_models_configuration_serves_too(toy):
    from_model = SegmentationCollator(toy.processor(), toy.config())([toy.sample()])
    from_settings = SegmentationCollator(toy.processor(), toy.settings())([toy.sample()])
    assert from_model["loss_counts"] == from_settings["loss_counts"]


def test_without_targets_there_is_nothing_to_count(toy):
    batch = toy.batch(with_targets=False)
    assert not any(name.startswith("target_") or name == "loss_counts" for name in batch)


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("region", {"prompts": None}, "got 0 prompts, expected 2"),
        ("panoptic", {"prompts": torch.zeros(1, 64, 64, dtype=torch.bool)}, "got 1 prompts, expected 0"),
        ("cross_image", {"reference_image": None}, "a reference image with its size belongs to mode cross_image"),
        ("region", {"reference_size": (4, 4)}, "a reference image with its size belongs to mode cross_image"),
        ("panoptic", {"target_conditions": torch.zeros(2, 5, dtype=torch.bool)}, r"expected \(2, 4\) for 2 targets"),
    ],
)
def test_what_would_shift_rows_is_refused(toy, collate, mode, changes, message):
    sample = replace(toy.sample(mode), **changes)
    with pytest.raises(ValueError, match=rf"toy {mode} 0 \(mode {mode}\): .*{message}"):
        collate([toy.sample(), sample])


def test_a_sample_of_another_size_is_refused(toy, collate):
    with pytest.raises(ValueError, match=r"toy panoptic 0.*shape \(3, 32, 32\), expected \(3, 64, 64\)"):
        collate([replace(toy, side=32).sample()])
