"""Rows -> one form: messages made of parts, and the videos and pictures that they mention, in order.

Rows are conversations (`from`, `value`, with `<video>` and `<image>` in the text) or messages (`role`, `content`, with
parts of type text, image_url, video_url); in both there is exactly one mention for every file.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from region_training.records import require

from lmms.rows import Row, Rows

Media = Literal["image", "video"]
Part = dict[str, str]
Message = dict[str, object]

MARKERS: dict[str, Media] = {"<image>": "image", "<video>": "video"}
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_MARKER = re.compile("(" + "|".join(MARKERS) + ")")


@dataclass(frozen=True)
class Turn:
    """What one speaker says.

    Attributes:
        role: `system`, `user` or `assistant`.
        content: Parts in chat form: `{"type": "text", "text": ...}`, `{"type": "video"}` or `{"type": "image"}`.
    """

    role: str
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The words of the turn, without its media."""
        return "\n".join(part["text"] for part in self.content if part["type"] == "text")

    def as_message(self) -> Message:
        """The turn as chat templates read it."""
        return {"role": self.role, "content": [dict(part) for part in self.content]}


@dataclass(frozen=True)
class Record:
    """One conversation about videos and pictures.

    Attributes:
        id: The record's `id`, or the place where it stands.
        turns: The conversation; a user speaks first, behind the system's turn where there is one.
        videos: Video files or folders of frames, in order of mention; paths below the root of the data.
        images: Pictures, in order of mention.
        kind: Kind of the question, for evaluation.
    """

    id: str
    turns: tuple[Turn, ...]
    videos: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    kind: str | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation in chat form."""
        return [turn.as_message() for turn in self.turns]

    @property
    def question(self) -> str:
        """Words of the last user turn before the first answer."""
        return next(turn.text for turn in reversed(self.prompt().turns) if turn.role == "user")

    @property
    def answer(self) -> str | None:
        """Words of the first answer; None where there is none."""
        return next((turn.text for turn in self.turns if turn.role == "assistant"), None)

    def prompt(self) -> "Record":
        """The record up to its first answer, with the media of that part alone."""
        first = next((at for at, turn in enumerate(self.turns) if turn.role == "assistant"), len(self.turns))
        turns = self.turns[:first]
        kinds = [part["type"] for turn in turns for part in turn.content]
        return replace(
            self,
            turns=turns,
            videos=self.videos[: kinds.count("video")],
            images=self.images[: kinds.count("image")],
        )


def read_texts(rows: Rows) -> list[str]:
    """The words of every turn, for a tokenizer; what is wrong with a row is said when it is used."""
    texts = []
    for index in range(len(rows)):
        try:
            texts += [turn.text for turn in parse_record(rows[index], "").turns]
        except ValueError:
            continue
    return texts


def parse_record(row: Row, where: str) -> Record:
    """One row as a record.

    Args:
        row: Conversations or messages; media beside them under `video`, `videos`, `image`, `images`, or in the
            messages themselves.
        where: What to call the row in errors.

    Raises:
        ValueError: The row is not as described in the module's docstring, or mentions and media differ in number; the
            message names the key.
    """
    key = "conversations" if "conversations" in row else "messages"
    if "conversations" in row and "messages" in row:
        raise ValueError(f"{where}: got 'conversations' and 'messages', expected one of them")
    given = {media: _media_of(row, media, where) for media in MARKERS.values()}
    mentions: list[tuple[Media, str | None]] = []
    turns = [_parse_turn(turn, key, f"{where}, key {key!r}, turn {at}", mentions) for at, turn in _turns(row, where)]
    if given["video"] and not given["image"] and not any(kind == "video" for kind, _ in mentions):
        # LLaVA-Video's own files write <image> for a video too.
        turns = [_images_to_videos(turn) for turn in turns]
        mentions = [("video", path) for _, path in mentions]
    paths = {media: _match(media, mentions, given[media], where) for media in MARKERS.values()}
    speakers = [turn.role for turn in turns if turn.role != "system"]
    if not speakers or speakers[0] != "user":
        found = repr(speakers[0]) if speakers else "nobody"
        raise ValueError(f"{where}, key {key!r}: expected the user (or human) to speak first, got {found}")
    kind = None if row.get("kind") is None else require(row, "kind", str, where)
    return Record(str(row.get("id", where)), tuple(turns), tuple(paths["video"]), tuple(paths["image"]), kind)


def _turns(row: Row, where: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    key = "conversations" if "conversations" in row else "messages"
    turns = row.get(key)
    if isinstance(turns, str):  # parquet files may hold them as text
        try:
            turns = json.loads(turns)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}, key {key!r}: expected a list or JSON text, got {error}") from None
        row = {key: turns}
    for at, turn in enumerate(require(row, key, list, where)):
        if not isinstance(turn, dict):
            raise ValueError(f"{where}, key {key!r}, turn {at}: expected an object, got {turn!r}")
        yield at, turn


def _parse_turn(turn: Mapping[str, object], key: str, where: str, mentions: list[tuple[Media, str | None]]) -> Turn:
    """One turn; what it mentions is appended to `mentions`, with the path where the turn itself has it."""
    speaker_key, content_key = ("from", "value") if key == "conversations" else ("role", "content")
    speaker = require(turn, speaker_key, str, where)
    if speaker not in ROLES:
        raise ValueError(f"{where}: {speaker_key!r} is {speaker!r}, expected one of {', '.join(ROLES)}")
    content = turn.get(content_key)
    if isinstance(content, list) and key == "messages":
        parts = [part for at, entry in enumerate(content) for part in _parse_part(entry, f"{where}, part {at}")]
    else:
        parts = list(_split_markers(require(turn, content_key, str, where)))
    media = [(part["type"], part.pop("path", None)) for part in parts if part["type"] != "text"]
    if media and ROLES[speaker] != "user":
        raise ValueError(f"{where}: {speaker!r} shows a {media[0][0]}, expected videos and pictures in user turns only")
    mentions += [("video" if kind == "video" else "image", path) for kind, path in media]
    return Turn(ROLES[speaker], tuple(parts))


def _split_markers(text: str) -> Iterator[Part]:
    """Text and media in order; chat templates put their own line breaks around media."""
    for piece in _MARKER.split(text):
        if piece in MARKERS:
            yield {"type": MARKERS[piece]}
        elif piece.strip():
            yield {"type": "text", "text": piece.strip() if _MARKER.search(text) else piece}


def _parse_part(part: object, where: str) -> Iterator[Part]:
    """A part of a message; `{"type": "video"}` without a path stands for the next of the record's `videos`."""
    if not isinstance(part, dict):
        raise ValueError(f"{where}: expected an object with 'type', got {part!r}")
    kind = require(part, "type", str, where)
    if kind == "text":
        yield from _split_markers(require(part, "text", str, where))
        return
    media = kind.removesuffix("_url")
    if media not in MARKERS.values():
        raise ValueError(f"{where}: 'type' is {kind!r}, expected text, image, image_url, video or video_url")
    source = next((part[key] for key in (kind, "path", "url") if key in part), None)
    if isinstance(source, dict):
        source = require(source, "url", str, f"{where}, key {kind!r}")
    if source is None and kind == media:
        yield {"type": media}
    elif isinstance(source, str):
        yield {"type": media, "path": source}
    else:
        raise ValueError(f"{where}: expected {kind!r} to hold the name of a file, got {source!r}")


def _images_to_videos(turn: Turn) -> Turn:
    return replace(turn, content=tuple({"type": "video"} if part["type"] == "image" else part for part in turn.content))


def _media_of(row: Row, media: Media, where: str) -> list[str]:
    """The files that a row lists under `video` or `videos` (`image` or `images`)."""
    keys = [key for key in (media, f"{media}s") if row.get(key)]
    if not keys:
        return []
    if len(keys) > 1:
        raise ValueError(f"{where}: got {keys[0]!r} and {keys[1]!r}, expected one of them")
    value = row[keys[0]]
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: {keys[0]!r} is {value!r}, expected the name of a file or a list of them")
    return names


def _match(media: Media, mentions: Sequence[tuple[Media, str | None]], given: Sequence[str], where: str) -> list[str]:
    """The path of every mention; mentions without one take the record's files in order."""
    own = [path for kind, path in mentions if kind == media]
    unnamed = sum(path is None for path in own)
    if unnamed != len(given):
        raise ValueError(
            f"{where}: found {unnamed} times <{media}> in the text, expected {len(given)}: one for each file under "
            f"{media!r} or {media + 's'!r}"
        )
    files = iter(given)
    return [next(files) if path is None else path for path in own]
