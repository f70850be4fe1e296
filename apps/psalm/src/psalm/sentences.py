"""Referring sentences of the small world, each about exactly one thing of a scene, or about none.

What a word means may be plain in one scene and a matter of opinion in another: is a thing near the middle on the left?
Is one of medium size large? So every word says yes, no or unclear of a thing, and a sentence is used only where it says
a clear yes of one thing and a clear no of all others.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from psalm.scenes import SHADES, THINGS, DrawnScene, Name, Shade

Side = Literal["left", "right", "top", "bottom"]
Size = Literal["small", "large"]

NEAR, FAR = 0.42, 0.54
"""A thing is on a side if its centre is nearer to that edge than `NEAR`, and is not if it is farther than `FAR`, in
widths (heights) of the image; in between, the word is unclear."""
SMALL, LARGE = 0.25, 0.32
"""A thing is small (large) below (above) this longer side, in longer sides of the image; in between, it is neither."""
HARD_SHARE = 0.7
"""So many sentences without target are made of a shade and a class that are in the scene, but not together."""

_YES, _UNCLEAR, _NO = 1, 0, -1


class Look(NamedTuple):
    """What can be said of a visible thing.

    Attributes:
        name: Shade and class.
        x: Centre of the visible part's box, in widths of the image.
        y: The same, in heights of the image.
        length: Longer side of that box, in longer sides of the image.
    """

    name: Name
    x: float
    y: float
    length: float


@dataclass(frozen=True)
class Phrase:
    """A description; what is None is not said.

    Attributes:
        shade: One of `scenes.SHADES`.
        kind: One of `scenes.THINGS`.
        side: Part of the image that the thing lies in.
        size: Size of the thing.
        side_first: Say "the left apple", not "the apple on the left".
    """

    shade: Shade | None = None
    kind: str | None = None
    side: Side | None = None
    size: Size | None = None
    side_first: bool = False

    def __str__(self) -> str:
        """The sentence."""
        before = self.side if self.side_first else None
        after = None
        if self.side is not None and not self.side_first:
            after = f"{'on' if self.side in ('left', 'right') else 'at'} the {self.side}"
        words = ("the", before, self.size, self.shade, self.kind or "one", after)
        return " ".join(word for word in words if word is not None)

    def is_about(self, look: Look) -> bool:
        """Whether the phrase clearly describes the thing."""
        return self._verdict(look) == _YES

    def excludes(self, look: Look) -> bool:
        """Whether the phrase clearly does not describe the thing; where it is unclear, `is_about` is false too."""
        return self._verdict(look) == _NO

    def _verdict(self, look: Look) -> int:
        verdicts = [_YES]
        if self.shade is not None:
            verdicts.append(_YES if look.name.shade == self.shade else _NO)
        if self.kind is not None:
            verdicts.append(_YES if look.name.kind == self.kind else _NO)
        if self.side is not None:
            to_edge = {"left": look.x, "right": 1 - look.x, "top": look.y, "bottom": 1 - look.y}[self.side]
            verdicts.append(_YES if to_edge < NEAR else _NO if to_edge > FAR else _UNCLEAR)
        if self.size is not None:
            is_small, is_large = look.length < SMALL, look.length > LARGE
            yes, no = (is_small, is_large) if self.size == "small" else (is_large, is_small)
            verdicts.append(_YES if yes else _NO if no else _UNCLEAR)
        return min(verdicts)


def looks_of(scene: DrawnScene) -> tuple[Look, ...]:
    """Centre and length of what is visible of every thing of a scene."""
    height, width = scene.masks.shape[1:]
    looks = []
    for name, mask in zip(scene.names, scene.masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y = (columns[0] + columns[-1] + 1) / 2 / width, (rows[0] + rows[-1] + 1) / 2 / height
        longer = max(columns[-1] - columns[0], rows[-1] - rows[0]) + 1
        looks.append(Look(name, float(x), float(y), float(longer) / max(height, width)))
    return tuple(looks)


def phrases_for(looks: Sequence[Look], position: int) -> list[Phrase]:
    """All phrases that are about one thing of a scene and no other.

    Args:
        looks: The things of the scene.
        position: Which of them is meant.
    """
    others = [look for index, look in enumerate(looks) if index != position]
    return [
        phrase
        for phrase in _phrases_of(looks[position].name)
        if phrase.is_about(looks[position]) and all(phrase.excludes(other) for other in others)
    ]


def sample_phrases(rng: np.random.Generator, phrases: Sequence[Phrase], number: int) -> list[Phrase]:
    """Draw phrases that say different things; fewer where there are not so many.

    Args:
        rng: Source of the choice.
        phrases: Phrases to choose from.
        number: How many to draw at most.
    """
    by_words: dict[tuple[bool, ...], list[Phrase]] = {}
    for phrase in phrases:
        said = (phrase.shade, phrase.kind, phrase.side, phrase.size)
        by_words.setdefault(tuple(word is not None for word in said), []).append(phrase)
    groups = list(by_words.values())
    return [groups[row][rng.integers(len(groups[row]))] for row in rng.permutation(len(groups))[:number]]


def sample_absent_phrase(rng: np.random.Generator, names: Sequence[Name]) -> Phrase:
    """Draw a phrase about no thing of a scene; its shade and class alone are enough to say so.

    Args:
        rng: Source of the choice.
        names: The things of the scene.
    """
    present = set(names)
    absent = [name for name in itertools.starmap(Name, itertools.product(SHADES, THINGS)) if name not in present]
    shades, kinds = {name.shade for name in names}, {name.kind for name in names}
    hard = [name for name in absent if name.shade in shades and name.kind in kinds]
    options = hard if hard and rng.random() < HARD_SHARE else absent
    name = options[rng.integers(len(options))]
    phrases = [
        phrase
        for phrase in _phrases_of(name)
        if phrase.shade not in (None, *shades)
        or phrase.kind not in (None, *kinds)
        or (phrase.shade is not None and phrase.kind is not None)
    ]
    return sample_phrases(rng, phrases, 1)[0]


def _phrases_of(name: Name) -> list[Phrase]:
    """Everything that could be said of a thing of this name, were it anywhere and of any size."""
    shade, kind = name
    sides: tuple[Side, ...] = ("left", "right", "top", "bottom")
    sizes: tuple[Size, ...] = ("small", "large")
    phrases = [Phrase(shade, kind), Phrase(kind=kind)]
    phrases += [Phrase(shade, size=size) for size in sizes]
    phrases += [Phrase(kind=kind, size=size) for size in sizes]
    for side in sides:
        phrases += [Phrase(kind=kind, side=side, side_first=first) for first in (True, False)]
        phrases += [Phrase(shade, kind, side), Phrase(shade, side=side)]
    return phrases
