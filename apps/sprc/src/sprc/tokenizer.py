"""BERT's WordPiece as BLIP-2 uses it: [CLS] caption [SEP], and LAVIS' [DEC] behind the vocabulary."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from tokenizers import models
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BEGIN = "[DEC]"
"""LAVIS adds it for its decoder; retrieval never writes it, but the published embeddings have its row."""


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """A pretrained WordPiece tokenizer with exactly the tokens of BLIP-2's text embeddings.

    What a folder adds to BERT's vocabulary (transformers' BLIP-2 folders have `<image>`) is left out, but for [DEC].

    Args:
        path: Folder or hub name.

    Raises:
        ValueError: It is no WordPiece tokenizer with BERT's special tokens.
    """
    # Annotated as possibly None, which it never is.
    loaded = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path))
    model = loaded.backend_tokenizer.model if loaded.is_fast else None
    vocabulary = loaded.backend_tokenizer.get_vocab(with_added_tokens=False) if loaded.is_fast else {}
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if not isinstance(model, models.WordPiece) or missing:
        raise ValueError(
            f"{path}: expected a BERT WordPiece tokenizer with {', '.join(SPECIAL_TOKENS)}, got "
            f"{type(loaded).__name__} on {type(model).__name__} without {', '.join(missing) or 'any of them missing'}"
        )
    return _bert_tokenizer(vocabulary)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerBase:
    """A small WordPiece tokenizer made from the training captions: all letters, then the most frequent words.

    The tokenizers library's own trainer breaks ties at random, so that equal runs would differ.

    Args:
        texts: Captions.
        vocabulary_size: Number of tokens at most, [DEC] included; the letters are in it in any case.
    """
    # A tokenizer without words splits and cleans as one with words will.
    splitter = BertTokenizer().backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(
            word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(text))
        )
    letters = sorted({letter for word in counts for letter in word})
    tokens = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    words = sorted((word for word in counts if len(word) > 1), key=lambda word: (-counts[word], word))
    tokens += words[: max(vocabulary_size - len(tokens) - 1, 0)]
    return _bert_tokenizer({token: position for position, token in enumerate(tokens)})


def _bert_tokenizer(vocabulary: dict[str, int]) -> PreTrainedTokenizerBase:
    in_order = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=in_order, bos_token=BEGIN)
