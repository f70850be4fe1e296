"""From scenes and answers to the measures of a mode, by hand; halves added up."""

import numpy as np
import pytest
from psalm.answers import Answer
from psalm.panoptic_merge import PanopticPrediction, PanopticSegment
from psalm.predictions import ConditionMasks, Instance
from psalm.samples import Scene
from psalm.scoring import MAIN_MEASURE, ModeScores, label_map
from region_core.rle import encode_rle

NAMES = ("sky", "car", "dog")
IS_THING = (False, True, True)


def scene(mode: str, *targets: tuple[str, int | tuple[int, ...]], conditions=NAMES, void: str | None = None) -> Scene:
    """A strip with targets such as ("##..", 0): where it is, and the conditions it belongs to."""
    width = 4
    masks = np.array([[[letter == "#" for letter in text]] for text, _ in targets], dtype=bool).reshape(-1, 1, width)
    belongs = np.zeros((len(targets), len(conditions)), dtype=bool)
    for row, (_, numbers) in enumerate(targets):
        belongs[row, list(numbers) if isinstance(numbers, tuple) else numbers] = True
    return Scene(
        record_id="by hand",
        mode=mode,
        image=np.zeros((1, width, 3), dtype=np.uint8),
        masks=masks,
        conditions=conditions,
        target_conditions=belongs,
        is_thing=IS_THING if conditions == NAMES else (True,) * len(conditions),
        void=None if void is None else bits(void),
    )


def bits(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in text]])


def said(best: tuple[str, ...], united: tuple[str, ...]) -> Answer:
    masks = ConditionMasks(
        np.stack([bits(text) for text in best]), np.stack([bits(text) for text in united]), np.ones(len(best))
    )
    return Answer(("",) * len(best), masks=masks)


def test_panoptic_is_scored_by_name_whatever_the_order_of_the_candidates():
    """A candidate list in another order than the label space's is another answer only by index."""
    names = ("dog", "sky", "car")
    answer = Answer(
        names,
        panoptic=PanopticPrediction(
            np.array([[1, 1, 2, 2]], dtype=np.int32),
            (PanopticSegment(1, 1, False, 0.9, 2), PanopticSegment(2, 2, True, 0.9, 2)),
        ),
        semantic=np.array([[2, 2, 3, 3]], dtype=np.int32),
        instances=(Instance(2, 0.9, encode_rle(bits("..##"))),),
    )
    scores = ModeScores("panoptic")
    scores.update(0, scene("panoptic", ("##..", 0), ("..##", 1)), answer)
    found = scores.compute()
    assert found["PQ"] == found["mIoU"] == 100.0
    assert found["AP"] == pytest.approx(100)
    assert scores.main() == 100.0


def test_only_things_are_instances_of_a_panoptic_scene():
    answer = Answer(NAMES, semantic=np.zeros((1, 4), dtype=np.int32), instances=())
    scores = ModeScores("panoptic")
    scores.update(0, scene("panoptic", ("####", 0)), answer)
    assert "AP" not in scores.compute()


def test_the_void_of_a_scene_counts_nowhere():
    scores = ModeScores("semantic")
    asked = scene("semantic", ("##..", 0), void="...#")
    scores.update(0, asked, Answer(NAMES, semantic=np.array([[1, 1, 2, 3]], dtype=np.int32)))
    # Sky is right; a car where nothing is, is wrong; what is in the void is nothing.
    assert scores.compute() == {"mIoU": 50.0, "pixel_accuracy": 100.0}


def test_referring_has_the_best_mask_where_there_is_a_target_and_the_union_everywhere():
    scores = ModeScores("referring")
    sentence = ("the car",)
    scores.update(0, scene("referring", ("##..", 0), conditions=sentence), said(("#...",), ("##..",)))
    scores.update(1, scene("referring", conditions=sentence), said(("####",), ("....",)))
    # gRefCOCO: two targets of one sentence are one mask.
    many = scene("referring", ("#...", 0), ("..#.", 0), conditions=sentence)
    scores.update(2, many, said(("#...",), ("#.#.",)))
    found = scores.compute()
    assert found["gIoU"] == pytest.approx(100 * (1 / 2 + 1 / 2) / 2)
    assert found["cIoU"] == pytest.approx(100 * 2 / 4)
    assert found["union_gIoU"] == 100.0
    assert found["union_N_acc"] == 100.0
    assert found["union_T_acc"] == 100.0


def test_a_region_without_target_is_not_asked_of_the_best_mask():
    scores = ModeScores("cross_image")
    regions = ("", "")
    # One target belongs to both regions, so that each has it.
    scores.update(
        0, scene("cross_image", ("##..", (0, 1)), conditions=regions), said(("##..", "...#"), ("##..", "...."))
    )
    assert scores.compute()["gIoU"] == 50.0
    scores.update(1, scene("cross_image", ("#...", 0), conditions=regions), said(("#...", "#..."), ("#...", "....")))
    found = scores.compute()
    assert found["gIoU"] == pytest.approx(100 * (1 + 0 + 1) / 3)
    assert found["union_gIoU"] == pytest.approx(100 * (1 + 0 + 1 + 1) / 4)


@pytest.mark.parametrize(
    ("mode", "targets", "measure", "value"),
    [
        ("referring", [("##..", 0)], "gIoU", 50.0),
        ("referring", [], "union_gIoU", 0.0),
        ("referring", [("#...", 0), ("..#.", 0)], "union_gIoU", 100.0),
        ("cross_image", [("#...", 0), ("..#.", 0)], "union_gIoU", 100.0),
        ("region", [("#...", 0), ("..#.", 0)], "gIoU", 50.0),
    ],
)
def test_the_main_measure_is_of_unions_where_a_condition_has_no_target_or_several(mode, targets, measure, value):
    scores = ModeScores(mode)
    scores.update(0, scene(mode, *targets, conditions=("",)), said(("#...",), ("#.#.",)))
    assert scores.main_measure == measure
    assert scores.main() == pytest.approx(value)
    # One such condition makes it that of the whole data set, from whatever side it is added.
    plain = ModeScores(mode)
    plain.update(1, scene(mode, ("##..", 0), conditions=("",)), said(("#...",), ("#.#.",)))
    assert plain.main_measure == "gIoU"
    plain.merge(scores)
    assert plain.main_measure == measure


def test_a_mode_region_has_no_measures_of_unions():
    scores = ModeScores("region")
    scores.update(0, scene("region", ("##..", 0), conditions=("",)), said(("##..",), ("....",)))
    assert scores.compute() == {"cIoU": 100.0, "gIoU": 100.0}


def test_without_scenes_there_is_nothing_to_say():
    for mode in MAIN_MEASURE:
        assert ModeScores(mode).compute() == {}
        assert ModeScores(mode).main() is None


def test_two_halves_are_the_whole():
    rng = np.random.default_rng(0)
    names = ("a", "b")
    parts = [ModeScores("cross_image") for _ in range(5)]
    whole = ModeScores("cross_image")
    for position, part in enumerate(parts):
        masks = rng.random((2, 1, 4)) > 0.5
        asked = scene("cross_image", ("#.#.", 0), ("..##", 1), conditions=names)
        answer = Answer(names, masks=ConditionMasks(masks, ~masks, np.ones(2)))
        part.update(position, asked, answer)
        whole.update(position, asked, answer)
    joined = ModeScores("cross_image")
    for part in (parts[3], parts[0], parts[4], parts[1], parts[2]):
        joined.merge(part)
    assert joined.compute() == whole.compute()


def test_label_map_of_masks_that_overlap_has_the_last():
    masks = np.stack([bits("###."), bits("..#.")])
    assert label_map(masks, [5, 7]).tolist() == [[5, 5, 7, 0]]
    assert label_map(np.zeros((0, 1, 4), dtype=bool), []).tolist() == [[0, 0, 0, 0]]
