"""What is asked about the small world, with several wordings; every answer is one word.

Kinds `direction` and `order` need the order of the frames, `speed` needs several of them; `count` and `picture` need
none of that, and `text` has no frames at all.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lmms.scenes import Direction, Scene

Choice = TypeVar("Choice")

NUMBERS = ("no", "one", "two", "three")
OPPOSITES: dict[Direction, Direction] = {"left": "right", "right": "left", "up": "down", "down": "up"}

DIRECTION = ("Which way does the {shape} move?",)
SPEED = ("How fast does the {shape} move?",)
ORDER = ("Which colour comes {place}?",)
PLACES = ("first", "last")
COUNT = ("How many shapes are there?",)
PICTURE = ("What colour is the {kind}?", "Which colour does the {kind} have?", "What is the colour of the {kind}?")
TEXT = ("What is the opposite of {word}?", "Which is the opposite of {word}?", "Name the opposite of {word}.")


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        kind: Kind of the question.
        text: Its words.
        answer: The right word.
    """

    kind: str
    text: str
    answer: str


def ask_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Everything that can be asked about a clip, by its theme.

    Args:
        scene: What the clip shows.
        rng: Chooses the wordings, and the order of the questions.
    """
    match scene.theme:
        case "counting":
            questions = [Question("count", _choose(rng, COUNT), NUMBERS[len(scene.shapes)])]
        case "appearing":
            questions = [
                Question("order", _choose(rng, ORDER).format(place=place), shape.colour)
                for place, shape in zip(PLACES, scene.shapes, strict=True)
            ]
        case "moving":
            (shape,) = scene.shapes
            pace = "fast" if shape.is_fast else "slow"
            questions = [
                Question("direction", _choose(rng, DIRECTION).format(shape=shape.name), shape.direction),
                Question("speed", _choose(rng, SPEED).format(shape=shape.name), pace),
            ]
    return [questions[place] for place in rng.permutation(len(questions))]


def ask_about_still(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about a single picture."""
    (shape,) = scene.shapes
    return Question("picture", _choose(rng, PICTURE).format(kind=shape.kind), shape.colour)


def ask_without_looking(rng: np.random.Generator) -> Question:
    """A question that needs no picture."""
    word, opposite = _choose(rng, tuple(OPPOSITES.items()))
    return Question("text", _choose(rng, TEXT).format(word=word), opposite)


def _choose(rng: np.random.Generator, choices: tuple[Choice, ...]) -> Choice:
    return choices[rng.integers(len(choices))]
