"""The small tokenizer: placeholders, turns and a template for messages of parts."""

import pytest
from lmms.tokenizer import END, ONEVISION_TOKENS, PAD, QWEN_TOKENS, TURN, train_tokenizer

MESSAGES = [
    {"role": "user", "content": [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "how many, 12 or 3?"}]},
    {"role": "assistant", "content": "3"},
]
MARKERS = {
    "llava_onevision": "<video><image>",
    "qwen3_vl": "<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>",
}


@pytest.mark.parametrize("model_type", MARKERS)
def test_a_conversation_is_rendered_in_turns(model_type):
    tokenizer = train_tokenizer(["how many, 12 or 3?"], 300, model_type)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    user = f"{TURN}user\n{MARKERS[model_type]}how many, 12 or 3?{END}\n"
    assert text == f"{user}{TURN}assistant\n3{END}\n"
    asked = tokenizer.apply_chat_template(MESSAGES[:1], tokenize=False, add_generation_prompt=True)
    assert asked == f"{user}{TURN}assistant\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    special = ONEVISION_TOKENS if model_type == "llava_onevision" else QWEN_TOKENS
    for token in (PAD, TURN, END, *special.values()):
        assert len(tokenizer(token)["input_ids"]) == 1


def test_digits_stand_alone_and_any_text_can_be_said():
    tokenizer = train_tokenizer(["12 12 12 12"], 300, "llava_onevision")
    assert len(tokenizer("12")["input_ids"]) == 2
    assert tokenizer.decode(tokenizer("¿dónde está el círculo? €")["input_ids"]) == "¿dónde está el círculo? €"
    assert (tokenizer.pad_token, tokenizer.eos_token) == (PAD, END)
