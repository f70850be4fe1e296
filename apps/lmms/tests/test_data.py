"""Records with real files become samples: every kind of row, every setting, every error; nothing depends on chance."""

import json
import random
from dataclasses import fields

import numpy as np
import pytest
import torch
from lmms.chat import IGNORED_LABEL
from lmms.clip_files import write_clip
from lmms.config import DataSettings
from lmms.data import VideoDataset
from lmms.manifest import FileState, Manifest, ManifestEntry
from lmms.rows import Rows
from region_training.bad_records import BadRecordPolicy
from region_training.images import write_png
from region_training.safe_dataset import BadRecordError, SafeDataset, count_bad_records
from torch.utils.data import DataLoader
from video_autoregressive.frames import VideoInfo
from video_autoregressive.loader import MultiScaleVideoFrameLoader

NUM_FRAMES, FPS = 12, 10


def frames_of(seed: int, count: int = NUM_FRAMES) -> np.ndarray:
    """Frames of 48 x 64 pixels, brighter from one to the next."""
    frames = np.random.default_rng(seed).integers(0, 60, (count, 48, 64, 3), dtype=np.uint8)
    return frames + (15 * np.arange(count, dtype=np.uint8))[:, None, None, None]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("a.mp4", "b.mp4")):
        write_clip(folder / name, frames_of(seed), np.arange(NUM_FRAMES) / FPS)
    write_clip(folder / "short.mp4", frames_of(5, 2), np.arange(2) / FPS)
    for number, frame in enumerate(frames_of(9, 5)):
        write_png(folder / "folder" / f"{number}.png", frame)
    write_png(folder / "picture.png", frames_of(7, 1)[0])
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def row(words="<video>\nWhich way?", answer="left", **fields) -> dict[str, object]:
    turns = [{"from": "human", "value": words}]
    if answer is not None:
        turns.append({"from": "gpt", "value": answer})
    return {"id": "one", "conversations": turns} | fields


def text_row(**fields) -> dict[str, object]:
    return row("Which way?", **fields)


@pytest.fixture
def dataset_of(root, toy):
    """Makes a dataset of rows with changed settings."""

    def make(*rows, family=None, autoregressive=None, manifest=None, with_answers=True, **settings) -> VideoDataset:
        return VideoDataset(
            Rows([("rows.json", own) for own in rows]),
            toy.family() if family is None else family,
            DataSettings(root=str(root), **{"max_frames": 4, "backend": "pyav"} | settings),
            autoregressive=autoregressive,
            manifest=manifest,
            with_answers=with_answers,
        )

    return make


def same(one, other) -> bool:
    """Whether two samples agree in everything but the time that reading took."""
    for field in fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if field.name == "decode_ms":
            continue
        if isinstance(left, dict):
            if left.keys() != right.keys() or not all(torch.equal(left[key], right[key]) for key in left):
                return False
        elif not (torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right):
            return False
    return True


def test_a_video_becomes_frames_in_their_places(dataset_of, toy):
    sample = dataset_of(row(video="a.mp4"))[0]
    assert (sample.index, sample.record_id, sample.num_frames) == (0, "one", 4)
    assert sample.decode_ms > 0
    frames = sample.visuals["video_frames"]
    assert (frames.shape, frames.dtype) == ((4, 3, 32, 32), torch.uint8)
    brightness = frames.float().mean((1, 2, 3))
    assert (brightness.diff() > 0).all()
    assert [span.source_frame for span in sample.layout.spans] == [0, 3, 7, 11]
    assert [span.time_s for span in sample.layout.spans] == pytest.approx([0, 0.3, 0.7, 1.1])
    tokens = (sample.input_ids == toy.family().video_token_id).nonzero().flatten()
    assert len(tokens) == 4 * 4 + 1
    assert sample.layout.spans[0].token_start == tokens[0]
    assert (sample.labels[tokens] == IGNORED_LABEL).all()


@pytest.mark.parametrize(
    ("fields", "num_frames", "names"),
    [
        ({"video": "folder"}, 4, {"video_frames", "video_lengths"}),
        ({"video": "short.mp4"}, 2, {"video_frames", "video_lengths"}),
        ({"words": "<video><video>?", "video": ["a.mp4", "short.mp4"]}, 6, {"video_frames", "video_lengths"}),
        ({"words": "<image>?", "image": "picture.png"}, 0, {"image_tiles", "image_tile_counts", "image_sizes"}),
        ({"words": "?"}, 0, set()),
        (
            {"words": "<video><image>?", "video": "a.mp4", "image": "picture.png"},
            4,
            {"video_frames", "video_lengths", "image_tiles", "image_tile_counts", "image_sizes"},
        ),
    ],
    ids=["folder", "short", "two", "picture", "text", "both"],
)
def test_every_kind_of_row(dataset_of, toy, fields, num_frames, names):
    dataset = dataset_of(row(**fields))
    sample = dataset[0]
    assert sample.num_frames == len(sample.layout) == num_frames
    assert set(sample.visuals) == names
    batch = toy.collator()([sample, dataset[0]])
    assert batch["frames"].num_frames == 2 * num_frames


def test_every_family_reads_the_same_rows(dataset_of, each):
    rows = row(video="a.mp4"), row("<image>?", image="picture.png"), text_row(), row("<video>?", video="short.mp4")
    dataset = dataset_of(*rows, family=each.family())
    batch = each.collator()([dataset[index] for index in range(4)])
    assert batch["frames"].num_frames == (6 if each.model_type == "llava_onevision" else 3)
    assert batch["loss_counts"]["main"] > 0


@pytest.mark.parametrize(
    ("settings", "indices"),
    [
        ({"sampling": "uniform", "max_frames": 3}, [0, 5, 11]),
        ({"sampling": "uniform", "max_frames": 50}, list(range(12))),
        ({"sampling": "fps", "fps": 5.0, "max_frames": 50}, [0, 2, 4, 6, 8, 10]),
        ({"sampling": "stride", "sample_rate": 4, "max_frames": 50}, [0, 4, 8]),
    ],
)
def test_frames_are_drawn_as_the_settings_say(dataset_of, settings, indices):
    sample = dataset_of(row(video="a.mp4"), max_length=10_000, **settings)[0]
    assert [span.source_frame for span in sample.layout.spans] == indices


def test_a_stream_of_recent_and_global_frames_replaces_the_sampling(dataset_of, toy):
    stream = toy.autoregressive(stream="recent_plus_global", num_fast=3, num_slow=3)
    dataset = dataset_of(row(video="a.mp4"), autoregressive=stream, max_frames=50)
    assert [span.source_frame for span in dataset[0].layout.spans] == [0, 5, 9, 10, 11]
    dataset = dataset_of(row(video="a.mp4"), autoregressive=stream, max_frames=4)
    assert [span.source_frame for span in dataset[0].layout.spans] == [0, 10, 11]
    dataset = dataset_of(row(video="a.mp4"), autoregressive=toy.autoregressive(), max_frames=3)
    assert [span.source_frame for span in dataset[0].layout.spans] == [0, 5, 11]


def test_several_turns_are_all_learned(dataset_of, toy):
    fields = row(video="a.mp4")
    fields["conversations"] += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "yes"}]
    sample = dataset_of(fields)[0]
    assert toy.tokenizer.decode(sample.labels[sample.labels != IGNORED_LABEL]) == "left<|im_end|>yes<|im_end|>"


def test_without_answers_a_sample_is_the_prompt_with_its_own_media(dataset_of):
    fields = row(video=["a.mp4", "gone.mp4"])
    fields["conversations"] += [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "yes"}]
    prompt = dataset_of(fields, with_answers=False)[0]
    answered = dataset_of(row(video="a.mp4"))[0]
    assert (prompt.labels == IGNORED_LABEL).all()
    assert torch.equal(answered.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    unanswered = dataset_of(row(video="a.mp4", answer=None), with_answers=False)[0]
    assert torch.equal(unanswered.input_ids, prompt.input_ids)


def test_the_model_is_told_the_times_where_it_is_asked_for(dataset_of, toy):
    dataset = dataset_of(row(video="a.mp4"), time_instruction=True)
    text = toy.tokenizer.decode(dataset[0].input_ids)
    [clip] = dataset.reader.read(dataset.record(0), "here").clips
    assert f"This video is {clip.info.duration_s:.2f}s long; you see 4 frames of it, " in text
    assert "taken at 0.00s, 0.30s, 0.70s, 1.10s.\nWhich way?" in text
    assert "long" not in toy.tokenizer.decode(dataset_of(row(video="a.mp4"))[0].input_ids)
    assert dataset.longest(0) > len(dataset[0].input_ids)


def test_the_longest_length_is_known_without_decoding(dataset_of, monkeypatch):
    rows = row(video="a.mp4"), row("<video><video>?", video=["a.mp4", "b.mp4"]), text_row()
    rows += (row("<image>?", image="picture.png"), row(video="short.mp4"))
    dataset = dataset_of(*rows)
    lengths = [len(dataset[index].input_ids) for index in range(5)]
    monkeypatch.setattr(MultiScaleVideoFrameLoader, "load_clip", None)
    longest = [dataset.longest(index) for index in range(5)]
    assert longest[:4] == lengths[:4]
    assert longest[4] == longest[0] == lengths[4] + 2 * 4


def test_a_manifest_tells_how_many_frames_there_are(dataset_of, root):
    info = VideoInfo(2, 10.0, 0.2, 64, 48, 0, "h264", False, "file")
    manifest = Manifest([ManifestEntry("short.mp4", FileState.of(root / "short.mp4"), 32, info=info)])
    dataset = dataset_of(row(video="short.mp4"), manifest=manifest)
    assert dataset.longest(0) == len(dataset[0].input_ids)


def test_too_many_tokens_are_an_error(dataset_of):
    length = len(dataset_of(row(video="a.mp4"))[0].input_ids)
    assert len(dataset_of(row(video="a.mp4"), max_length=length)[0].input_ids) == length
    message = rf"rows\.json record 0 \(id 'one'\): {length} tokens, expected at most {length - 1} \(data\.max_length\)"
    with pytest.raises(ValueError, match=message):
        dataset_of(row(video="a.mp4"), max_length=length - 1)[0]


def test_or_fewer_frames_are_taken_evenly(dataset_of, each):
    rows = row(video="a.mp4"), row("<video><video>?", video=["a.mp4", "short.mp4"])
    every = dataset_of(*rows, family=each.family(), max_frames=12, max_length=10_000)
    for index in (0, 1):
        length = len(every[index].input_ids)
        dataset = dataset_of(*rows, family=each.family(), max_frames=12, max_length=length - 1, overlong="fewer_frames")
        sample = dataset[index]
        assert len(sample.input_ids) < length
        assert sample.num_frames < every[index].num_frames
        first = [span.source_frame for span in sample.layout.spans if span.video == 0]
        assert first[0] == 0
        assert each.model_type != "llava_onevision" or first[-1] == NUM_FRAMES - 1
        assert same(sample, dataset[index])
        if each.model_type == "llava_onevision":  # the second is planned as if its short video had all the frames
            assert dataset.longest(index) == len(sample.input_ids) + (0, 4 * 4)[index]


def test_fewer_frames_are_never_fewer_than_the_least(dataset_of, each):
    settings = {"family": each.family(), "max_frames": 12, "overlong": "fewer_frames"}
    short = len(dataset_of(row(video="a.mp4"), **settings | {"max_frames": 4})[0].input_ids)
    assert dataset_of(row(video="a.mp4"), max_length=short, min_frames=2, **settings)[0].num_frames == 4
    with pytest.raises(ValueError, match=r"expected at most \d+ \(data.max_length\)"):
        dataset_of(row(video="a.mp4"), max_length=short - 1, min_frames=4, **settings)[0]
    with pytest.raises(ValueError, match=r"expected at most 5 \(data.max_length\)"):
        dataset_of(text_row(), max_length=5, **settings)[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"video": "gone.mp4"}, r"video 'gone\.mp4'"),
        ({"video": "broken.mp4"}, r"video 'broken\.mp4'"),
        ({"video": "../a.mp4"}, "leads out of"),
        ({"video": "/a.mp4"}, "absolute path"),
        ({"video": "https://example.org/a.mp4"}, "got the URL"),
        ({"video": "short.mp4"}, r"got 2 frames, expected at least 3 \(data\.min_frames\)"),
        ({"words": "<image>?", "image": "gone.png"}, r"picture 'gone\.png'"),
        ({"words": "<image>?", "image": "broken.png"}, r"picture 'broken\.png'"),
        ({"words": "<image>?", "image": "../p.png"}, "leads out of"),
        ({"words": "?", "video": "a.mp4"}, "found 0 times <video>"),
        ({"video": "a.mp4", "answer": None}, "no turn of the assistant"),
    ],
)
def test_a_bad_record_is_named_with_its_file(dataset_of, fields, message):
    with pytest.raises(ValueError, match=rf"(?s)^rows\.json record 1 \(id 'one'\).*{message}"):
        dataset_of(text_row(), row(**fields), min_frames=3)[1]


def test_a_decoder_that_takes_too_long_makes_a_bad_record(dataset_of):
    dataset = dataset_of(row(video="a.mp4"), decode_timeout_s=0.0005)
    with pytest.raises(ValueError, match=r"record 0.*video 'a\.mp4'.*no answer within 0\.0005 s"):
        dataset[0]


def test_bad_records_are_skipped_and_counted(dataset_of, tmp_path):
    dataset = dataset_of(row(video="broken.mp4"), row(video="a.mp4", id="two"), row(video="b.mp4", id="three"))
    policy = BadRecordPolicy("skip", max_bad_fraction=0.5)
    safe = SafeDataset(dataset, policy, counted_in=tmp_path / "bad.jsonl", name_of=dataset.where)
    assert [safe[index].record_id for index in range(3)] == ["two", "two", "three"]
    assert count_bad_records(tmp_path / "bad.jsonl") == 1
    assert "rows.json record 0 (id 'one')" in (tmp_path / "bad.jsonl").read_text()
    strict = SafeDataset(dataset, BadRecordPolicy(), name_of=dataset.where)
    with pytest.raises(BadRecordError, match=r"^rows\.json record 0"):
        strict[0]


def test_readable_records_are_all_but_the_bad_ones(dataset_of):
    dataset = dataset_of(row(), row("no marker"), text_row())
    assert [record.answer for record in dataset.readable_records()] == ["left", dataset.record(2).answer]


def test_records_of_quarantined_videos_are_left_out(dataset_of, root, caplog):
    bad = ManifestEntry("broken.mp4", FileState.of(root / "broken.mp4"), 32, error="no video")
    gone = ManifestEntry("a.mp4", FileState(1, 1), 32, error="was bad once")  # and has changed since
    rows = [row(video="a.mp4", id="a"), row("<video><video>", video=["a.mp4", "broken.mp4"]), text_row(id="text")]
    rows += [row(video="broken.mp4"), {"id": "no record"}]
    with caplog.at_level("INFO"):
        dataset = dataset_of(*rows, manifest=Manifest([bad, gone]))
    assert [dataset.where(index).split()[-1] for index in range(len(dataset))] == ["'a')", "'text')", "record')"]
    assert dataset[0].record_id == "a"
    assert dataset[1].record_id == "text"
    assert "left out 2 of 5 records" in caplog.text


def test_samples_do_not_depend_on_chance_order_epoch_or_process(dataset_of):
    rows = row(video="a.mp4"), row("<image>?", image="picture.png"), text_row(), row(video="b.mp4")
    expected = [dataset_of(*rows)[index] for index in range(4)]
    dataset = dataset_of(*rows)
    for seed, index in ((1, 3), (2, 0), (3, 2), (4, 1), (5, 3)):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 the global generator is what must not matter
        random.seed(seed)
        assert same(dataset[index], expected[index])
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=list, multiprocessing_context="fork")
    for _ in range(2):
        loaded = [sample for batch in loader for sample in batch]
        assert all(same(left, right) for left, right in zip(loaded, expected, strict=True))
    assert same(dataset[-1], expected[3])
    with pytest.raises(IndexError):
        dataset[4]


def test_other_media_can_take_the_place_of_a_records_own(dataset_of):
    dataset = dataset_of(row(video="a.mp4"), row(video="b.mp4"))
    record, where = dataset.record(0), dataset.where(0)
    own, other = (dataset.reader.read(dataset.record(index), where) for index in (0, 1))
    assert same(dataset.make_sample(record, own, where=where), dataset[0])
    exchanged = dataset.make_sample(record, other, where=where)
    assert torch.equal(exchanged.visuals["video_frames"], dataset[1].visuals["video_frames"])
    assert exchanged.record_id == "one"


def test_files_and_manifest_are_opened_by_name(root, toy):
    (root / "train.json").write_text(json.dumps([row(video="a.mp4"), row(video="broken.mp4")]))
    bad = ManifestEntry("broken.mp4", FileState.of(root / "broken.mp4"), 32, error="no video")
    Manifest([bad]).write(root / "manifest.jsonl")
    settings = DataSettings(root=str(root), manifest="manifest.jsonl", backend="pyav")
    assert len(VideoDataset.open(settings, ["train.json"], toy.family())) == 1
    assert len(VideoDataset.open(DataSettings(root=str(root)), ["train.json"], toy.family())) == 2
