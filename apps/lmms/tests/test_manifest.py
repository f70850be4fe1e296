"""The manifest: what is written is read, and counts only while the file is the same."""

import logging
import os

import pytest
from lmms.manifest import FileState, Manifest, ManifestEntry
from video_autoregressive.frames import VideoInfo

INFO = VideoInfo(22, 10.0, 2.2, 64, 48, 90, "h264", True, "file")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.mp4").write_bytes(b"1234")
    (tmp_path / "bad.mp4").write_bytes(b"12")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.jpg").write_bytes(b"1")
    return tmp_path


def entries(folder) -> list[ManifestEntry]:
    return [
        ManifestEntry("good.mp4", FileState.of(folder / "good.mp4"), 32, info=INFO),
        ManifestEntry("bad.mp4", FileState.of(folder / "bad.mp4"), 32, error="no frames"),
        ManifestEntry("gone.mp4", None, 32, error="not there"),
        ManifestEntry("frames", FileState.of(folder / "frames"), 32, info=INFO),
    ]


def test_what_is_written_is_read(folder):
    Manifest(entries(folder)).write(folder / "new" / "manifest.jsonl")
    again = Manifest.read(folder / "new" / "manifest.jsonl")
    assert again.entries == {entry.path: entry for entry in entries(folder)}
    assert list(again.entries) == ["bad.mp4", "frames", "gone.mp4", "good.mp4"]


def test_bad_videos_are_those_with_an_error(folder):
    manifest = Manifest(entries(folder))
    found = {name: manifest.is_bad(name, folder / name) for name in (*manifest.entries, "other.mp4")}
    assert found == {"good.mp4": False, "bad.mp4": True, "gone.mp4": True, "frames": False, "other.mp4": False}
    assert manifest.find("good.mp4", folder / "good.mp4").info == INFO
    assert manifest.find("other.mp4", folder / "other.mp4") is None


@pytest.mark.parametrize("name", ["bad.mp4", "good.mp4", "frames", "gone.mp4"])
def test_a_file_that_changed_was_never_checked(folder, name, caplog):
    manifest = Manifest(entries(folder), "here.jsonl")
    if name == "frames":
        (folder / "frames" / "1.jpg").write_bytes(b"2")
    elif name == "good.mp4":
        os.utime(folder / name, (0, 0))
    else:
        (folder / name).write_bytes(b"12345")
    with caplog.at_level(logging.WARNING):
        assert manifest.find(name, folder / name) is None
        assert not manifest.is_bad(name, folder / name)
    assert [record.getMessage() for record in caplog.records] == [
        f"here.jsonl: {name!r} has changed since it was checked; run check-data again"
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"path": "x", "frames": 3}', "'error' is missing"),
        ('{"path": "x", "frames": 3, "info": {"codec": "h264"}}', "key 'info'.*num_frames"),
        ('{"frames": 3, "error": "x"}', "'path' is missing"),
        ('{"path": "x", "bytes": 3, "frames": 3, "error": "x"}', "'modified' is missing"),
        ('{"path": "x", "frames": "3", "error": "x"}', "'frames' is '3'"),
        ("nonsense", "line 2"),
    ],
)
def test_what_is_no_manifest_is_said_with_its_place(tmp_path, line, message):
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"path": "y", "frames": 1, "error": "z"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"manifest\.jsonl (entry 1|line 2).*{message}|{message}"):
        Manifest.read(path)
