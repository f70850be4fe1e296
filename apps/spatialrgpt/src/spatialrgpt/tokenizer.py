"""Tokenizers: a language model's own with the three placeholders added, or a small one made from the training texts."""

from collections.abc import Iterable
from typing import cast

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from spatialrgpt.configuration import DEPTH_TOKEN, IMAGE_TOKEN, MASK_TOKEN

PLACEHOLDERS = (IMAGE_TOKEN, MASK_TOKEN, DEPTH_TOKEN)
PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{USER}{{{{ message['content'] }}}}"
    f"{{% else %}}{ASSISTANT}{{{{ message['content'] }}}}{END}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A pretrained tokenizer with the placeholders added and padding defined.

    Args:
        path: Folder or hub name.

    Raises:
        ValueError: It has no chat template, so turns can't be told apart.
    """
    # Annotated as possibly None, which it never is.
    tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path))
    if tokenizer.chat_template is None:
        raise ValueError(f"{path}: the tokenizer has no chat template; choose an instruction-tuned model's tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": list(PLACEHOLDERS)}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with single digits, made from the training texts.

    Args:
        texts: Questions and answers.
        vocabulary_size: Number of tokens, at least 256 bytes and the special tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, END, USER, ASSISTANT, *PLACEHOLDERS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, *PLACEHOLDERS],
        chat_template=CHAT_TEMPLATE,
    )
