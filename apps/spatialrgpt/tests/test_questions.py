"""Every question is answered a second time, slowly, from its words and the scene."""

import re
from itertools import pairwise

import numpy as np
import pytest
from region_heads.labels import parse_label
from region_heads.routing import route_question
from region_heads.tasks import TaskType, parse_task
from spatialrgpt.answers import parse_answer
from spatialrgpt.questions import (
    DEPTH_MARGIN_M,
    MAX_COUNT,
    MAX_REGIONS,
    NEAREST_RATIO,
    SIDE_MARGIN,
    Question,
    ask_about,
)
from spatialrgpt.scenes import Scene, sample_scene

ASKED = 12


def scene_of(seed: int) -> Scene:
    return sample_scene(np.random.default_rng(seed))


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    pairs = []
    for seed in range(5):
        scene = scene_of(seed)
        pairs += [(scene, question) for question in ask_about(scene, np.random.default_rng(seed), ASKED)]
    return pairs


def centre_x(scene: Scene, index: int) -> float:
    """Mean column of an object's pixels as a share of the width."""
    columns = [column + 0.5 for row in scene.masks[index] for column in np.flatnonzero(row)]
    return sum(columns) / len(columns) / scene.masks.shape[2]


def distance(scene: Scene, first: int, second: int) -> float:
    one, two = scene.objects[first], scene.objects[second]
    return ((one.x - two.x) ** 2 + (one.z - two.z) ** 2) ** 0.5


def nearest(scene: Scene, candidates: list[int], to: int) -> int:
    by_distance = sorted(candidates, key=lambda index: distance(scene, index, to))
    metres = [distance(scene, index, to) for index in by_distance]
    assert len(metres) == 1 or metres[1] >= NEAREST_RATIO * metres[0]
    return by_distance[0]


def outermost(scene: Scene, candidates: list[int], text: str) -> int:
    by_side = sorted(candidates, key=lambda index: centre_x(scene, index), reverse="rightmost" in text)
    assert abs(centre_x(scene, by_side[0]) - centre_x(scene, by_side[1])) >= SIDE_MARGIN - 1e-9
    return by_side[0]


def solve(scene: Scene, question: Question) -> tuple[float | int | str, set[int] | None]:
    """The answer, and the scene's objects that it is about."""
    text, objects = question.text, list(question.objects)
    if question.category == "distance":
        pair = measured_pair(scene, text, objects)
        return round(distance(scene, *pair), 2), set(pair)
    if question.category == "left_right":
        first, second = (centre_x(scene, index) for index in objects)
        assert abs(first - second) >= SIDE_MARGIN - 1e-9
        return "left" if first < second else "right", None
    if question.category == "mcq":
        return objects.index(chosen(scene, text, objects)), None
    members = counted(scene, text, objects)
    return len(members), members


def measured_pair(scene: Scene, text: str, objects: list[int]) -> tuple[int, int]:
    if "closest of the pallets" in text:
        return nearest(scene, objects[1:], to=objects[0]), objects[0]
    if "leftmost" in text or "rightmost" in text:
        return outermost(scene, objects[:-1], text), objects[-1]
    first, second = objects
    return first, second


def chosen(scene: Scene, text: str, objects: list[int]) -> int:
    if "leftmost" in text or "rightmost" in text:
        return outermost(scene, objects[1:], text)
    if text.startswith("Given the pallets"):
        return nearest(scene, objects[:-2], to=objects[-1])
    return nearest(scene, objects[1:], to=objects[0])


def counted(scene: Scene, text: str, objects: list[int]) -> set[int]:
    pallets = [index for index in objects if scene.objects[index].kind == "pallet"]
    (other,) = [index for index in objects if scene.objects[index].kind != "pallet"]
    anchor = scene.objects[other]
    if "buffer" in text:
        half_width, half_depth = anchor.width / 2, anchor.depth / 2
        items = {index: scene.objects[index] for index in pallets}
        return {i for i, p in items.items() if abs(p.x - anchor.x) <= half_width and abs(p.z - anchor.z) <= half_depth}
    if "nearer to the camera" in text:
        assert all(abs(scene.objects[index].z - anchor.z) >= DEPTH_MARGIN_M for index in pallets)
        return {index for index in pallets if scene.objects[index].z < anchor.z}
    assert all(abs(centre_x(scene, index) - centre_x(scene, other)) >= SIDE_MARGIN - 1e-9 for index in pallets)
    return {index for index in pallets if centre_x(scene, index) < centre_x(scene, other)}


def test_the_answers_are_those_of_the_scene(asked):
    for scene, question in asked:
        answer, _ = solve(scene, question)
        assert question.answer == answer, question


def test_all_kinds_of_wording_were_checked(asked):
    texts = [question.text for _, question in asked]
    for words in ("How distant", "Considering", "closest of", "stand left", "quickest", "Besides", "Count", "camera"):
        assert any(words in text for text in texts), words
    assert {question.category for _, question in asked} == {"distance", "left_right", "mcq", "count"}


def test_the_sentence_names_the_regions_that_the_answer_is_about(asked):
    for scene, question in asked:
        task, num_regions = parse_task(question.category), len(question.objects)
        label = parse_label(task, question.answer, num_regions, answer=question.freeform)
        _, about = solve(scene, question)
        expected = None if about is None else frozenset(question.objects.index(index) for index in about)
        assert label.involved == expected, question


def test_the_sentence_gives_the_answer_back(asked):
    for _, question in asked:
        task = parse_task(question.category)
        prediction = parse_answer(task, question.freeform, len(question.objects))
        assert prediction is not None
        assert prediction.value == question.answer, question


def test_each_region_is_mentioned_once_and_by_its_kind(asked):
    for scene, question in asked:
        assert question.text.count("<mask>") == len(question.objects) == len(set(question.objects))
        assert len(question.objects) <= MAX_REGIONS
        assert len(question.objects) == 2 or question.category != "left_right"
        assert len(question.objects) >= 3 or question.category in ("distance", "left_right")
        for mention in re.finditer(r"(pallet|buffer|shelf|transporter)s? <mask>", question.text):
            position = question.text[: mention.start()].count("<mask>")
            assert scene.objects[question.objects[position]].kind == mention.group(1), question


def test_counts_stay_small_and_several_counts_occur(asked):
    counts = {question.answer for _, question in asked if question.category == "count"}
    assert max(counts) <= MAX_COUNT
    assert {0, 1, 2} <= counts


def test_the_words_alone_lead_to_the_right_head(asked):  # T12, T13
    for _, question in asked:
        assert route_question(question.text, len(question.objects)) is parse_task(question.category), question


def test_no_question_is_asked_twice_and_none_more_often_than_asked_for():
    questions = list(ask_about(scene_of(3), np.random.default_rng(3), 4))
    keys = [(question.text, question.objects) for question in questions]
    assert len(keys) == len(set(keys))
    for task in TaskType:
        assert sum(parse_task(question.category) is task for question in questions) <= 4
    categories = [question.category for question in questions]
    assert sum(one != two for one, two in pairwise(categories)) == len(set(categories)) - 1


def test_the_same_generator_asks_the_same():
    scene = scene_of(1)
    first, again, other = (list(ask_about(scene, np.random.default_rng(seed), 3)) for seed in (5, 5, 6))
    assert first == again
    assert first != other
