"""Captions: LAVIS' cleaning, FashionIQ's joins."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sprc.text import clean_caption, join_captions


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Make the Dog BLACK.", "make the dog black"),
        ('a "b" (c) d!e#f:g;h~i*j', "a b c d e f g h i j"),
        ("  two\n  spaces \t here  ", "two spaces here"),
        ("it's a t-shirt, isn't it?", "it's a t-shirt, isn't it?"),
        ("...", ""),
    ],
)
def test_cleaning(caption, expected):
    assert clean_caption(caption) == expected


def test_a_caption_is_cut_after_fifty_words():
    assert clean_caption(" ".join(["word"] * 60)) == " ".join(["word"] * 50)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_cleaning_twice_changes_nothing(text):
    once = clean_caption(text)
    assert clean_caption(once) == once


def test_one_caption_stays_as_it_is():
    assert join_captions(["Is red. "]) == "Is red. "


def test_two_captions_are_joined_in_order_outside_training():
    assert join_captions(["is red. ", " has, sleeves?"]) == "is red and has, sleeves"


def test_in_training_all_four_forms_are_drawn_alike():
    forms = Counter(join_captions(["a.", "b"], np.random.default_rng(seed)) for seed in range(400))
    assert set(forms) == {"a and b", "b and a", "a", "b"}
    assert min(forms.values()) > 60


def test_the_draw_depends_on_the_generator_alone():
    assert join_captions(["a", "b"], np.random.default_rng(3)) == join_captions(["a", "b"], np.random.default_rng(3))


@pytest.mark.parametrize("captions", [[], ["a", "b", "c"]])
def test_another_number_of_captions_is_an_error(captions):
    with pytest.raises(ValueError, match=f"got {len(captions)} captions"):
        join_captions(captions)
