"""Sequences: as many placeholders as embeddings, every token with its condition, nothing cut in silence."""

import pytest
from psalm.modes import BACKGROUND, MODES
from psalm.processing import PROMPTS, PSALMProcessor
from psalm.tokenizer import ALIGNED_TOKEN, IMAGE_TOKEN, PLACEHOLDERS, QUERY_TOKEN, REGION_TOKEN, SEG_TOKEN
from transformers import AutoProcessor

CONDITIONS = {
    "panoptic": ("sky", "red square", BACKGROUND),
    "semantic": ("sky", BACKGROUND),
    "instance": ("ring", "square", BACKGROUND),
    "referring": ("the left ring",),
    "region": ("", ""),
    "cross_image": ("", "", ""),
}


@pytest.fixture(scope="module")
def processor(toy) -> PSALMProcessor:
    return PSALMProcessor(toy.tokenizer, image_size=32, num_image_tokens=4, num_queries=6, max_length=512)


def encode(processor, mode, conditions=None):
    return processor.encode(mode, CONDITIONS[mode] if conditions is None else conditions, where="toy")


def text_of(processor, ids) -> str:
    return processor.tokenizer.decode(ids)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_its_placeholders(processor, mode):
    ids = encode(processor, mode).input_ids.tolist()
    found = {token: ids.count(processor.tokenizer.convert_tokens_to_ids(token)) for token in PLACEHOLDERS}
    named = len(CONDITIONS[mode]) if mode not in ("region", "cross_image") else 1  # 1 in the answer
    assert found == {
        IMAGE_TOKEN: 4,
        SEG_TOKEN: named,
        REGION_TOKEN: {"region": 2, "cross_image": 3}.get(mode, 0),
        ALIGNED_TOKEN: 3 if mode == "cross_image" else 0,
        QUERY_TOKEN: 6,
    }
    assert ids[-1] == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("mode", MODES)
def test_image_conditions_and_mask_tokens_come_in_this_order(processor, mode):
    text = text_of(processor, encode(processor, mode).input_ids)
    places = [text.index(IMAGE_TOKEN * 4), text.index(PROMPTS[mode].after), text.index(QUERY_TOKEN * 6)]
    assert places == sorted(places)
    assert text.startswith("[INST] <<SYS>> ")
    assert PROMPTS[mode].answer in text


def test_aligned_regions_stand_right_behind_the_image(processor):
    text = text_of(processor, encode(processor, "cross_image").input_ids)
    assert IMAGE_TOKEN * 4 + ALIGNED_TOKEN * 3 in text
    without = PSALMProcessor(processor.tokenizer, num_image_tokens=4, num_queries=6, aligned_modes=())
    assert ALIGNED_TOKEN not in text_of(without, encode(without, "cross_image").input_ids)


def test_a_class_is_its_words_and_seg(processor):
    encoded = encode(processor, "panoptic")
    pieces = [
        text_of(processor, encoded.input_ids[encoded.condition_index == index])
        for index in range(len(CONDITIONS["panoptic"]))
    ]
    assert pieces == ["sky[SEG]", "red square[SEG]", "background[SEG]"]
    assert "sky[SEG], red square[SEG], background[SEG]. [/INST]" in text_of(processor, encoded.input_ids)


def test_a_sentence_is_its_words_and_seg_and_ends_with_one_stop(processor):
    for given in ("the left ring", " the left ring. "):
        encoded = encode(processor, "referring", (given,))
        assert text_of(processor, encoded.input_ids[encoded.condition_index == 0]) == "the left ring.[SEG]"
        assert set(encoded.condition_index.tolist()) == {-1, 0}


def test_a_region_is_one_token(processor):
    encoded = encode(processor, "region")
    chosen = encoded.condition_index >= 0
    assert encoded.condition_index[chosen].tolist() == [0, 1]
    assert text_of(processor, encoded.input_ids[chosen]) == REGION_TOKEN * 2


@pytest.mark.parametrize("mode", ["region", "cross_image"])
def test_no_region_is_legal(processor, mode):
    encoded = encode(processor, mode, ())
    assert (encoded.condition_index == -1).all()


def test_nothing_is_cut_in_silence(processor):  # upstream truncates before it expands
    short = PSALMProcessor(processor.tokenizer, num_image_tokens=4, num_queries=6, max_length=150)
    names = tuple(f"class {index}" for index in range(40))
    with pytest.raises(
        ValueError, match=r"toy: 40 candidates make a sequence of \d+ tokens.*the longest is 150; short"
    ):
        short.encode("panoptic", names, where="toy")
    length = len(encode(processor, "panoptic").input_ids)
    exact = PSALMProcessor(processor.tokenizer, num_image_tokens=4, num_queries=6, max_length=length)
    assert len(encode(exact, "panoptic").input_ids) == length


@pytest.mark.parametrize(
    ("mode", "conditions", "message"),
    [
        ("referring", ("one", "two"), "takes one sentence, got 2"),
        ("referring", (), "takes one sentence, got 0"),
        ("referring", (" ",), "expected words"),
        ("panoptic", (), "at least one class name"),
        ("panoptic", ("sky", ""), "expected words"),
        ("panoptic", ("sky [SEG]",), r"holds \[SEG\], which only the processor writes"),
        ("referring", ("what lies under <region>",), "holds <region>"),
    ],
)
def test_texts_that_say_nothing_or_too_much_are_refused(processor, mode, conditions, message):
    with pytest.raises(ValueError, match=f"toy: .*{message}"):
        processor.encode(mode, conditions, where="toy")


def test_a_saved_processor_opens_equal(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    opened = AutoProcessor.from_pretrained(tmp_path)
    assert type(opened) is PSALMProcessor
    names = ("image_size", "num_image_tokens", "num_queries", "aligned_modes", "max_length", "system_text")
    assert {name: vars(opened)[name] for name in names} == {name: vars(processor)[name] for name in names}
    for mode in MODES:
        assert encode(opened, mode).input_ids.tolist() == encode(processor, mode).input_ids.tolist()


def test_the_processor_of_a_model_has_its_sizes(toy):
    processor = toy.processor(cross_image=["target_to_reference"], max_length=300)
    assert (processor.image_size, processor.num_queries, processor.max_length) == (64, 6, 300)
    assert processor.num_image_tokens == toy.config().num_image_tokens == 4
    assert processor.aligned_modes == []
    assert toy.processor().aligned_modes == ["cross_image"]
    assert toy.processor(condition_tokens=True).aligned_modes == list(MODES)
