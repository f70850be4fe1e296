"""Controls change what is read, and nothing else: the order of the frames, or whose video it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from lmms.clip_files import write_clip
from lmms.config import DataSettings
from lmms.controls import (
    ExchangingReader,
    RememberingReader,
    ShufflingReader,
    reading_with,
    shuffle_frames,
    videos_of_others,
)
from lmms.data import VideoDataset
from lmms.media import MediaReader
from lmms.scenes import DIRECTIONS, sample_scene

NUM_FRAMES = 8


def conversation(question, answer="left", **keys):
    marker = "<video>\n" if "video" in keys else ""
    turns = [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **keys}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four clips; two questions about the first, one about each other, one without a video."""
    root = tmp_path_factory.mktemp("clips")
    times = np.arange(NUM_FRAMES) / 8
    for number, direction in enumerate(DIRECTIONS):
        scene = sample_scene(
            np.random.default_rng(number), "moving", size=32, step_s=0.1, direction=direction, num_shapes=2
        )
        write_clip(root / f"{number}.mp4", scene.render(times), times)
    records = [
        conversation("Where is it going?", video="0.mp4", kind="direction"),
        conversation("Which way?", video="0.mp4", kind="direction"),
        conversation("Which way?", video="1.mp4", kind="direction"),
        conversation("Which one?", video="2.mp4", kind="speed"),
        conversation("Which one is it?", video="3.mp4", kind="speed"),
        conversation("How many?", video="3.mp4", kind="count"),
        conversation("What is the opposite of right?", kind="text"),
    ]
    (root / "val.json").write_text(json.dumps(records))
    return root


@pytest.fixture
def dataset(root, toy):
    settings = DataSettings(root=str(root), max_frames=4, backend="pyav")
    return VideoDataset.open(settings, ["val.json"], toy.family())


def frames_of(dataset, index):
    return dataset[index].visuals["video_frames"]


def test_shuffled_frames_are_the_same_frames_in_another_order_at_the_same_times(toy):
    clip = toy.clip(5)
    for name in map(str, range(30)):
        shuffled = shuffle_frames(clip, name)
        assert not torch.equal(shuffled.frames, clip.frames)
        assert sorted(map(str, shuffled.frames.flatten(1).tolist())) == sorted(
            map(str, clip.frames.flatten(1).tolist())
        )
        assert torch.equal(shuffled.times, clip.times)
        assert shuffled.info == clip.info
    assert torch.equal(shuffle_frames(clip, "a").frames, shuffle_frames(clip, "a").frames)
    assert len({str(shuffle_frames(clip, str(name)).frames[:, 0, 0, 0].tolist()) for name in range(30)}) > 5


def test_two_frames_are_always_exchanged_and_one_stays(toy):
    pair = toy.clip(2)
    assert torch.equal(shuffle_frames(pair, "x").frames, pair.frames.flip(0))
    assert shuffle_frames(toy.clip(1), "x").frames.shape[0] == 1


def test_a_shuffled_data_set_differs_in_the_order_of_frames_alone(dataset):
    shuffled = reading_with(dataset, ShufflingReader(dataset.reader), with_answers=True)
    for index in range(6):
        own, other = dataset[index], shuffled[index]
        assert torch.equal(own.input_ids, other.input_ids)
        assert torch.equal(own.labels, other.labels)
        assert own.layout == other.layout
        assert not torch.equal(own.visuals["video_frames"], other.visuals["video_frames"])
    # Two questions about one clip are shuffled each in its own way; the data set itself is as it was.
    assert not torch.equal(frames_of(shuffled, 0), frames_of(shuffled, 1))
    assert torch.equal(frames_of(dataset, 0), frames_of(dataset, 1))
    assert torch.equal(shuffled[6].input_ids, dataset[6].input_ids)


def test_prompts_end_before_the_answer(dataset):
    prompts = reading_with(dataset, dataset.reader, with_answers=False)
    for index in range(7):
        whole, prompt = dataset[index].input_ids, prompts[index].input_ids
        assert len(prompt) < len(whole)
        assert torch.equal(prompt, whole[: len(prompt)])
    assert dataset.with_answers


def test_other_videos_are_those_of_another_question_of_the_same_kind(dataset):
    others = videos_of_others(dataset, range(7))
    assert others[0] == others[1] == ("1.mp4",)
    assert others[2] == ("0.mp4",)
    assert (others[3], others[4]) == (("3.mp4",), ("2.mp4",))
    # The only count, and a question without a video, have nobody to exchange with.
    assert set(others) == {0, 1, 2, 3, 4}
    assert set(videos_of_others(dataset, [0, 1, 3])) == set()


def test_an_exchanging_data_set_asks_the_same_question_about_the_other_video(dataset):
    others = videos_of_others(dataset, range(7))
    reader = ExchangingReader(dataset.reader, {dataset.where(index): videos for index, videos in others.items()})
    exchanged = reading_with(dataset, reader, with_answers=True)
    assert torch.equal(frames_of(exchanged, 3), frames_of(dataset, 4))
    assert torch.equal(frames_of(exchanged, 0), frames_of(dataset, 2))
    assert torch.equal(exchanged[3].input_ids, dataset[3].input_ids)
    assert torch.equal(frames_of(exchanged, 5), frames_of(dataset, 5))


def test_files_that_are_asked_for_again_are_not_read_again(dataset, monkeypatch):
    read = []
    original = MediaReader.read_clip
    monkeypatch.setattr(
        MediaReader, "read_clip", lambda self, name, *rest: read.append(name) or original(self, name, *rest)
    )
    reader = RememberingReader(dataset.reader)
    prompts, whole = (reading_with(dataset, reader, with_answers=answers) for answers in (False, True))
    shuffled = reading_with(dataset, ShufflingReader(reader), with_answers=False)
    for index in (0, 3, 0):
        assert torch.equal(frames_of(prompts, index), frames_of(whole, index))
        assert not torch.equal(frames_of(shuffled, index), frames_of(whole, index))
    assert read == ["0.mp4", "2.mp4", "0.mp4"]


def test_a_long_record_is_shortened_alike_for_everyone(dataset, root, toy):
    full = len(dataset[0].input_ids)
    settings = replace(dataset.settings, max_length=full - 1, overlong="fewer_frames")
    short = VideoDataset.open(settings, ["val.json"], toy.family())
    shuffled = reading_with(short, ShufflingReader(short.reader), with_answers=True)
    assert short[0].num_frames == shuffled[0].num_frames == 3
