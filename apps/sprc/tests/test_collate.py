"""Batches of triplets: packed regions, images or tokens, the guide's plain tuples."""

import pytest
import torch
from sprc.collate import TripletCollator
from sprc.data import NO_IMAGE_ID, TripletSample
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch.utils.data import default_collate
from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIAL, "make", "it", "red", "blue"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture
def collate(tokenizer) -> TripletCollator:
    return TripletCollator(tokenizer, max_length=6)


def sample(num_pairs: int, index: int = 0, *, tokens: bool = False, target: bool = True) -> TripletSample:
    generator = torch.Generator().manual_seed(index)

    def image() -> torch.Tensor:
        if tokens:
            return torch.randn(5, 7, generator=generator)
        return torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8)

    boxes = torch.rand(2, num_pairs, 2, generator=generator) * 0.5
    boxes = torch.cat([boxes, boxes + 0.4], dim=-1)
    return TripletSample(
        image(),
        image() if target else None,
        "make it red",
        boxes[0],
        boxes[1],
        torch.full((num_pairs,), 0.5),
        10 + index,
        20 + index if target else NO_IMAGE_ID,
        f"pair-{index}",
        index,
        {"too_small": 1, "over_cap": num_pairs},
    )


def test_a_batch_has_what_the_model_takes(collate):
    samples = [sample(2, 0), sample(0, 1), sample(1, 2)]
    batch = collate(samples)
    assert batch["record_ids"] == ["pair-0", "pair-1", "pair-2"]
    assert batch["reference_images"].shape == batch["target_images"].shape == (3, 3, 8, 8)
    assert batch["reference_images"].dtype == torch.uint8
    assert torch.equal(batch["target_images"][2], samples[2].target_image)
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6, 3, 0]] * 3
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0]] * 3
    assert batch["reference_ids"].tolist() == [10, 11, 12]
    assert batch["target_ids"].tolist() == [20, 21, 22]
    assert batch["target_ids"].dtype == torch.int64
    assert batch["loss_counts"] == {"itc": 3, "rtc": 3, "align": 3, "region": 1.5}


def test_regions_are_packed_with_their_owner(collate):
    # Trap "default_collate on ragged boxes".
    samples = [sample(2, 0), sample(0, 1), sample(1, 2)]
    batch = collate(samples)
    assert batch["pair_owner"].tolist() == [0, 0, 2]
    assert batch["pair_owner"].dtype == torch.int64
    assert torch.equal(batch["reference_boxes"], torch.cat([one.reference_boxes for one in samples]))
    assert torch.equal(batch["target_boxes"], torch.cat([one.target_boxes for one in samples]))
    assert batch["pair_weights"].tolist() == [0.5, 0.5, 0.5]
    # no_partner, not_visible, too_small, over_cap
    assert batch["dropped_regions"].tolist() == [[0, 0, 1, 2], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_boxes_of_equal_length_are_not_transposed(collate):
    # What torch's own collation makes of two samples with one box each: four columns of two.
    boxes = [[0.0, 0.1, 0.5, 0.6]]
    assert len(default_collate([boxes, boxes])[0]) == 4
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    batch = collate([(image, image, "make it red", boxes, boxes)] * 2)
    torch.testing.assert_close(batch["reference_boxes"], torch.tensor(boxes * 2))


def test_a_batch_without_any_region_keeps_its_shapes(collate):
    # Trap "[] for images without annotation": (0, 4), never (0,).
    batch = collate([sample(0, 0), sample(0, 1)])
    assert batch["reference_boxes"].shape == batch["target_boxes"].shape == (0, 4)
    assert batch["pair_owner"].shape == batch["pair_weights"].shape == (0,)
    assert batch["loss_counts"]["region"] == 0.0


def test_without_the_region_loss_there_are_no_regions(tokenizer):
    collate = TripletCollator(tokenizer, use_region_loss=False)
    batch = collate([sample(2)])
    assert not {"reference_boxes", "target_boxes", "pair_owner", "pair_weights", "dropped_regions"} & set(batch)
    assert "region" not in batch["loss_counts"]
    collate.use_region_loss = True  # S11: at run time
    assert len(collate([sample(2)])["pair_weights"]) == 2


def test_cached_tokens_go_under_their_own_name(collate):
    batch = collate([sample(1, index, tokens=True) for index in range(2)])
    assert batch["reference_tokens"].shape == batch["target_tokens"].shape == (2, 5, 7)
    assert "reference_images" not in batch


def test_a_split_without_targets_gives_queries_alone(collate):
    batch = collate([sample(0, index, target=False) for index in range(2)])
    assert set(batch) == {
        *("record_ids", "input_ids", "attention_mask", "reference_ids", "reference_images", "loss_counts")
    }
    assert batch["loss_counts"] == {}


def test_plain_triples_and_quintuples_of_the_guide(collate):
    # S10, S15: boxes two and one against one and one.
    images = [torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (1, 2, 3)]
    first, second = [0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]
    batch = collate(
        [
            (images[0], images[1], "Make it RED!", [first, second], torch.tensor([second])),
            (images[1], images[2], "make it blue", [first], [first]),
            (images[0], images[2], "make it blue", None, [first]),
            (images[2], images[0], "make it"),
        ]
    )
    torch.testing.assert_close(batch["reference_boxes"], torch.tensor([first, first]))
    torch.testing.assert_close(batch["target_boxes"], torch.tensor([second, first]))
    assert batch["pair_owner"].tolist() == [0, 1]
    assert batch["pair_weights"].tolist() == [1.0, 1.0]
    assert batch["dropped_regions"][:, 0].tolist() == [1, 0, 1, 0]
    assert batch["input_ids"][0].tolist() == [2, 4, 5, 6, 3, 0]
    # The same pixels are the same image, on either side.
    assert batch["reference_ids"][1] == batch["target_ids"][0]
    assert len({*batch["reference_ids"].tolist(), *batch["target_ids"].tolist()}) == 3


def test_a_sample_alone_equals_its_part_of_a_batch(collate):
    samples = [sample(2, 0), sample(1, 1)]
    batch, alone = collate(samples), collate(samples[1:])
    assert torch.equal(batch["reference_images"][1:], alone["reference_images"])
    assert torch.equal(batch["target_boxes"][2:], alone["target_boxes"])
    assert torch.equal(batch["input_ids"][1:], alone["input_ids"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one._replace(reference_image=torch.zeros(3, 9, 8, dtype=torch.uint8)), r"'pair-1'.*\(3, 9, 8\)"),
        (lambda one: one._replace(target_image=None), "'pair-1' has no target image"),
        (lambda one: one._replace(reference_image=torch.zeros(5, 7)), "'pair-1'.*expected .*uint8"),
    ],
)
def test_samples_of_two_kinds_are_named(collate, change, says):
    with pytest.raises(ValueError, match=says):
        collate([sample(1, 0), change(sample(1, 1))])


def test_pixels_that_are_not_uint8_are_refused(collate):
    with pytest.raises(ValueError, match=r"expected pixels .* of type uint8"):
        collate([(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), "a")])


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([[10.0, 10.0, 50.0, 60.0]], "sample 0, reference boxes: .*pixel"),  # trap "not normalised"
        ([[0.5, 0.1, 0.2, 0.9]], "sample 0, reference boxes: .*x0 <= x1"),  # trap "inverted"
        ([[0.1, 0.1, float("nan"), 0.9]], "sample 0, reference boxes: .*finite"),  # trap "NaN box"
        (torch.tensor([0.1, 0.1, 0.5, 0.5]), r"expected \(regions, 4\)"),
    ],
)
def test_faulty_boxes_of_plain_tuples_are_named(collate, boxes, says):
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=says):
        collate([(image, image, "a", boxes, boxes)])
