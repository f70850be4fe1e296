"""The small world is a data set in the guide's format, the same from the same settings."""

import json
import shutil
from collections import Counter

import av
import numpy as np
import pytest
from lmms.config import SyntheticSettings
from lmms.questions import ask_about
from lmms.records import parse_record
from lmms.scenes import DIRECTIONS
from lmms.synthetic import NUM_FRAMES, scene_of_clip, write_world
from region_training.worlds import WORLD_FILE

SETTINGS = SyntheticSettings(train_clips=35, eval_clips=7, seed=3)
KINDS = {"direction", "order", "speed", "count", "picture", "text"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_world(root, SETTINGS)
    return root


def read(root, split="train"):
    return json.loads((root / f"{split}.json").read_text())


def decoded(path):
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        held = container.streams.video[0].frames
    times = np.array([float(frame.time) for frame in frames])
    return np.stack([frame.to_ndarray(format="rgb24") for frame in frames]), times, held


def parsed(root, split):
    return [parse_record(record, "here") for record in read(root, split)]


def test_records_are_conversations_in_single_words_and_their_files_are_there(world):
    for split in ("train", "val"):
        records = parsed(world, split)
        assert len({record.id for record in records}) == len(records)
        for record in records:
            assert all(len(turn.text.split()) == 1 for turn in record.turns if turn.role == "assistant")
            assert all((world / name).is_file() for name in (*record.videos, *record.images))
            assert len(record.videos) + len(record.images) == (record.kind != "text")


def test_a_clip_has_a_record_for_each_question_with_its_kind(world):
    for split, clips in (("train", SETTINGS.train_clips), ("val", SETTINGS.eval_clips)):
        records = parsed(world, split)
        shown = [record for record in records if record.videos]
        assert len({record.videos for record in shown}) == clips < len(shown)
        assert all(len(record.turns) == 2 for record in records)
        assert {record.kind for record in records} == KINDS


def test_a_tenth_of_the_records_shows_a_picture_and_a_twentieth_nothing(world):
    for split in ("train", "val"):
        kinds = Counter(record.kind for record in parsed(world, split))
        total = sum(kinds.values())
        assert kinds["picture"] / total == pytest.approx(0.10, abs=0.03)
        assert kinds["text"] / total == pytest.approx(0.05, abs=0.03)


def test_temporal_kinds_are_asked_equally_often_and_answers_are_balanced():
    scenes = [scene_of_clip(SETTINGS, 1, index) for index in range(60)]
    kinds = Counter(question.kind for scene, _, rng in scenes for question in ask_about(scene, rng))
    assert kinds == {"direction": 30, "speed": 30, "order": 30, "count": 15}
    first = Counter(scene.shapes[0].direction for scene, _, _ in scenes if scene.theme == "moving")
    assert set(first) == set(DIRECTIONS)
    assert max(first.values()) - min(first.values()) <= 2
    assert Counter(len(scene.shapes) for scene, _, _ in scenes if scene.theme == "counting") == {1: 5, 2: 5, 3: 5}


@pytest.mark.parametrize("index", range(14))
def test_every_clip_shows_its_scene_at_the_times_of_its_frames(world, index):
    scene, rate, _ = scene_of_clip(SETTINGS, 0, index)
    frames, times, held = decoded(world / f"videos/train/{index:06d}.mp4")
    assert times[0] == pytest.approx(0, abs=1e-3)
    assert times[-1] == pytest.approx((NUM_FRAMES - 1) / rate, abs=1e-3)
    # H.264 halves the resolution of colours, so edges differ; a frame at a wrong time differs by far more.
    error = np.abs(frames.astype(int) - scene.render(times)).mean((1, 2, 3))
    assert error.max() < 5
    constant = np.allclose(np.diff(times), 1 / rate, atol=1e-3)
    assert constant == (index % 7 != 3)
    assert (held > len(times)) == (index % 7 == 5)


def test_six_frames_taken_evenly_in_time_are_there_in_every_clip(world):
    for index in range(14):
        _, times, _ = decoded(world / f"videos/train/{index:06d}.mp4")
        wanted = np.linspace(0, times[-1], 6)
        assert np.abs(times[:, None] - wanted).min(0).max() < 1e-3


def test_copying_the_last_frame_is_a_bad_prediction_and_going_on_as_before_a_good_one(world):
    copied, continued = [], []
    for index in (0, 2, 4, 6):
        scene, rate, _ = scene_of_clip(SETTINGS, 0, index)
        times = np.linspace(0, (NUM_FRAMES - 1) / rate, 6)
        frames = scene.render(times).astype(float)
        copied.append(np.square(frames[1:] - frames[:-1]).mean())
        # Motion from history: every shape goes on by the distance between its last two places.
        places = [shape.centres(times) for shape in scene.shapes]
        continued.append(max(np.abs(place[2:] - 2 * place[1:-1] + place[:-2]).max() for place in places))
    # A shape of 16 x 16 of 64 x 64 pixels is a sixteenth of the picture, and 100 levels off the background.
    assert min(copied) > 50
    assert max(continued) < 1e-6


def test_the_same_settings_give_the_same_pixels_and_labels(world, tmp_path):
    write_world(tmp_path, SETTINGS)
    assert read(tmp_path) == read(world)
    for name in ("000000", "000003", "000005"):
        np.testing.assert_array_equal(
            decoded(tmp_path / f"videos/train/{name}.mp4")[0], decoded(world / f"videos/train/{name}.mp4")[0]
        )


def test_held_out_clips_are_not_training_clips(world):
    train, held_out = (
        {path.read_bytes() for path in (world / "videos" / split).iterdir()} for split in ("train", "val")
    )
    assert not train & held_out


def test_a_half_written_split_is_written_again_and_a_whole_one_kept(world, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    expected = read(root, "val")
    (root / "val.json").unlink()
    (root / "videos/val/000001.mp4").write_bytes(b"cut o")
    (root / "videos/train/000000.mp4").write_bytes(b"a finished split is left alone")
    write_world(root, SETTINGS)
    assert read(root, "val") == expected
    assert len(decoded(root / "videos/val/000001.mp4")[0]) > 0
    assert (root / "videos/train/000000.mp4").read_bytes() == b"a finished split is left alone"


def test_another_world_is_refused_with_both_named(world, tmp_path):
    with pytest.raises(ValueError, match=r"a world is there \(train_clips 35, .*asked for \(train_clips 36"):
        write_world(world, SyntheticSettings(train_clips=36, eval_clips=7, seed=3))
    root = tmp_path / "world"
    shutil.copytree(world, root)
    (root / WORLD_FILE).unlink()
    with pytest.raises(ValueError, match=r"no world\.json"):
        write_world(root, SETTINGS)


def test_splits_may_have_other_names(tmp_path):
    write_world(tmp_path, SyntheticSettings(train_clips=1, eval_clips=1), ("first", "second"))
    assert read(tmp_path, "first")[0]["id"].startswith("first-")
    assert (tmp_path / "videos/second/000000.mp4").is_file()


def test_larger_pictures(tmp_path):
    write_world(tmp_path, SyntheticSettings(train_clips=1, eval_clips=1, image_size=96))
    assert decoded(tmp_path / "videos/train/000000.mp4")[0].shape[1:] == (96, 96, 3)
