"""Tokenizers made from texts, and pretrained ones with the placeholders added."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialrgpt.tokenizer import ASSISTANT, END, PAD, PLACEHOLDERS, USER, load_tokenizer, train_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

WORDS = ["How far is the pallet <mask> from the shelf?", "It is 12.34 meters.", "There are 5 pallets."]
PRETRAINED = {"[UNK]": 0, "</s>": 1, "hello": 2, "world": 3}


@pytest.fixture(scope="module")
def small():
    return train_tokenizer(WORDS, 280)


def pretrained(folder, **options: object) -> str:
    """A saved word-level tokenizer, as somebody else's model would bring it."""
    words = Tokenizer(models.WordLevel(PRETRAINED, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", **options).save_pretrained(
        folder
    )
    return str(folder)


def test_every_digit_is_a_token_of_its_own(small):
    pieces = small.tokenize("12.34 meters, 5 pallets and 678")
    digits = [piece for piece in pieces if any(character.isdigit() for character in piece)]
    assert digits == list("12345678")


def test_placeholders_are_one_id_each_wherever_they_stand(small):
    ids = small.convert_tokens_to_ids(list(PLACEHOLDERS))
    assert len(set(ids)) == 3
    encoded = small("a<image><image>b<mask><depth>c", add_special_tokens=False)["input_ids"]
    assert [token for token in encoded if token in ids] == [ids[0], ids[0], ids[1], ids[2]]
    assert small.pad_token == PAD
    assert small.eos_token == END


@given(text=st.text(max_size=60).filter(lambda text: "<" not in text))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(small, text):
    assert small.decode(small(text, add_special_tokens=False)["input_ids"]) == text


def test_the_chat_template_tells_the_speakers_apart(small):
    messages = [{"role": "user", "content": "far?"}, {"role": "assistant", "content": "no"}]
    assert small.apply_chat_template(messages, tokenize=False) == f"{USER}far?{ASSISTANT}no{END}"
    prompt = small.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == f"{USER}far?{ASSISTANT}"


def test_the_vocabulary_has_the_size_asked_for(tokenizer, small):
    assert len(tokenizer) == 300
    assert len(small) <= 280  # few words need fewer tokens


def test_the_same_texts_make_the_same_tokenizer(small):
    assert train_tokenizer(WORDS, 280).get_vocab() == small.get_vocab()


def test_it_is_the_same_after_saving_and_loading(small, tmp_path):
    small.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{USER}How far is <mask><depth> from 12?{ASSISTANT}3 m{END}"
    assert loaded(text)["input_ids"] == small(text)["input_ids"]
    assert loaded.chat_template == small.chat_template
    assert (loaded.pad_token_id, loaded.eos_token_id) == (small.pad_token_id, small.eos_token_id)


def test_placeholders_are_added_to_a_pretrained_tokenizer(tmp_path):
    path = pretrained(tmp_path, chat_template="x", extra_special_tokens=["<own>"])
    loaded = load_tokenizer(path)
    assert loaded.convert_tokens_to_ids("hello") == PRETRAINED["hello"]
    ids = loaded.convert_tokens_to_ids(list(PLACEHOLDERS))
    assert len(set(ids)) == 3
    assert min(ids) >= len(PRETRAINED)
    assert loaded("hello<mask>world", add_special_tokens=False)["input_ids"] == [2, ids[1], 3]
    own = loaded.convert_tokens_to_ids("<own>")
    assert loaded("hello<own>world", add_special_tokens=False)["input_ids"] == [2, own, 3]  # it keeps its own


def test_a_pretrained_tokenizer_without_padding_pads_with_its_end(tmp_path):
    path = pretrained(tmp_path, chat_template="x")
    assert load_tokenizer(path).pad_token_id == PRETRAINED["</s>"]


def test_a_tokenizer_that_cannot_tell_turns_apart_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no chat template.*instruction-tuned"):
        load_tokenizer(pretrained(tmp_path))
