"""Which records are drawn, and what stands on their pictures."""

import numpy as np
import pytest
from psalm.pictures import choose_records, draw_record
from psalm.records import EvaluatedRecord, FoundMask
from psalm.samples import Scene
from region_core.rle import encode_rle


def record(position: int, measure: float | None) -> EvaluatedRecord:
    return EvaluatedRecord(position, "panoptic", position, "panoptic", "", 0, (8, 8), measure, ())


def test_the_worst_come_first_then_some_at_equal_steps_and_none_twice():
    records = [record(position, measure) for position, measure in enumerate([50.0, 10.0, 90.0, None, 5.0, 70.0])]
    chosen = choose_records(records, 4)
    assert [item.position for item in chosen] == [4, 1, 0, 3]
    assert sorted(item.position for item in choose_records(records, 20)) == list(range(6))
    assert choose_records(records, 0) == []
    assert choose_records([], 3) == []


def scene(mode: str, conditions: tuple[str, ...], **changes) -> Scene:
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, 2:6, 2:6] = True
    belongs = np.zeros((1, len(conditions)), dtype=bool)
    belongs[0, 0] = True
    values = {
        "record_id": "toy",
        "mode": mode,
        "image": np.full((8, 8, 3), 90, dtype=np.uint8),
        "masks": mask,
        "conditions": conditions,
        "target_conditions": belongs,
        "is_thing": (True,) * len(conditions),
    }
    return Scene(**values | changes)


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def labels(figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


FOUND = encode_rle(np.ones((8, 8), dtype=bool))


def test_a_panoptic_picture_shows_target_and_segments():
    figure = draw_record(scene("panoptic", ("car", "sky")), [FoundMask("segment", "sky", 0.9, FOUND)], measure=12.34)
    assert titles(figure) == ["target", "found"]
    assert labels(figure) == [["car"], ["sky 0.90"]]
    assert figure.get_suptitle() == "panoptic (12.3 %)"


def test_unsure_instances_are_left_out():
    masks = [FoundMask("instance", "car", score, FOUND) for score in (0.9, 0.4)]
    assert labels(draw_record(scene("instance", ("car",)), masks, measure=None))[1] == ["car 0.90"]


def test_a_sentence_is_the_title_and_no_target_is_said():
    empty = {"masks": np.zeros((0, 8, 8), dtype=bool), "target_conditions": np.zeros((0, 1), dtype=bool)}
    masks = [FoundMask("best", "the car", 0.31, FOUND), FoundMask("united", "the car", None, FOUND)]
    figure = draw_record(scene("referring", ("the car",), **empty), masks, measure=None)
    assert figure.get_suptitle() == "the car"
    assert titles(figure) == ["no target", "best mask", "masks above the threshold"]
    assert labels(figure) == [[], ["0.31"], []]


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_prompts_are_shown_on_the_image_they_lie_on(size):
    reference = None if size == (8, 8) else np.zeros((*size, 3), dtype=np.uint8)
    prompts = np.ones((1, *size), dtype=bool)
    mode = "region" if reference is None else "cross_image"
    asked = scene(mode, ("",), prompts=prompts, reference_image=reference)
    figure = draw_record(asked, [FoundMask("best", "region 0", 0.5, FOUND)], measure=50.0)
    assert titles(figure)[0] == ("prompts" if reference is None else "prompts on the reference image")
    assert labels(figure) == [["region 0"], ["region 0"], ["region 0 0.50"]]
    assert figure.axes[0].get_images()[0].get_array().shape[:2] == size


def test_nothing_found_and_unknown_targets():
    figure = draw_record(scene("panoptic", ("car",)), [], measure=None, with_target=False)
    assert titles(figure) == ["nothing found"]
