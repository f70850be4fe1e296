"""Samples collated: padding on either side, packed pictures and regions, counts of what the losses will see."""

import pytest
import torch
from region_heads.config import RegionHeadsConfig
from region_heads.tasks import UNKNOWN_TASK, TaskType
from spatialrgpt.collate import RegionDataCollator
from spatialrgpt.configuration import IGNORED_LABEL


@pytest.fixture
def samples(toy):
    return [
        toy.sample((0, 0), seed=1, answer="The answer is 12345."),
        toy.sample((1, 0, 1), depths=(True, False), seed=2),
        toy.sample((), depths=(), seed=3, task=None),
        toy.sample((0,), depths=(False,), seed=4, task=TaskType.DISTANCE),
    ]


def collate(toy, samples, *, side="right", heads=True):
    config = RegionHeadsConfig(max_count=5, hidden_dim=16) if heads else None
    return RegionDataCollator(toy.tokenizer.pad_token_id, heads=config, padding_side=side)(samples)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_side_asked_for(toy, samples, side):
    batch = collate(toy, samples, side=side)
    width = max(len(sample.text.input_ids) for sample in samples)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (4, width)
    for row, sample in enumerate(samples):
        length = len(sample.text.input_ids)
        true = slice(width - length, width) if side == "left" else slice(0, length)
        expected = torch.zeros(width, dtype=torch.long)
        expected[true] = 1
        assert torch.equal(batch["attention_mask"][row], expected)
        assert torch.equal(batch["input_ids"][row, true], sample.text.input_ids)
        assert torch.equal(batch["labels"][row, true], sample.text.labels)  # T3: the language model's own
        padding = expected == 0
        assert (batch["input_ids"][row, padding] == toy.tokenizer.pad_token_id).all()
        assert (batch["labels"][row, padding] == IGNORED_LABEL).all()
        position = batch["question_positions"][row]
        assert batch["input_ids"][row, position] == sample.text.input_ids[sample.text.question_position]


def test_images_depths_and_regions_are_packed_with_indices_into_the_batch(toy, samples):
    batch = collate(toy, samples)
    torch.testing.assert_close(batch["pixel_values"], torch.cat([sample.images for sample in samples]))
    assert batch["depth_values"].shape[0] == 2
    assert batch["depth_images"].tolist() == [0, 1]
    assert batch["region_images"].tolist() == [0, 0, 2, 1, 2, 3]
    torch.testing.assert_close(batch["region_masks"], torch.cat([sample.region_masks for sample in samples]))
    torch.testing.assert_close(batch["region_geometry"], torch.cat([sample.region_geometry for sample in samples]))


def test_what_a_batch_has_none_of_is_absent(toy):
    text = collate(toy, [toy.sample((), depths=()), toy.sample((), depths=(), seed=1)])
    visuals = {"pixel_values", "depth_values", "depth_images", "region_masks", "region_images", "region_geometry"}
    assert not visuals & text.keys()
    image = collate(toy, [toy.sample((), depths=(False,))])
    assert visuals & image.keys() == {"pixel_values"}


def test_typed_answers_travel_beside_the_labels(toy, samples):  # T2, T3
    batch = collate(toy, samples)
    counting, distance = int(TaskType.COUNTING), int(TaskType.DISTANCE)
    assert batch["task_types"].tolist() == [counting, counting, UNKNOWN_TASK, distance]
    targets = batch["region_targets"]
    assert targets["count"].tolist() == [1, 1, 0, 0]
    assert targets["distance_m"].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert targets["distance_m"].dtype == torch.float32
    assert targets["count"].dtype == torch.long
    assert targets["valid"].tolist() == [True, True, False, True]
    assert targets["num_regions"].tolist() == [2, 3, 0, 1]
    plain = collate(toy, samples, heads=False)
    assert torch.equal(plain["labels"], batch["labels"])
    assert not {"task_types", "region_targets"} & plain.keys()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_counts_are_those_of_the_models_loss_terms(toy, model, samples, side):
    batch = collate(toy, samples, side=side)
    counts, _ = batch.pop("loss_counts"), batch.pop("record_ids")
    losses = model(**batch).losses
    assert counts == {name: int(term.count) for name, term in losses.items()}
    assert counts["lm"] == sum(int((sample.text.labels[1:] != IGNORED_LABEL).sum()) for sample in samples)
    assert counts["counting"] == 2


def test_records_are_named_in_order(toy, samples):
    assert collate(toy, samples)["record_ids"] == ["toy-1", "toy-2", "toy-3", "toy-4"]
