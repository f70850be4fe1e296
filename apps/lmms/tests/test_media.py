"""The files of a record: what is drawn of its videos, and errors with their names."""

import logging
import sys

import numpy as np
import pytest
from lmms.clip_files import write_clip
from lmms.config import DataSettings
from lmms.manifest import FileState, Manifest, ManifestEntry
from lmms.media import MediaReader, chosen_backend
from lmms.records import Record
from region_training.images import write_png
from video_autoregressive.frames import VideoInfo


@pytest.fixture
def root(tmp_path):
    write_clip(tmp_path / "a.mp4", np.zeros((6, 32, 48, 3), dtype=np.uint8), np.arange(6) / 10)
    write_png(tmp_path / "p.png", np.zeros((20, 10, 3), dtype=np.uint8))
    return tmp_path


def reader_of(root, size=(16, 16), manifest=None, autoregressive=None, **settings) -> MediaReader:
    values = {"root": str(root), "backend": "pyav", "max_frames": 4} | settings
    return MediaReader(DataSettings(**values), size, manifest=manifest, autoregressive=autoregressive)


def test_frames_are_decoded_at_the_models_size_or_as_they_are(root):
    record = Record("x", (), videos=("a.mp4", "a.mp4"), images=("p.png",))
    media = reader_of(root).read(record, "here")
    assert [clip.frames.shape for clip in media.clips] == [(4, 3, 16, 16)] * 2
    assert [image.shape for image in media.images] == [(20, 10, 3)]
    assert media.decode_ms > 0
    assert reader_of(root, size=None).read(record, "here", 2).clips[0].frames.shape == (2, 3, 32, 48)
    assert reader_of(root).read(Record("x", ()), "here").decode_ms == 0


def test_the_choice_of_the_decoder_is_said_once(root, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # as if it were not installed
    chosen_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="video_autoregressive.backends"):
        readers = [reader_of(root, backend="auto") for _ in range(3)]
    chosen_backend.cache_clear()
    assert {reader.loader.backend.name for reader in readers} == {"pyav"}
    assert caplog.text.count("videos are decoded with PyAV") == 1


def test_a_file_that_cannot_be_read_is_named(root):
    for record, name in ((Record("x", (), videos=("no.mp4",)), "video 'no.mp4'"),):
        with pytest.raises(ValueError, match=f"^here, {name}: "):
            reader_of(root).read(record, "here")
    with pytest.raises(ValueError, match=r"^here, picture 'a\.mp4': .*no picture"):
        reader_of(root).read(Record("x", (), images=("a.mp4",)), "here")


def test_a_manifest_bounds_the_frames_and_names_bad_videos(root):
    info = VideoInfo(3, 10.0, 0.3, 48, 32, 0, "h264", False, "file")
    good = ManifestEntry("a.mp4", FileState.of(root / "a.mp4"), 32, info=info)
    reader = reader_of(root, manifest=Manifest([good, ManifestEntry("no.mp4", None, 32, error="not there")]))
    assert (reader.most_frames("a.mp4"), reader.most_frames("other.mp4")) == (3, 4)
    assert not reader.is_quarantined(Record("x", (), videos=("a.mp4",)))
    assert reader.is_quarantined(Record("x", (), videos=("a.mp4", "no.mp4")))
    assert not reader_of(root).is_quarantined(Record("x", (), videos=("no.mp4",)))


def test_recent_and_global_frames_keep_their_proportion(root, toy):
    stream = toy.autoregressive(stream="recent_plus_global", num_fast=4, num_slow=2)
    for max_frames, indices in ((6, [0, 2, 3, 4, 5]), (3, [0, 4, 5]), (2, [0, 5]), (1, [0, 5])):
        reader = reader_of(root, autoregressive=stream, max_frames=max_frames)
        clip = reader.read_clip("a.mp4", "here", reader.max_frames)
        assert clip.indices.tolist() == indices
