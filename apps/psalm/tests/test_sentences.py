"""A sentence is about exactly one thing, or about none, whichever way its words are taken."""

import itertools
from collections import Counter

import numpy as np
import pytest
from psalm.scenes import DrawnScene, Name, sample_scene
from psalm.sentences import Look, Phrase, looks_of, phrases_for, sample_absent_phrase, sample_phrases

DARK, LIGHT = Name("dark", "tree"), Name("light", "tree")
CROSS = Name("dark", "cross")


@pytest.fixture(scope="module")
def scenes() -> list[DrawnScene]:
    return [sample_scene(np.random.default_rng([2, index]), 96) for index in range(60)]


def sentences(looks, position):
    return {str(phrase) for phrase in phrases_for(looks, position)}


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        (Phrase("dark", "apple"), "the dark apple"),
        (Phrase(kind="kite", side="left", side_first=True), "the left kite"),
        (Phrase(kind="cross", side="right"), "the cross on the right"),
        (Phrase("light", size="large"), "the large light one"),
        (Phrase("light", "brick", "top"), "the light brick at the top"),
    ],
)
def test_sentences_are_plain_english(phrase, text):
    assert str(phrase) == text


def test_the_shade_names_a_thing_where_classes_are_equal():
    looks = [Look(DARK, 0.48, 0.48, 0.28), Look(LIGHT, 0.5, 0.5, 0.28)]
    # Both lie in the middle and are of medium size: only the shade tells them apart.
    assert sentences(looks, 0) == {"the dark tree"}
    assert sentences(looks, 1) == {"the light tree"}


def test_a_side_counts_only_where_the_other_thing_is_clearly_elsewhere():
    clear = [Look(DARK, 0.2, 0.5, 0.28), Look(DARK, 0.8, 0.5, 0.28)]
    assert {"the left tree", "the tree on the left", "the dark one on the left"} <= sentences(clear, 0)
    assert "the dark tree" not in sentences(clear, 0)
    unclear = [Look(DARK, 0.2, 0.5, 0.28), Look(DARK, 0.5, 0.5, 0.28)]
    assert sentences(unclear, 0) == set()
    assert sentences(unclear, 1) == set()


def test_a_size_counts_only_where_the_other_thing_is_of_the_opposite_size():
    clear = [Look(DARK, 0.5, 0.5, 0.2), Look(DARK, 0.5, 0.5, 0.4)]
    assert sentences(clear, 0) == {"the small dark one", "the small tree"}
    assert sentences(clear, 1) == {"the large dark one", "the large tree"}
    medium = [Look(DARK, 0.5, 0.5, 0.2), Look(DARK, 0.5, 0.5, 0.28)]
    assert sentences(medium, 0) == set()


def test_things_that_look_alike_have_no_sentence():
    look = Look(DARK, 0.2, 0.2, 0.4)
    assert sentences([look, look], 0) == set()


def test_a_look_is_read_off_the_visible_mask():
    masks = np.zeros((1, 40, 80), dtype=bool)
    masks[0, 10:20, 60:76] = True
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    scene = DrawnScene(image, (DARK,), masks, (), np.zeros((0, 40, 80), dtype=bool))
    # x = (60 + 76) / 2 / 80, y = (10 + 20) / 2 / 40, length = 16 / 80
    assert looks_of(scene) == (Look(DARK, 0.85, 0.375, 0.2),)


def fits(phrase: Phrase, look: Look, looks: list[Look]) -> bool:
    """A careless reading: sides and sizes are compared with those of the others, as "leftmost" and "largest"."""
    alike = [
        other for other in looks if phrase.shade in (None, other.name.shade) and phrase.kind in (None, other.name.kind)
    ]
    if look not in alike:
        return False
    keys = {
        "left": lambda other: -other.x,
        "right": lambda other: other.x,
        "top": lambda other: -other.y,
        "bottom": lambda other: other.y,
        "small": lambda other: -other.length,
        "large": lambda other: other.length,
    }
    return all(look == max(alike, key=keys[word]) for word in (phrase.side, phrase.size) if word is not None)


def test_every_sentence_is_about_its_thing_and_no_other_in_either_reading(scenes):
    num_phrases = 0
    for scene in scenes:
        looks = list(looks_of(scene))
        for position, look in enumerate(looks):
            for phrase in phrases_for(looks, position):
                num_phrases += 1
                assert [phrase.is_about(other) for other in looks] == [row == position for row in range(len(looks))]
                assert [fits(phrase, other, looks) for other in looks] == [other is look for other in looks]
    assert num_phrases > 500


def test_no_sentence_of_one_thing_is_said_of_another_one(scenes):
    for scene in scenes:
        looks = looks_of(scene)
        said = [sentences(looks, position) for position in range(len(looks))]
        for one, other in itertools.combinations(said, 2):
            assert not one & other


def test_most_things_can_be_spoken_of(scenes):
    spoken = [bool(phrases_for(looks, row)) for looks in map(looks_of, scenes) for row in range(len(looks))]
    assert np.mean(spoken) > 0.85


def test_a_sentence_about_nothing_fits_no_thing_by_shade_and_class_alone(scenes):
    rng = np.random.default_rng(0)
    mixed_up = Counter()
    for scene in scenes:
        for _ in range(5):
            phrase = sample_absent_phrase(rng, scene.names)
            alike = [
                name for name in scene.names if phrase.shade in (None, name.shade) and phrase.kind in (None, name.kind)
            ]
            assert alike == []
            assert all(phrase.excludes(look) for look in looks_of(scene))
            shades, kinds = {name.shade for name in scene.names}, {name.kind for name in scene.names}
            mixed_up[phrase.shade in shades and phrase.kind in kinds] += 1
    # Mixed-up names, which only both words together give away, and plainly absent ones.
    assert min(mixed_up[True], mixed_up[False]) > 30


def test_a_mixed_up_name_is_about_nothing():
    # There is a dark cross and a light tree: nothing but "light cross" and "dark tree" is hard.
    rng = np.random.default_rng(0)
    drawn = {str(sample_absent_phrase(rng, [CROSS, LIGHT])) for _ in range(300)}
    assert {"the light cross", "the dark tree"} <= drawn
    assert not drawn & {"the dark cross", "the light tree", "the cross", "the tree"}


def test_drawn_phrases_say_different_things():
    phrases = phrases_for([Look(DARK, 0.2, 0.2, 0.4)], 0)
    drawn = sample_phrases(np.random.default_rng(0), phrases, 100)
    said = [tuple(word is None for word in (p.shade, p.kind, p.side, p.size)) for p in drawn]
    assert len(set(said)) == len(said) == 7
    assert sample_phrases(np.random.default_rng(0), [], 2) == []
