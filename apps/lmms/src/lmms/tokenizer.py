"""A small tokenizer made from the training texts, with a family's tokens and a chat template in the ChatML form."""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ONEVISION_TOKENS = {"image_token": "<image>", "video_token": "<video>"}
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_TEMPLATE = (
    "{{% for message in messages %}}"
    "{{{{ '<|im_start|>' + message['role'] + '\n' }}}}"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}"
    "{{% else %}}{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}"
    "{{% elif part['type'] == 'video' %}}{{{{ '{video}' }}}}"
    "{{% elif part['type'] == 'text' %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}"
    "{{{{ '<|im_end|>\n' }}}}"
    "{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{{% endif %}}"
)


def chat_template(model_type: str) -> str:
    """The template of a family: turns in ChatML, markers where images and videos stand."""
    if model_type == "llava_onevision":
        return _TEMPLATE.format(image="<image>", video="<video>")
    wrap = "<|vision_start|>{}<|vision_end|>"
    return _TEMPLATE.format(image=wrap.format("<|image_pad|>"), video=wrap.format("<|video_pad|>"))


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, model_type: str) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with single digits.

    Args:
        texts: Questions and answers.
        vocabulary_size: Number of tokens, at least 256 bytes and the special tokens.
        model_type: Family whose placeholders it gets.
    """
    placeholders = ONEVISION_TOKENS if model_type == "llava_onevision" else QWEN_TOKENS
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, TURN, END, *placeholders.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "user\nassistant\nsystem\n"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=dict(placeholders),
        additional_special_tokens=[TURN],
        chat_template=chat_template(model_type),
    )
