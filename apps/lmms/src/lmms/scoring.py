"""Scores of an evaluation: answers by exact match of words, in percent, and the losses under training's names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from region_core.losses import LossTerms
from video_autoregressive.targets import COPY_TERM

TEMPORAL_KINDS = ("direction", "order", "speed")
"""Kinds of the small world that need the order of the frames."""

ACCURACY, TEMPORAL, SCORE = "accuracy", "temporal", "score"
NO_KIND = "questions"
"""Where records do not say what kind of question they ask."""

MAIN_TERM = "main"

_NO_WORD = re.compile(r"[^\w\s]|_")
_ARTICLES = ("a", "an", "the")


def plain_words(text: str) -> str:
    """A text without case, punctuation, articles and surplus spaces, as short answers are compared.

    Args:
        text: For instance "The left." or " Left".
    """
    words = _NO_WORD.sub(" ", text.lower()).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_right(said: str, truth: str) -> bool:
    """Whether an answer is the true one, word for word."""
    return plain_words(said) == plain_words(truth)


def accuracies(answers: Iterable[tuple[str | None, bool]]) -> dict[str, float]:
    """Scores of some answers.

    Args:
        answers: Kind of the question (None: not known), and whether the answer was right.

    Returns:
        `KIND/accuracy` for every kind, in order of occurrence; `temporal`, the mean of the temporal kinds that there
        are; `score`, the mean of all kinds. Empty without answers.
    """
    counts: dict[str, list[int]] = {}
    for kind, right in answers:
        found = counts.setdefault(NO_KIND if kind is None else kind, [0, 0])
        found[0] += right
        found[1] += 1
    by_kind = {kind: 100 * right / number for kind, (right, number) in counts.items()}
    scores = {f"{kind}/{ACCURACY}": value for kind, value in by_kind.items()}
    if temporal := [by_kind[kind] for kind in TEMPORAL_KINDS if kind in by_kind]:
        scores[TEMPORAL] = sum(temporal) / len(temporal)
    if by_kind:
        scores[SCORE] = sum(by_kind.values()) / len(by_kind)
    return scores


def headline_of(scores: Mapping[str, float]) -> float:
    """The number that decides which of two models is better: the temporal kinds' mean, else all kinds'; else 0."""
    return scores.get(TEMPORAL, scores.get(SCORE, 0.0))


@dataclass
class LossSums:
    """Loss terms added up over batches and ranks.

    Attributes:
        totals: Name of the term -> sum over its items.
        counts: Name -> number of items.
        weights: Name -> weight in the total.
    """

    totals: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(self, terms: LossTerms) -> None:
        """Add the terms of a batch; those without items add nothing."""
        for name, term in terms.items():
            if float(term.count) > 0:
                self._add(name, float(term.total), float(term.count), float(term.weight))

    def merge(self, other: "LossSums") -> None:
        """Add the sums of other batches."""
        for name, total in other.totals.items():
            self._add(name, total, other.counts[name], other.weights[name])

    def compute(self, copy_loss: float | None = None) -> dict[str, float]:
        """The losses under the names that training logs; those that had no items are absent.

        Args:
            copy_loss: The error of copying against which the skill is taken. By default that of the same frames, which
                says little where they are shuffled: copying is destroyed by that as well, and against it a prediction
                that knows nothing but the mean of the frames has skill.

        Returns:
            `main_loss` and `autoregressive_loss`, both weighted, and their sum `total_loss`;
            `autoregressive_loss_raw`, the mean over the scales; `ar_copy_loss` and `ar_skill` (1 - error / error of
            copying) at the first scale.
        """
        means = {name: total / self.counts[name] for name, total in self.totals.items()}
        scales = [name for name in means if name not in (MAIN_TERM, COPY_TERM)]
        losses: dict[str, float] = {}
        if MAIN_TERM in means:
            losses["main_loss"] = self.weights[MAIN_TERM] * means[MAIN_TERM]
        if scales:
            losses["autoregressive_loss"] = sum(self.weights[name] * means[name] for name in scales)
        if losses:
            losses["total_loss"] = sum(losses.values())
        if scales:
            losses["autoregressive_loss_raw"] = sum(means[name] for name in scales) / len(scales)
        if COPY_TERM in means:
            losses["ar_copy_loss"] = means[COPY_TERM]
            against = means[COPY_TERM] if copy_loss is None else copy_loss
            if against > 0:
                losses["ar_skill"] = 1 - means[scales[0]] / against
        return losses

    def _add(self, name: str, total: float, count: float, weight: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + total
        self.counts[name] = self.counts.get(name, 0.0) + count
        self.weights[name] = weight
