"""Clips as files: what comes back, at which times, and what a cut presents."""

import av
import numpy as np
import pytest
from lmms import clip_files
from lmms.clip_files import write_clip, write_cut

TIMES = np.arange(12) / 8


def numbered(count):
    """Frames that say their number: of eight stripes the bright ones are its bits."""
    stripes = np.arange(count)[:, None] >> np.arange(8) & 1
    columns = np.repeat(stripes * 180 + 30, 8, axis=1).astype(np.uint8)
    return np.broadcast_to(columns[:, None, :, None], (count, 64, 64, 3)).copy()


def read(path):
    """Numbers and times of the frames that a file presents, and how many it says to hold."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.to_ndarray(format="rgb24"), float(frame.time)) for frame in container.decode(stream)]
        held = stream.frames
    bits = [(pixels.mean((0, 2)).reshape(8, 8).mean(1) > 120) for pixels, _ in frames]
    return [int((row << np.arange(8)).sum()) for row in bits], [time for _, time in frames], held


@pytest.mark.parametrize("encoder", list(clip_files.ENCODERS))
def test_a_clip_gives_back_its_frames_at_their_times(tmp_path, monkeypatch, encoder):
    monkeypatch.setattr(clip_files, "ENCODERS", {encoder: clip_files.ENCODERS[encoder]})
    frames = numbered(12)
    write_clip(tmp_path / "clip.mp4", frames, TIMES)
    numbers, times, held = read(tmp_path / "clip.mp4")
    assert numbers == list(range(12))
    assert times == pytest.approx(TIMES.tolist(), abs=1e-4)
    assert held == 12
    with av.open(str(tmp_path / "clip.mp4")) as container:
        pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.abs(pixels.astype(int) - frames).mean() < 8


def test_a_clip_of_variable_rate_keeps_its_times(tmp_path):
    times = np.array([0, 1, 2, 3, 7, 9, 16, 17]) / 16
    write_clip(tmp_path / "clip.mp4", numbered(8), times)
    numbers, found, _ = read(tmp_path / "clip.mp4")
    assert numbers == list(range(8))
    assert found == pytest.approx(times.tolist(), abs=1e-4)


@pytest.mark.parametrize("encoder", list(clip_files.ENCODERS))
def test_a_cut_presents_what_follows_its_beginning_and_holds_more(tmp_path, monkeypatch, encoder):
    monkeypatch.setattr(clip_files, "ENCODERS", {encoder: clip_files.ENCODERS[encoder]})
    write_cut(tmp_path / "cut.mp4", numbered(12), TIMES, begin_s=5 / 8)
    numbers, times, held = read(tmp_path / "cut.mp4")
    assert numbers == list(range(5, 12))
    assert times == pytest.approx(TIMES[:7].tolist(), abs=1e-3)
    assert held == 12


def test_a_cut_does_not_begin_with_a_key_frame(tmp_path):
    write_cut(tmp_path / "cut.mp4", numbered(12), TIMES, begin_s=5 / 8)
    with av.open(str(tmp_path / "cut.mp4")) as container:
        keys = [float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.is_keyframe]
    assert keys == [pytest.approx(-5 / 8, abs=1e-3)]
