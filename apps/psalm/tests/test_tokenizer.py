"""Tokenizers made from texts, and pretrained ones with the placeholders added."""

from typing import cast

import pytest
from psalm.processing import prompt_texts
from psalm.tokenizer import END, PAD, PLACEHOLDERS, load_tokenizer, train_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PRETRAINED = {"[UNK]": 0, "</s>": 1, "red": 2, "square": 3}


def pretrained(folder, **options: object) -> str:
    """A saved word-level tokenizer, as somebody else's model would bring it."""
    words = Tokenizer(models.WordLevel(PRETRAINED, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", **options).save_pretrained(folder)
    return str(folder)


def test_placeholders_are_one_id_each_wherever_they_stand(toy):
    ids = toy.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS))
    assert len(set(ids)) == 5
    encoded = toy.tokenizer("a<image><image>b[SEG]<region>c<aligned><query>", add_special_tokens=False)["input_ids"]
    assert [token for token in encoded if token in ids] == [ids[0], ids[0], *ids[1:]]
    assert (toy.tokenizer.pad_token, toy.tokenizer.eos_token) == (PAD, END)


def test_words_of_the_prompts_become_tokens():
    plain = train_tokenizer(["sky"] * 20, 500)
    prompted = train_tokenizer(["sky"] * 20, 500, prompts=prompt_texts())
    sentence = prompt_texts()[0]
    assert len(prompted(sentence)["input_ids"]) < len(plain(sentence)["input_ids"]) / 3
    assert prompted.decode(prompted(sentence)["input_ids"]) == sentence


def test_a_made_tokenizer_survives_its_folder(toy, tmp_path):
    toy.tokenizer.save_pretrained(tmp_path)
    opened = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(tmp_path))
    text = "the red square[SEG]<region>"
    assert opened(text)["input_ids"] == toy.tokenizer(text)["input_ids"]
    assert load_tokenizer(str(tmp_path)).get_vocab() == toy.tokenizer.get_vocab()


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"expected at least 263.*got 200"):
        train_tokenizer(["sky"], 200)


def test_a_pretrained_tokenizer_keeps_its_ids_and_gains_ours(tmp_path):
    tokenizer = load_tokenizer(pretrained(tmp_path, eos_token="</s>"))
    vocabulary = tokenizer.get_vocab()
    assert {word: vocabulary[word] for word in PRETRAINED} == PRETRAINED
    assert sorted(vocabulary[token] for token in PLACEHOLDERS) == [4, 5, 6, 7, 8]
    # Phi's tokenizer has no padding token either.
    assert tokenizer.pad_token == "</s>"


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no eos_token"):
        load_tokenizer(pretrained(tmp_path))
