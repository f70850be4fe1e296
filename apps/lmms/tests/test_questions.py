"""Questions about scenes and their answers, checked against the scenes themselves."""

import numpy as np
import pytest
from lmms.questions import ask_about, ask_about_still, ask_without_looking
from lmms.scenes import DIRECTIONS, NUM_STEPS, STEPS, sample_scene, sample_still

STEP_S = 0.3
TIMES = np.arange(NUM_STEPS + 1) * STEP_S
THEMES = ("moving", "appearing", "counting")


def asked(theme, seed, **options):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, theme, size=64, step_s=STEP_S, direction=DIRECTIONS[rng.integers(4)], **options)
    return scene, ask_about(scene, rng)


def check_direction(scene, question):
    (shape,) = scene.shapes
    assert shape.name in question.text
    way = shape.centres(TIMES[-1:])[0] - shape.centres(TIMES[:1])[0]
    assert question.answer == max(STEPS, key=lambda name: way @ np.array(STEPS[name]))


def check_speed(scene, question):
    (shape,) = scene.shapes
    assert shape.name in question.text
    way = np.abs(shape.centres(TIMES[-1:]) - shape.centres(TIMES[:1])).sum()
    assert question.answer == ("fast" if way > 30 else "slow")


def check_order(scene, question):
    begins = {shape.colour: np.argmax(shape.is_visible(TIMES)) for shape in scene.shapes}
    assert question.answer == (min if "first" in question.text else max)(begins, key=begins.__getitem__)


def check_count(scene, question):
    assert question.answer == ("one", "two", "three")[len(scene.shapes) - 1]


CHECKS = {"direction": check_direction, "speed": check_speed, "order": check_order, "count": check_count}


@pytest.mark.parametrize("theme", THEMES)
def test_answers_are_those_of_the_scene(theme):
    for seed in range(30):
        scene, questions = asked(theme, seed)
        for question in questions:
            CHECKS[question.kind](scene, question)


def test_kinds_are_those_of_the_theme_in_any_order():
    kinds = {theme: {tuple(q.kind for q in asked(theme, seed)[1]) for seed in range(20)} for theme in THEMES}
    assert kinds["moving"] == {("direction", "speed"), ("speed", "direction")}
    assert kinds["appearing"] == {("order", "order")}
    assert kinds["counting"] == {("count",)}


def test_counts_are_in_words():
    for count, word in enumerate(("one", "two", "three"), start=1):
        (question,) = asked("counting", 0, num_shapes=count)[1]
        assert (question.kind, question.answer) == ("count", word)


def test_a_still_is_asked_about_by_form():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        still = sample_still(rng, size=64)
        question = ask_about_still(still, rng)
        (shape,) = (shape for shape in still.shapes if shape.kind in question.text)
        assert (question.kind, question.answer) == ("picture", shape.colour)


def test_opposites_need_no_picture():
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for seed in range(30):
        question = ask_without_looking(np.random.default_rng(seed))
        assert question.kind == "text"
        assert opposite[question.text.rstrip("?.").split()[-1]] == question.answer
