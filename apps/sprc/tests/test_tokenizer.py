"""WordPiece tokenizers: trained on captions, or loaded with exactly BLIP-2's tokens."""

import pytest
from sprc.tokenizer import BEGIN, load_tokenizer, train_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

CAPTIONS = ["make the red circle blue", "remove the green square", "move the circle to the left"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS, 80)


def test_a_caption_stands_between_cls_and_sep(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Make the RED circle blue")["input_ids"])
    assert tokens == ["[CLS]", "make", "the", "red", "circle", "blue", "[SEP]"]


def test_captions_are_padded_and_cut(tokenizer):
    batch = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=5)
    assert [len(ids) for ids in batch["input_ids"]] == [5, 5, 5]
    assert all(ids[-1] == tokenizer.sep_token_id for ids in batch["input_ids"])
    padded = tokenizer(["red"], padding="max_length", max_length=5)
    assert padded["input_ids"][0][3:] == [tokenizer.pad_token_id] * 2
    assert padded["attention_mask"][0] == [1, 1, 1, 0, 0]


def test_unknown_letters_are_unknown_words(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("日")["input_ids"]) == ["[CLS]", "[UNK]", "[SEP]"]


def test_the_begin_token_is_the_last(tokenizer):
    assert tokenizer.convert_tokens_to_ids(BEGIN) == len(tokenizer) - 1
    assert len(tokenizer) <= 80
    assert tokenizer.pad_token_id == 0


def test_training_is_repeatable():
    assert train_tokenizer(CAPTIONS, 80).get_vocab() == train_tokenizer(CAPTIONS, 80).get_vocab()


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded("make a circle")["input_ids"] == tokenizer("make a circle")["input_ids"]


def test_a_vocabulary_file_is_enough(tokenizer, tmp_path):
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(word for word, _ in words if word != BEGIN))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_what_blip2_folders_add_is_left_out(tokenizer, tmp_path):
    added = train_tokenizer(CAPTIONS, 80)
    added.add_tokens(["<image>"], special_tokens=True)
    added.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    other = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=other, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected a BERT WordPiece tokenizer .* \[PAD\], \[CLS\]"):
        load_tokenizer(tmp_path)
