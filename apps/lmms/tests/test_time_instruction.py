"""Times in words, each behind its own video."""

from lmms.records import Turn
from lmms.time_instruction import describe_times, insert_behind_videos

VIDEO = {"type": "video"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_times_have_two_decimals():
    assert describe_times([0.0, 1.256, 61.0], 62) == (
        "This video is 62.00s long; you see 3 frames of it, taken at 0.00s, 1.26s, 61.00s."
    )
    assert "1 frame of it, taken at 0.00s." in describe_times([0.0], 1.5)


def test_every_video_is_followed_by_its_own_sentence():
    turns = [
        Turn("user", (VIDEO, text("Which?"), VIDEO, VIDEO)),
        Turn("assistant", (text("This."),)),
        Turn("user", (text("And"), VIDEO, {"type": "image"}, text("now?"))),
    ]
    told = insert_behind_videos(turns, ["one", "two", "three", "four"])
    assert told[0].content == (VIDEO, text("one\nWhich?"), VIDEO, text("two"), VIDEO, text("three"))
    assert told[1] == turns[1]
    assert told[2].content == (text("And"), VIDEO, text("four"), {"type": "image"}, text("now?"))
    assert turns[0].content[1] == text("Which?")
