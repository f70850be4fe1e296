"""Tokenizers: a language model's own with the placeholders added, or a small one made from the training texts."""

from collections.abc import Iterable
from itertools import chain, cycle
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

IMAGE_TOKEN, SEG_TOKEN, REGION_TOKEN = "<image>", "[SEG]", "<region>"
ALIGNED_TOKEN, QUERY_TOKEN = "<aligned>", "<query>"
PLACEHOLDERS = (IMAGE_TOKEN, SEG_TOKEN, REGION_TOKEN, ALIGNED_TOKEN, QUERY_TOKEN)
"""Written by the processor alone. All but `[SEG]` stand for rows that the model puts in their place."""

PAD, END = "<pad>", "<|endoftext|>"


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer with the placeholders added and padding defined.

    Args:
        path: Folder or hub name.

    Raises:
        ValueError: It has no token for the end of a text.
    """
    # Annotated as possibly None, which it never is.
    tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path))
    if tokenizer.eos_token is None:
        raise ValueError(
            f"{path}: the tokenizer has no eos_token, which ends a sequence; choose a causal language model's"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": list(PLACEHOLDERS)}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, *, prompts: Iterable[str] = ()
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with single digits, made from the training texts.

    Args:
        texts: Class names and sentences.
        vocabulary_size: Number of tokens, at least 256 bytes and the special tokens.
        prompts: What stands around the texts in a sequence; counted as often as the texts.

    Raises:
        ValueError: The vocabulary is too small.
    """
    fewest = 256 + len(PLACEHOLDERS) + 2
    if vocabulary_size < fewest:
        raise ValueError(
            f"model.vocabulary_size: expected at least {fewest} (bytes and placeholders), got {vocabulary_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, END, *PLACEHOLDERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    around = list(prompts) or [""]
    tokenizer.train_from_iterator(chain.from_iterable(zip(texts, cycle(around), strict=False)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, additional_special_tokens=list(PLACEHOLDERS)
    )
