import pytest
import torch
from video_autoregressive.features import FrameFeatures
from video_autoregressive.teacher_cache import CachedTeacher


class Counting:
    """A teacher whose features are the means of 2 x 3 areas, and that counts its frames."""

    kind = "external"
    dim = 3

    def __init__(self, fingerprint="one"):
        self.name = fingerprint
        self.asked = []

    def encode(self, frames):
        self.asked.append(len(frames))
        pooled = torch.nn.functional.adaptive_avg_pool2d(frames, (2, 3)).flatten(2).transpose(1, 2)
        return FrameFeatures.uniform(pooled, (2, 3))

    def fingerprint(self):
        return self.name

    def cast(self, dtype):
        self.name = f"cast to {dtype}"


@pytest.fixture
def frames():
    return torch.randn(4, 3, 8, 12)


def test_a_frame_is_encoded_once(tmp_path, frames):
    teacher = Counting()
    expected = Counting().encode(frames)
    cached = CachedTeacher(teacher, tmp_path)
    for some in ([0, 1], [1, 2], [3, 3, 0], [3, 2, 1, 0]):
        features = cached.encode(frames[some])
        rows = torch.stack(expected.split())[some].flatten(0, 1)
        assert torch.equal(features.rows, rows)
        assert features.grids == ((2, 3),) * len(some)
    assert teacher.asked == [2, 1, 1]
    assert (cached.kind, cached.dim, cached.fingerprint()) == ("cache", 3, "one")


def test_another_process_finds_it(tmp_path, frames):
    expected = CachedTeacher(Counting(), tmp_path).encode(frames)
    later = Counting()
    assert torch.equal(CachedTeacher(later, tmp_path).encode(frames).rows, expected.rows)
    assert later.asked == []
    assert not list(tmp_path.rglob("*.partial"))


def test_two_that_write_the_same_frame_do_not_write_one_partial_file(tmp_path, frames, monkeypatch):
    """Also on two machines, whose processes may have the same number."""
    files = []
    save = torch.save

    def note(content, path):
        files.append(path)
        save(content, path)

    monkeypatch.setattr(torch, "save", note)
    for _ in range(2):
        CachedTeacher(Counting(), tmp_path).encode(frames[:1])
        for path in tmp_path.rglob("*.pt"):
            path.unlink()
    first, second = files
    assert first.parent == second.parent
    assert first != second


def test_another_teacher_starts_anew(tmp_path, frames):
    CachedTeacher(Counting(), tmp_path).encode(frames)
    other = Counting("two")
    CachedTeacher(other, tmp_path).encode(frames)
    assert other.asked == [4]


def test_a_cast_reaches_the_teacher_and_keeps_the_fingerprint(tmp_path):
    teacher = Counting()
    cached = CachedTeacher(teacher, tmp_path)
    cached.cast(torch.bfloat16)
    assert (teacher.name, cached.fingerprint()) == ("cast to torch.bfloat16", "one")


def test_frames_are_known_by_all_their_bits(tmp_path, frames):
    teacher = Counting()
    cached = CachedTeacher(teacher, tmp_path)
    cached.encode(frames)
    nudged = frames.clone()
    nudged[0, 0, 0, 0] += 1e-6
    cached.encode(nudged)
    cached.encode(frames.double()[:1])
    assert teacher.asked == [4, 1, 1]
