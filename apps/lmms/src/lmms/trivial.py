"""The answer that needs no video: what it scores, the questions give away."""

from collections import Counter
from collections.abc import Iterable

from lmms.records import Record
from lmms.scoring import plain_words


class QuestionOnly:
    """Answers by the words of the question alone: the most frequent answer to training questions worded the same.

    A question that training never asked gets the most frequent answer of its kind, and one of a new kind the most
    frequent of all.

    Args:
        asked: Kind, question and answer of every training record.
    """

    def __init__(self, asked: Iterable[tuple[str | None, str, str]]) -> None:
        by_words: dict[str, Counter[str]] = {}
        by_kind: dict[str | None, Counter[str]] = {}
        overall: Counter[str] = Counter()
        for kind, question, answer in asked:
            for counter in (
                by_words.setdefault(plain_words(question), Counter()),
                by_kind.setdefault(kind, Counter()),
                overall,
            ):
                counter[plain_words(answer)] += 1
        self._by_words = {words: _most_frequent(answers) for words, answers in by_words.items()}
        self._by_kind = {kind: _most_frequent(answers) for kind, answers in by_kind.items()}
        self._overall = _most_frequent(overall) if overall else ""

    def answer(self, kind: str | None, question: str) -> str:
        """The answer to a question; empty where training had none at all."""
        return self._by_words.get(plain_words(question), self._by_kind.get(kind, self._overall))


def questions_of(record: Record) -> list[tuple[str | None, str, str]]:
    """Kind, question and answer of every answer of a conversation; the question is what the user said last."""
    found: list[tuple[str | None, str, str]] = []
    question = ""
    for turn in record.turns:
        if turn.role == "user":
            question = turn.text
        elif turn.role == "assistant":
            found.append((record.kind, question, turn.text))
    return found


def _most_frequent(answers: Counter[str]) -> str:
    # Words break ties, so that the choice does not depend on the order of the records.
    return max(sorted(answers), key=lambda answer: answers[answer])
