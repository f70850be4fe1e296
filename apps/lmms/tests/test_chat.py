"""Conversations as ids: what has labels, where frames stand, and which templates are refused."""

import pytest
import torch
from lmms.chat import IGNORED_LABEL, ChatEncoder
from lmms.families import PreparedVideo, family_of
from lmms.records import Turn
from transformers import LlavaOnevisionProcessor

VIDEO, IMAGE = {"type": "video"}, {"type": "image"}

HUB_TEMPLATE = (  # the form of LLaVA-OneVision's own: media first, and a space that the generation prompt has not
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endif %}"
    "{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def user(*parts) -> Turn:
    return Turn("user", tuple({"type": "text", "text": part} if isinstance(part, str) else part for part in parts))


def says(words: str) -> Turn:
    return Turn("assistant", ({"type": "text", "text": words},))


def prepared(toy, *lengths: int) -> list[PreparedVideo]:
    return [toy.family().prepare_video(toy.clip(length)) for length in lengths]


def learned(toy, chat) -> str:
    return toy.tokenizer.decode(chat.labels[chat.labels != IGNORED_LABEL])


def test_only_the_assistants_words_and_the_end_of_its_turn_have_labels(each):
    turns = [
        Turn("system", ({"type": "text", "text": "Be brief."},)),
        user(VIDEO, "Which way does it move?"),
        says("left"),
        user("And now?"),
        says("up, up"),
    ]
    chat = ChatEncoder(each.family()).encode(turns, prepared(each, 3), where="here")
    assert learned(each, chat) == "left<|im_end|>up, up<|im_end|>"
    spoken = chat.labels != IGNORED_LABEL
    assert torch.equal(chat.labels[spoken], chat.input_ids[spoken])
    text = each.tokenizer.decode(chat.input_ids)
    assert text.endswith("up, up<|im_end|>\n")
    assert chat.labels[-1] == IGNORED_LABEL


def test_no_visual_token_has_a_label_and_there_are_as_many_as_announced(each):
    family = each.family()
    videos, images = prepared(each, 3, 1, 4), family.prepare_images([each.image(), each.image(height=40)])
    turns = [user(VIDEO, VIDEO, "x"), says("y"), user(IMAGE, VIDEO, IMAGE, "z"), says("y")]
    chat = ChatEncoder(family).encode(turns, videos, images.texts, where="here")
    frames = chat.input_ids == family.video_token_id
    pictures = chat.input_ids == family.image_token_id
    assert int(frames.sum()) == sum(video.num_tokens for video in videos)
    assert int(pictures.sum()) == sum(text.count(family.placeholders[0]) for text in images.texts)
    assert (chat.labels[frames | pictures] == IGNORED_LABEL).all()
    assert len(chat.layout) == sum(len(video.spans) for video in videos)
    assert [span.video for span in chat.layout.spans] == sorted(span.video for span in chat.layout.spans)
    for span in chat.layout.spans:
        assert frames[span.patch_indices()].all()


def test_ids_are_those_of_the_text_with_every_placeholder_written_out(each):
    family = each.family()
    [video], images = prepared(each, 4), family.prepare_images([each.image()])
    turns = [user(VIDEO, IMAGE, "What is in the video ✓?"), says("A ball.")]
    chat = ChatEncoder(family).encode(turns, [video], images.texts, where="here")
    text = each.tokenizer.apply_chat_template([turn.as_message() for turn in turns], tokenize=False)
    image_placeholder, video_placeholder = family.placeholders
    text = text.replace(image_placeholder, images.texts[0]).replace(video_placeholder, video.text)
    assert chat.input_ids.tolist() == each.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_media_of_one_kind_keep_their_order_where_a_template_moves_them(toy):
    encoder = hub_encoder(toy)
    videos = prepared(toy, 1, 3)
    chat = encoder.encode([user("one", VIDEO, "two", IMAGE, VIDEO), says("y")], videos, ["<image>" * 5], where="here")
    assert [span.video for span in chat.layout.spans] == [0, 1, 1, 1]
    text = toy.tokenizer.decode(chat.input_ids)
    assert text.startswith(
        "<|im_start|>user " + "<image>" * 5 + videos[0].text + videos[1].text + "\none\ntwo<|im_end|>"
    )


def test_an_answer_follows_what_asks_for_it_at_generation(toy):
    encoder = hub_encoder(toy)
    turns = [user("Which way?"), says("left"), user("Sure?"), says("yes")]
    chat = encoder.encode(turns, where="here")
    assert learned(toy, chat) == "left<|im_end|>yes<|im_end|>"
    spoken = (chat.labels != IGNORED_LABEL).long()
    begins = (spoken.diff() == 1).nonzero().flatten() + 1
    for begin, prompt in zip(begins, (turns[:1], turns[:3]), strict=True):
        asked = encoder.encode(prompt, with_answers=False, where="here").input_ids
        assert torch.equal(chat.input_ids[:begin], asked)


def test_a_prompt_is_the_beginning_of_the_sample_with_answers(each):
    encoder, videos = ChatEncoder(each.family()), prepared(each, 2)
    turns = [user(VIDEO, "Which way?"), says("left")]
    prompt = encoder.encode(turns[:1], videos, with_answers=False, where="here")
    chat = encoder.encode(turns, videos, where="here")
    assert torch.equal(chat.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert (prompt.labels == IGNORED_LABEL).all()
    assert prompt.layout == chat.layout
    assert (chat.labels[: len(prompt.input_ids)] == IGNORED_LABEL).all()
    assert chat.labels[len(prompt.input_ids)] != IGNORED_LABEL


def test_counting_gives_the_length(each):
    encoder, videos = ChatEncoder(each.family()), prepared(each, 2, 3)
    turns = [user(VIDEO, "Which?", VIDEO), says("left")]
    chat = encoder.encode(turns, videos, where="here")
    assert encoder.count_tokens(turns, videos, [], where="here") == len(chat.input_ids)


@pytest.mark.parametrize("words", ["where is {}?", "{}"])
def test_a_placeholder_in_the_words_is_refused(each, words):
    placeholder = each.family().placeholders[1]
    encoder = ChatEncoder(each.family())
    with pytest.raises(ValueError, match=r"^here: found 2 times .* expected 1"):
        encoder.encode([user(VIDEO, words.format(placeholder)), says("x")], prepared(each, 1), where="here")
    with pytest.raises(ValueError, match=r"^here: found 1 times .* expected 0"):
        encoder.encode([user("x"), says(words.format(placeholder))], where="here")


def test_media_that_nobody_mentions_are_refused(toy):
    encoder = ChatEncoder(toy.family())
    with pytest.raises(ValueError, match=r"^here: found 0 times '<video>' .* expected 1"):
        encoder.encode([user("x"), says("y")], prepared(toy, 1), where="here")
    with pytest.raises(ValueError, match=r"^here: found 0 times '<image>' .* expected 1"):
        encoder.encode([user("x"), says("y")], image_texts=["<image>"], where="here")


def test_a_conversation_without_an_answer_teaches_nothing(toy):
    with pytest.raises(ValueError, match=r"^here: no turn of the assistant"):
        ChatEncoder(toy.family()).encode([user("x")], where="here")


def test_a_template_that_changes_words_or_earlier_turns_is_refused(toy):
    shout = HUB_TEMPLATE.replace(
        "part['text']", "(part['text'] if message['role'] == 'user' else part['text'] | upper)"
    )
    with pytest.raises(ValueError, match=r"^here: the chat template changes the answer 'left'"):
        hub_encoder(toy, shout).encode([user("x"), says("left")], where="here")
    forget = "{% for message in messages[-1:] %}" + HUB_TEMPLATE.split("%}", 1)[1]
    with pytest.raises(ValueError, match=r"^here: the chat template rewrites earlier turns"):
        hub_encoder(toy, forget).encode([user("x"), says("left"), user("y"), says("up")], where="here")


@pytest.mark.parametrize("answer", ["a", "s", "im", "start", "end", "ass"])
def test_an_answer_that_stands_in_the_templates_own_words_is_found_behind_them(toy, answer):
    chat = hub_encoder(toy).encode([user("x"), says(answer)], where="here")
    assert learned(toy, chat) == f"{answer}<|im_end|>"


def test_a_template_of_plain_strings_is_refused(toy):
    plain = "{% for message in messages %}{{ message['role'] }}{{ message['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="must read messages of parts, and write '<image>'"):
        hub_encoder(toy, plain)


def test_without_a_template_or_a_fast_tokenizer_nothing_is_encoded(toy, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(toy.tokenizer, "chat_template", None)
        patched.setattr(toy.processor, "chat_template", None)
        with pytest.raises(ValueError, match="has a chat template"):
            ChatEncoder(toy.family())
    monkeypatch.setattr(type(toy.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="expected a fast tokenizer"):
        ChatEncoder(toy.family())


def hub_encoder(toy, template: str = HUB_TEMPLATE) -> ChatEncoder:
    """An encoder whose processor has another chat template."""
    old = toy.processor
    processor = LlavaOnevisionProcessor(
        image_processor=old.image_processor,
        tokenizer=old.tokenizer,
        video_processor=old.video_processor,
        num_image_tokens=old.num_image_tokens,
        vision_feature_select_strategy=old.vision_feature_select_strategy,
        chat_template=template,
    )
    return ChatEncoder(family_of(processor))
