"""The check before a training: what is good, bad, hanging, changed, and what the manifest keeps of it."""

import json
import textwrap
import time

import av
import numpy as np
import pytest
from lmms import check_data as module
from lmms.check_data import check_data
from lmms.clip_files import write_clip
from lmms.manifest import Manifest
from lmms.verbs import CheckDataSettings
from region_training.images import write_png
from video_autoregressive.testing import write_clip as write_barcodes


@pytest.fixture
def root(tmp_path):
    frames = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, frames, np.arange(6) / 10)
    for number in range(3):
        write_png(tmp_path / "folder" / f"{number}.png", frames[number])
    write_png(tmp_path / "picture.png", frames[0])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


def row(video=None, image=None, **fields):
    words = ("<video>" if video else "") + ("<image>" if image else "") + "?"
    turns = [{"from": "human", "value": words}, {"from": "gpt", "value": "x"}]
    media = {key: value for key, value in (("video", video), ("image", image)) if value}
    return {"conversations": turns} | media | fields


GOOD = [row("a.mp4", kind="order"), row("b.mp4"), row("a.mp4"), row("folder"), row(image="picture.png"), row()]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the videos that are decoded: in this process, since starting others takes seconds."""
    names = []

    def run(self, path, backend, function, *args):
        if function is module.probe_video:
            names.append(path.name)
        return function(*args)

    monkeypatch.setattr(module.DecodeWorker, "run", run)
    return names


def check(root, rows, **settings) -> int:
    (root / "train.json").write_text(json.dumps(rows))
    values = {"files": ["train.json"], "num_workers": 1, "timeout_s": 60.0, "backend": "pyav"} | settings
    return check_data(CheckDataSettings(root=str(root), **values))


def test_good_data_pass_and_are_described(root, decoded, capsys):
    assert check(root, GOOD, num_workers=2) == 0
    assert sorted(decoded) == ["a.mp4", "b.mp4", "folder"]
    output = capsys.readouterr().out
    for what in ("none: 5, order: 1", "1 picture: 1, 1 video: 4, text alone: 1", "3 / 6 / 6", "folders of frames"):
        assert what in output
    manifest = Manifest.read(root / "manifest.jsonl")
    assert {name: entry.info.num_frames for name, entry in manifest.entries.items()} == {
        "a.mp4": 6,
        "b.mp4": 6,
        "folder": 3,
    }
    assert (manifest.entries["a.mp4"].info.width, manifest.entries["a.mp4"].frames) == (32, 0)


def test_everything_that_is_bad_is_named(root, decoded, capsys):
    rows = [*GOOD, row("broken.mp4"), row("gone.mp4"), row("../up.mp4"), row(image="broken.png"), {"id": 1}]
    assert check(root, rows) == 1
    output = "".join(capsys.readouterr().out.split())
    for sentence in (
        "train.jsonrecord6(idNone):'broken.mp4':",
        "train.jsonrecord7(idNone):'gone.mp4':",
        "train.jsonrecord8(idNone):'../up.mp4':",
        "train.jsonrecord9(idNone):'broken.png':",
        "train.jsonrecord10(id1):'messages'ismissing",
    ):
        assert f"bad:{sentence}" in output
    manifest = Manifest.read(root / "manifest.jsonl")
    bad = {name for name in manifest.entries if manifest.is_bad(name, root / name)}
    assert bad == {"broken.mp4", "gone.mp4", "../up.mp4"}


@pytest.mark.slow
def test_a_decoder_that_hangs_is_killed_and_the_others_are_checked(root, monkeypatch, capsys):
    (root / "sleeping_backend.py").write_text(
        textwrap.dedent("""
            import time
            from video_autoregressive.pyav_backend import PyavBackend

            class SleepingBackend(PyavBackend):
                def probe(self, path):
                    if str(path).endswith("b.mp4"):
                        time.sleep(600)
                    return super().probe(path)
        """)
    )
    monkeypatch.syspath_prepend(root)
    from sleeping_backend import SleepingBackend

    monkeypatch.setattr(module, "backend_of", lambda name: SleepingBackend())
    begin = time.monotonic()
    assert check(root, [row("b.mp4"), row("a.mp4")], timeout_s=8.0) == 1
    assert time.monotonic() - begin < 300
    assert "no answer within 8 s" in " ".join(capsys.readouterr().out.split())
    manifest = Manifest.read(root / "manifest.jsonl")
    assert manifest.entries["a.mp4"].error is None
    assert "no answer within" in manifest.entries["b.mp4"].error


def test_what_was_good_is_not_decoded_again(root, decoded):
    assert check(root, [row("a.mp4"), row("broken.mp4"), row("b.mp4")]) == 1
    decoded.clear()
    for name in ("b.mp4", "broken.mp4"):
        write_clip(root / name, np.ones((8, 32, 32, 3), dtype=np.uint8), np.arange(8) / 10)
    assert check(root, [row("a.mp4"), row("broken.mp4"), row("b.mp4")]) == 0
    assert decoded == ["broken.mp4", "b.mp4"]
    for frames, again in ((33, []), (0, [])):
        decoded.clear()
        assert check(root, [row("a.mp4")], frames=frames) == 0
        assert decoded == again
    assert set(Manifest.read(root / "manifest.jsonl").entries) == {"a.mp4", "b.mp4", "broken.mp4"}


def test_a_check_of_fewer_frames_does_not_stand_for_one_of_more(root, decoded):
    for frames, again in ((4, ["a.mp4"]), (3, []), (5, ["a.mp4"]), (0, ["a.mp4"]), (5, [])):
        decoded.clear()
        assert check(root, [row("a.mp4")], frames=frames) == 0
        assert decoded == again


def test_damage_is_found_wherever_it_is(root, decoded, capsys):
    """In frame 5 of 300, the last before a key frame: no other frame needs it."""
    path = write_barcodes(root / "long.mp4", 300, gop=3, options={"bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as clip:
        position, size = [(packet.pos, packet.size) for packet in clip.demux(video=0) if packet.size][5]
    data = bytearray(path.read_bytes())
    data[position : position + size] = bytes(size)
    path.write_bytes(data)
    assert check(root, [row("long.mp4")], frames=32) == 0
    assert check(root, [row("long.mp4")]) == 1
    assert "frame 5 at 0.167 s: cannot be decoded" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_check_keeps_what_it_found(root, monkeypatch):
    def run(self, path, backend, function, *args):
        if path.name == "b.mp4":
            raise KeyboardInterrupt
        return function(*args)

    monkeypatch.setattr(module.DecodeWorker, "run", run)
    with pytest.raises(KeyboardInterrupt):
        check(root, [row("a.mp4"), row("b.mp4")])
    assert set(Manifest.read(root / "manifest.jsonl").entries) == {"a.mp4"}


def test_text_alone_needs_no_decoder(root, capsys):
    assert check(root, [row(), row()]) == 0
    assert "text alone: 2" in capsys.readouterr().out
    assert Manifest.read(root / "manifest.jsonl").entries == {}


def test_of_many_faults_the_first_are_shown(root, capsys):
    assert check(root, [{"id": number} for number in range(25)]) == 1
    assert "... and 5 more" in capsys.readouterr().out
