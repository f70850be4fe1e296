"""One form for every form of a record, and one clear error for everything that is none."""

import json

import pytest
from lmms.records import Record, Turn, parse_record, read_texts
from lmms.rows import Rows

VIDEO, IMAGE = {"type": "video"}, {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": words} for speaker, words in turns]


def messages(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"role": role, "content": content} for role, content in turns]


ASKED = (Turn("user", (VIDEO, text("What moves?"))), Turn("assistant", (text("A ball."),)))
ANSWER = ("gpt", "A ball.")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": talk(("human", "<video>\nWhat moves?"), ANSWER), "video": "x.mp4"},
        {"conversations": talk(("user", "<video> What moves?"), ("assistant", "A ball.")), "video": ["x.mp4"]},
        {"conversations": talk(("human", "<image>\nWhat moves?"), ANSWER), "video": "x.mp4"},
        {"messages": messages(("user", "<video>What moves?"), ("assistant", "A ball.")), "videos": ["x.mp4"]},
        {"messages": messages(("user", [VIDEO, text("What moves?")]), ("assistant", "A ball.")), "video": "x.mp4"},
        {"messages": json.dumps(messages(("user", "<video>What moves?"), ("assistant", "A ball."))), "video": "x.mp4"},
    ]
    + [
        {"messages": messages(("user", [part, text("What moves?")]), ("assistant", [text("A ball.")]))}
        for part in (
            {"type": "video_url", "video_url": {"url": "x.mp4"}},
            {"type": "video_url", "video_url": "x.mp4"},
            {"type": "video", "video": "x.mp4"},
            {"type": "video", "path": "x.mp4"},
            {"type": "video", "url": "x.mp4"},
        )
    ],
    ids=lambda row: next(iter(row)),
)
def test_every_form_gives_the_same_record(row):
    assert parse_record({"id": "one", "kind": "order", **row}, "here") == Record(
        "one", ASKED, videos=("x.mp4",), kind="order"
    )


def test_media_keep_their_order_over_turns_and_forms():
    record = parse_record(
        {
            "id": 5,
            "conversations": talk(
                ("system", "Be brief."),
                ("human", "First <video> and <image>, then <video>?"),
                ("gpt", "Yes."),
                ("human", "<video>"),
                ("gpt", "No."),
            ),
            "video": ["a.mp4", "b", "c.mp4"],
            "image": "p.png",
        },
        "here",
    )
    assert (record.id, record.videos, record.images) == ("5", ("a.mp4", "b", "c.mp4"), ("p.png",))
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert record.turns[1].content == (text("First"), VIDEO, text("and"), IMAGE, text(", then"), VIDEO, text("?"))
    assert record.messages[3] == {"role": "user", "content": [VIDEO]}
    assert record.question == "First\nand\n, then\n?"
    assert record.answer == "Yes."


def test_named_and_unnamed_media_of_messages_mix():
    content = [{"type": "image_url", "image_url": {"url": "own.png"}}, IMAGE, text("Same?")]
    record = parse_record({"messages": messages(("user", content)), "image": "listed.png"}, "here")
    assert record.images == ("own.png", "listed.png")
    assert record.answer is None


def test_the_prompt_ends_before_the_first_answer_and_has_its_media_alone():
    row = {
        "conversations": talk(
            ("human", "<video>Which?"), ("gpt", "A."), ("human", "<video><image>And?"), ("gpt", "B.")
        ),
        "video": ["a.mp4", "b.mp4"],
        "image": "p.png",
    }
    prompt = parse_record(row, "here").prompt()
    assert [turn.role for turn in prompt.turns] == ["user"]
    assert (prompt.videos, prompt.images) == (("a.mp4",), ())
    assert prompt.question == "Which?"


def test_text_alone_keeps_its_spaces_and_a_missing_id_is_the_place():
    record = parse_record({"conversations": talk(("human", "  two\n lines "), ("gpt", " yes"))}, "f.json record 3")
    assert record.id == "f.json record 3"
    assert [turn.text for turn in record.turns] == ["  two\n lines ", " yes"]
    assert record.videos == record.images == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "'messages' is missing"),
        ({"conversations": talk(ANSWER)}, "key 'conversations': expected the user .* to speak first, got 'assistant'"),
        ({"conversations": []}, "got nobody"),
        ({"conversations": talk(("system", "Be brief."))}, "got nobody"),
        ({"conversations": "Hi"}, "expected a list or JSON text"),
        ({"conversations": ["Hi"]}, "turn 0: expected an object, got 'Hi'"),
        ({"conversations": [{"from": "human"}]}, "turn 0: 'value' is missing"),
        ({"conversations": [{"value": "Hi"}]}, "turn 0: 'from' is missing"),
        ({"conversations": talk(("robot", "Hi"))}, "turn 0: 'from' is 'robot', expected one of human, user"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"turn 0: 'value' is 3 \(int\), expected str"),
        ({"conversations": talk(("human", "Hi")), "messages": []}, "got 'conversations' and 'messages'"),
        ({"conversations": talk(("human", "<video>?"))}, "found 1 times <video> in the text, expected 0"),
        ({"conversations": talk(("human", "Hi")), "video": "x.mp4"}, "found 0 times <video> .* expected 1"),
        ({"conversations": talk(("human", "<video>")), "video": ["x", "y"]}, "found 1 times <video> .* expected 2"),
        ({"conversations": talk(("human", "<image>")), "video": ["x", "y"]}, "found 1 times <video> .* expected 2"),
        ({"conversations": talk(("human", "<image>")), "image": []}, "found 1 times <image> .* expected 0"),
        ({"conversations": talk(("human", "<video>")), "video": 3}, "'video' is 3, expected the name of a file"),
        ({"conversations": talk(("human", "<video>")), "video": "x", "videos": ["x"]}, "got 'video' and 'videos'"),
        ({"conversations": talk(("human", "Hi"), ("gpt", "<image>")), "image": "x"}, "turn 1: 'gpt' shows a image"),
        ({"conversations": talk(("human", "Hi")), "kind": 3}, r"'kind' is 3 \(int\), expected str"),
        ({"messages": messages(("user", ["Hi"]))}, "turn 0, part 0: expected an object with 'type', got 'Hi'"),
        ({"messages": messages(("user", [{"text": "Hi"}]))}, "part 0: 'type' is missing"),
        ({"messages": messages(("user", [{"type": "audio_url"}]))}, "part 0: 'type' is 'audio_url', expected text,"),
        (
            {"messages": messages(("user", [{"type": "video_url"}]))},
            "expected 'video_url' to hold the name .* got None",
        ),
        ({"messages": messages(("user", [{"type": "video_url", "video_url": {}}]))}, "'url' is missing"),
        ({"messages": messages(("user", [VIDEO]))}, "found 1 times <video> in the text, expected 0"),
        ({"messages": messages(("user", None))}, r"'content' is None \(NoneType\), expected str"),
    ],
)
def test_what_is_no_record_is_said_with_place_and_key(row, message):
    with pytest.raises(ValueError, match=f"(?s)^f.json record 3.*{message}"):
        parse_record(row, "f.json record 3")


def test_texts_for_a_tokenizer_are_those_of_all_readable_rows():
    rows = [
        {"conversations": talk(("human", "<video>\nWhat?"), ("gpt", "This."))} | {"video": "x.mp4"},
        {"conversations": talk(("human", "<video>"))},
        {"messages": messages(("user", "Why?"))},
    ]
    assert read_texts(Rows([("here", row) for row in rows])) == ["What?", "This.", "Why?"]
