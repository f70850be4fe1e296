"""Duration and times of the frames in words, behind each video: what LLaVA-Video's data tell their models."""

from collections.abc import Sequence
from dataclasses import replace

from lmms.records import Part, Turn


def describe_times(times: Sequence[float], duration_s: float | int) -> str:
    """One sentence: how long a video is and when its frames were taken, in seconds with two decimals."""
    listed = ", ".join(f"{time:.2f}s" for time in times)
    noun = "frame" if len(times) == 1 else "frames"
    return f"This video is {duration_s:.2f}s long; you see {len(times)} {noun} of it, taken at {listed}."


def insert_behind_videos(turns: Sequence[Turn], sentences: Sequence[str]) -> list[Turn]:
    """The conversation with a sentence behind each video, in order of mention.

    Args:
        turns: The conversation.
        sentences: One per video.
    """
    waiting = iter(sentences)
    told = []
    for turn in turns:
        parts: list[Part] = []
        for part in turn.content:
            parts.append(part)
            if part["type"] == "video":
                parts.append({"type": "text", "text": next(waiting)})
        told.append(replace(turn, content=tuple(_joined(parts))))
    return told


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts on lines of one part: not every chat template puts anything between two."""
    joined: list[Part] = []
    for part in parts:
        if joined and part["type"] == joined[-1]["type"] == "text":
            joined[-1] = {"type": "text", "text": f"{joined[-1]['text']}\n{part['text']}"}
        else:
            joined.append(part)
    return joined
