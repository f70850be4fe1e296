"""A folder holds one synthetic world, and nothing is written into another one."""

import json

import pytest
from region_training.worlds import WORLD_FILE, claim_world

ASKED = {"train_scenes": 8, "seed": 0}


def claim(root, asked=ASKED, **further):
    claim_world(root, asked, parts=("images", "val.json"), **further)


def test_an_empty_or_missing_folder_is_claimed_and_may_be_claimed_again(tmp_path):
    for root in (tmp_path, tmp_path / "new" / "world"):
        claim(root)
        (root / "images").mkdir()
        claim(root)
        assert json.loads((root / WORLD_FILE).read_text()) == ASKED | {"drawing": 1}


def test_another_world_is_refused_with_both_named_and_nothing_changed(tmp_path):
    claim(tmp_path)
    kept = (tmp_path / WORLD_FILE).read_bytes()
    for asked in (ASKED | {"seed": 1}, ASKED | {"image_size": 64}, {"seed": 0}):
        with pytest.raises(ValueError, match=r"a world is there \(train_scenes 8, seed 0.*asked for.*data\.root"):
            claim(tmp_path, asked)
    assert (tmp_path / WORLD_FILE).read_bytes() == kept


def test_an_older_drawing_of_the_same_settings_is_refused(tmp_path):
    claim(tmp_path)
    with pytest.raises(ValueError, match=r"drawing 1\), and another was asked for \(.*drawing 2\).*\(data\.place of"):
        claim(tmp_path, drawing=2, setting="data.place")


def test_a_world_from_before_drawings_were_counted_is_the_first_drawing(tmp_path):
    (tmp_path / WORLD_FILE).write_text(json.dumps(ASKED))
    claim(tmp_path)
    with pytest.raises(ValueError, match=r"drawing 2"):
        claim(tmp_path, drawing=2)


@pytest.mark.parametrize("part", ["images", "val.json"])
def test_a_world_of_which_nobody_knows_is_left_alone(tmp_path, part):
    (tmp_path / part).mkdir()
    with pytest.raises(ValueError, match=r"no world\.json, so nobody knows of which settings"):
        claim(tmp_path)
    assert not (tmp_path / WORLD_FILE).exists()
