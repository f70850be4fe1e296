"""Captions as SPRC's text side sees them: cleaned as LAVIS does, FashionIQ's two joined into one."""

import re
from collections.abc import Sequence

import numpy as np

MAX_WORDS = 50  # LAVIS, BlipCaptionProcessor
_BLANKED = re.compile(r"[.!\"()*#:;~]")
_STRIPPED = ".?, "


def clean_caption(caption: str, *, max_words: int = MAX_WORDS) -> str:
    """Lower-case, without the characters . ! " ( ) * # : ; ~, with single spaces, cut after `max_words` words.

    Cleaning a clean caption changes nothing.
    """
    return " ".join(_BLANKED.sub(" ", caption.lower()).split()[:max_words])


def join_captions(captions: Sequence[str], rng: np.random.Generator | None = None) -> str:
    """Make one caption of those that describe a pair.

    Args:
        captions: One (CIRR), which stays as it is, or two (FashionIQ), stripped of ". ? ," and spaces at their ends.
        rng: Draws one of "a and b", "b and a", "a", "b" with equal chances, for training; without it "a and b".

    Raises:
        ValueError: There are neither one nor two captions.
    """
    if len(captions) == 1:
        return captions[0]
    if len(captions) != 2:
        raise ValueError(f"got {len(captions)} captions of one pair, expected 1 or 2: {list(captions)!r}")
    first, second = (caption.strip(_STRIPPED) for caption in captions)
    forms = (f"{first} and {second}", f"{second} and {first}", first, second)
    return forms[0 if rng is None else int(rng.integers(len(forms)))]
