"""A conversation -> token ids, labels, and where the frames stand.

The chat template is rendered, what stands for videos and pictures is written out, and the whole is tokenized in one
go: characters say which tokens the assistant speaks. Only those have labels, and the token that ends the turn; what the
user says, the template's own words and every visual token have the label -100.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from video_autoregressive.layout import FrameLayout

from lmms.families import Family, PreparedVideo
from lmms.records import Turn

IGNORED_LABEL = -100
_PROBE = "\N{OBJECT REPLACEMENT CHARACTER}"
"""Stands in no template and for no answer."""


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as token ids.

    Attributes:
        input_ids: Ids with the placeholders written out.
        labels: The same ids where the assistant speaks, -100 elsewhere.
        layout: The frames of all videos, at their tokens.
    """

    input_ids: Int[Tensor, " tokens"]
    labels: Int[Tensor, " tokens"]
    layout: FrameLayout


class ChatEncoder:
    """Encodes conversations for the models of one family.

    Args:
        family: Has the tokenizer and the chat template, and knows what they write for videos and pictures.

    Raises:
        ValueError: The tokenizer is not a fast one, or the template does not read messages of parts.
    """

    def __init__(self, family: Family) -> None:
        self.tokenizer = family.processor.tokenizer
        self.chat_template = family.processor.chat_template or self.tokenizer.chat_template
        self.placeholders = dict(zip(("image", "video"), family.placeholders, strict=True))
        self.image_token_id, self.video_token_id = family.image_token_id, family.video_token_id
        self._media = re.compile("|".join(f"(?P<{kind}>{re.escape(text)})" for kind, text in self.placeholders.items()))
        self._runs = re.compile("|".join(f"({re.escape(text)})(?:{re.escape(text)})*" for text in family.placeholders))
        if not self.tokenizer.is_fast:
            name = type(self.tokenizer).__name__
            raise ValueError(f"{name}: expected a fast tokenizer, which knows the characters of its tokens")
        if self.chat_template is None:
            raise ValueError("neither processor nor tokenizer has a chat template; choose an instruction-tuned model")
        for kind, placeholder in self.placeholders.items():
            words = "what is it"
            rendered = self._render([Turn("user", ({"type": kind}, {"type": "text", "text": words}))], answers=True)
            if rendered.count(placeholder) != 1 or words not in rendered or "'type'" in rendered:
                raise ValueError(
                    f"the chat template must read messages of parts, and write {placeholder!r} for one of type "
                    f"{kind!r}; got {rendered!r}"
                )

    def encode(
        self,
        turns: Sequence[Turn],
        videos: Sequence[PreparedVideo] = (),
        image_texts: Sequence[str] = (),
        *,
        with_answers: bool = True,
        where: str,
    ) -> EncodedChat:
        """Encode a conversation.

        Args:
            turns: The conversation; one that ends with the user is followed by the start of the answer.
            videos: Its videos, in order of mention.
            image_texts: What its pictures are in the text, in order of mention.
            with_answers: Expect something to learn: at least one turn of the assistant.
            where: What to call the conversation in errors.

        Raises:
            ValueError: Media and placeholders differ in number, nobody answers, or the chat template cannot be used.
        """
        text, answers, runs = self._write_out(turns, videos, image_texts, where)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(encoding["input_ids"], dtype=torch.int64)
        begins = [begin for begin, _ in encoding["offset_mapping"]]
        labels = torch.full_like(ids, IGNORED_LABEL)
        for begin, end in answers:
            said = slice(bisect_left(begins, begin), bisect_left(begins, end))
            labels[said] = ids[said]
        if with_answers and not (labels != IGNORED_LABEL).any():
            raise ValueError(f"{where}: no turn of the assistant, so there is nothing to learn")
        repeats = self._repeats(ids, runs, where)
        ids, labels = ids.repeat_interleave(repeats), labels.repeat_interleave(repeats)
        assert (labels[self._is_visual(ids)] == IGNORED_LABEL).all(), f"{where}: labels at visual tokens"
        return EncodedChat(ids, labels, self._place(ids, videos, image_texts, where))

    def count_tokens(
        self, turns: Sequence[Turn], videos: Sequence[PreparedVideo], image_texts: Sequence[str], *, where: str
    ) -> int:
        """Tokens that `encode` would give."""
        text, _, runs = self._write_out(turns, videos, image_texts, where)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
        return int(self._repeats(ids, runs, where).sum())

    def _is_visual(self, ids: Int[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
        return (ids == self.image_token_id) | (ids == self.video_token_id)

    def _repeats(self, ids: Int[Tensor, " tokens"], runs: Sequence[int], where: str) -> Int[Tensor, " tokens"]:
        """How often each token stands: placeholders as often as their run is long, the others once."""
        visual = self._is_visual(ids)
        if int(visual.sum()) != len(runs):
            raise ValueError(f"{where}: found {int(visual.sum())} runs of visual tokens, expected {len(runs)}")
        repeats = torch.ones_like(ids)
        repeats[visual] = torch.tensor(runs, dtype=torch.int64)
        return repeats

    def _place(
        self, ids: Int[Tensor, " tokens"], videos: Sequence[PreparedVideo], image_texts: Sequence[str], where: str
    ) -> FrameLayout:
        """The frames at their tokens; every placeholder that was written must have become one token."""
        expected = sum(text.count(self.placeholders["image"]) for text in image_texts)
        found = int((ids == self.image_token_id).sum())
        if found != expected:
            raise ValueError(f"{where}: found {found} tokens of pictures, expected {expected}")
        counts = [video.num_tokens for video in videos]
        try:
            return FrameLayout.from_placeholder_ids(ids, self.video_token_id, [video.spans for video in videos], counts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _write_out(
        self, turns: Sequence[Turn], videos: Sequence[PreparedVideo], image_texts: Sequence[str], where: str
    ) -> tuple[str, list[tuple[int, int]], list[int]]:
        """The text with media written out, but one placeholder for each run of them: thousands take long to tokenize.

        Returns:
            The text, the characters from and to which the assistant speaks, and the lengths of the runs.
        """
        pieces = list(self._pieces(turns, where))
        texts = {"image": list(image_texts), "video": [video.text for video in videos]}
        for kind, placeholder in self.placeholders.items():
            found, expected = sum(piece.count(placeholder) for piece, _ in pieces), len(texts[kind])
            if found != expected:
                raise ValueError(
                    f"{where}: found {found} times {placeholder!r} in the rendered conversation, expected {expected}: "
                    f"one for each {kind}; words of a conversation must not contain it"
                )
        waiting = {kind: iter(own) for kind, own in texts.items()}
        runs: list[int] = []

        def shortened(run: re.Match[str]) -> str:
            placeholder = str(run[run.lastindex or 0])
            runs.append(len(run[0]) // len(placeholder))
            return placeholder

        text = ""
        answers: list[tuple[int, int]] = []
        for piece, spoken in pieces:
            begin = len(text)
            text += self._media.sub(lambda found: self._runs.sub(shortened, next(waiting[str(found.lastgroup)])), piece)
            if spoken:
                answers.append((begin, len(text)))
        return text, answers, runs

    def _pieces(self, turns: Sequence[Turn], where: str) -> Iterator[tuple[str, bool]]:
        """The rendered conversation in pieces, each with whether the assistant speaks it.

        An answer follows exactly the text that asks for it at generation: some templates (LLaVA-OneVision's) write
        another header before an answer that is there than before one that is wanted.
        """
        done = ""
        for at, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:at], answers=False)
            prompt = self._render(turns[:at], answers=True)
            after = self._render(turns[: at + 1], answers=False)
            if not (before.startswith(done) and prompt.startswith(before) and after.startswith(before)):
                raise ValueError(f"{where}: the chat template rewrites earlier turns; it can't be used")
            header, said = prompt[len(before) :], after[len(before) :]
            if not said.startswith(header) and (not turn.text or turn.text not in said):
                raise ValueError(f"{where}: the chat template changes the answer {turn.text!r}; it can't be used")
            said = said[len(header) if said.startswith(header) else self._header_length(turns[:at], before, turn) :]
            kept = said.rstrip()  # a line break behind the token that ends the turn is the template's
            yield prompt[len(done) :], False
            yield kept, True
            yield said[len(kept) :], False
            done = after
        if turns[-1].role == "assistant":
            return
        text = self._render(turns, answers=True)
        if not text.startswith(done):
            raise ValueError(f"{where}: the chat template rewrites earlier turns; it can't be used")
        yield text[len(done) :], False

    def _header_length(self, turns: Sequence[Turn], before: str, turn: Turn) -> int:
        """Characters that a template writes between a conversation and an answer that is there."""
        probe = replace(turn, content=({"type": "text", "text": _PROBE},))
        return self._render([*turns, probe], answers=False).index(_PROBE) - len(before)

    def _render(self, turns: Sequence[Turn], *, answers: bool) -> str:
        """The conversation as text, followed by the start of an answer where one is wanted."""
        return str(
            self.tokenizer.apply_chat_template(
                [turn.as_message() for turn in turns],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=answers,
            )
        )
