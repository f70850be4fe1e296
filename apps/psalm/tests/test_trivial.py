"""What can be said without looking, mode by mode."""

import numpy as np
import pytest
from psalm.samples import Scene
from psalm.scoring import ModeScores
from psalm.trivial import TrivialAnswers

NAMES = ("sky", "sea", "car")


def scene(mode, masks, conditions, belongs, *, is_thing=None, prompts=None, reference=None) -> Scene:
    masks = np.asarray(masks, dtype=bool)
    return Scene(
        record_id="by hand",
        mode=mode,
        image=np.zeros((*masks.shape[1:], 3), dtype=np.uint8),
        masks=masks,
        conditions=conditions,
        target_conditions=np.asarray(belongs, dtype=bool),
        is_thing=is_thing or (True,) * len(conditions),
        prompts=prompts,
        reference_image=reference,
    )


def boxed(height: int, width: int, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros((1, height, width), dtype=bool)
    mask[:, top : top + rows, left : left + columns] = True
    return mask


@pytest.fixture
def beach() -> Scene:
    labels = np.array([[1, 1, 1, 1], [1, 1, 1, 2], [3, 3, 3, 3], [3, 3, 3, 3]])
    masks = labels == np.array([1, 2, 3])[:, None, None]
    return scene("panoptic", masks, NAMES, np.eye(3), is_thing=(False, False, True))


def score(fitted: TrivialAnswers, asked: Scene) -> dict[str, float | None]:
    scores = {}
    for who, answer in fitted.answers(asked).items():
        own = ModeScores(asked.mode)
        own.update(0, asked, answer)
        scores[who] = own.main()
    return scores


def test_the_whole_image_is_the_most_frequent_stuff_not_the_larger_thing(beach):
    fitted = TrivialAnswers.fit([beach])
    assert fitted.class_name == "sky"
    # 7 of 16 pixels are no match: PQ 0 for all three classes.
    assert score(fitted, beach) == {"the whole image as one class": 0.0}
    (answer,) = fitted.answers(beach).values()
    assert answer.semantic.tolist() == [[1] * 4] * 4
    assert answer.panoptic.segments[0].class_index == 0
    assert answer.instances == ()


def test_things_alone_give_the_most_frequent_thing(beach):
    things = scene("panoptic", beach.masks[2:], ("car",), [[1]])
    assert TrivialAnswers.fit([things]).class_name == "car"


def test_a_class_that_a_scene_does_not_list_is_not_said(beach):
    fitted = TrivialAnswers.fit([beach])
    other = scene("semantic", beach.masks[:1], ("sea",), [[1]], is_thing=(False,))
    assert score(fitted, other) == {"the whole image as one class": 0.0}
    (answer,) = fitted.answers(other).values()
    assert not answer.semantic.any()


def test_referring_says_the_whole_image_or_a_box_of_the_mean_size_in_the_middle():
    small = scene("referring", boxed(8, 16, 2, 4, 4, 8), ("the car",), [[1]])
    fitted = TrivialAnswers.fit([small])
    assert fitted.box_size == (0.5, 0.5)
    assert score(fitted, small) == {"the whole image": 25.0, "a box in the middle": 100.0, "no target": 0.0}
    nobody = scene("referring", np.zeros((0, 8, 16)), ("the car",), np.zeros((0, 1)))
    assert score(fitted, nobody) == {"the whole image": 0.0, "a box in the middle": 0.0, "no target": 100.0}


def test_regions_are_their_own_prompt_or_a_box_of_the_mean_size_around_it():
    prompts = np.zeros((2, 8, 8), dtype=bool)
    prompts[0, 3:5, 3:5] = True
    asked = scene("region", np.concatenate([boxed(8, 8, 2, 2, 4, 4)] * 2), ("", ""), np.eye(2), prompts=prompts)
    fitted = TrivialAnswers.fit([asked])
    answers = fitted.answers(asked)
    assert (answers["the prompt itself"].masks.best == prompts).all()
    around = answers["a box around the prompt"].masks.best
    assert (around[0] == asked.masks[0]).all()
    # Around an empty prompt there is nothing, and the region is missed.
    assert not around[1].any()
    assert score(fitted, asked) == {
        "the prompt itself": pytest.approx(100 * 4 / 16 / 2),
        "a box around the prompt": 50.0,
    }


def test_a_prompt_on_another_image_is_pasted_in_its_place():
    prompts = boxed(4, 4, 0, 0, 2, 2)
    asked = scene(
        "cross_image",
        boxed(8, 16, 0, 0, 4, 8),
        ("",),
        [[1]],
        prompts=prompts,
        reference=np.zeros((4, 4, 3), dtype=np.uint8),
    )
    assert score(TrivialAnswers.fit([asked]), asked)["the prompt itself"] == 100.0


def test_instances_and_scenes_without_anything():
    empty = scene("instance", np.zeros((0, 4, 4)), NAMES, np.zeros((0, 3)))
    fitted = TrivialAnswers.fit([empty])
    assert fitted.class_name is None
    assert fitted.answers(empty)["nothing"].instances == ()
    assert TrivialAnswers.fit([]).box_size == (0.5, 0.5)
