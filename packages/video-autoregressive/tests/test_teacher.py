import dataclasses
import functools

import pytest
import torch
from torch import nn
from video_autoregressive.encoding import encode_vit
from video_autoregressive.teacher import ExternalTeacher, SharedTeacher, SnapshotTeacher

DIM = 5


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, DIM, 4, stride=4)
        self.dropout = nn.Dropout(0.5)
        self.batches = []

    def forward(self, frames):
        self.batches.append(len(frames))
        return self.dropout(self.convolution(frames)).flatten(2).transpose(1, 2)


@pytest.fixture
def frames():
    return torch.randn(5, 3, 8, 12)


def frozen():
    return Tower().requires_grad_(False)


TEACHERS = {
    "shared": lambda tower, **settings: SharedTeacher(DIM, tower, **settings),
    "snapshot": lambda tower, **settings: SnapshotTeacher(tower, DIM, **settings),
    "external": lambda tower, **settings: ExternalTeacher(tower, DIM, **settings),
}


@pytest.mark.parametrize("kind", TEACHERS)
def test_features_have_no_gradient_and_no_dropout(kind, frames):
    tower = frozen()
    teacher = TEACHERS[kind](tower)
    features = teacher.encode(frames)
    assert teacher.kind == kind
    assert teacher.dim == features.dim == DIM
    assert features.grids == ((2, 3),) * 5
    assert not features.rows.requires_grad
    expected = tower.convolution(frames).flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.equal(features.rows, expected)


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_few_frames_at_once(kind, frames):
    tower = frozen()
    teacher = TEACHERS[kind](tower, chunk=2)
    whole = TEACHERS[kind](tower).encode(frames)
    tower.batches.clear()
    torch.testing.assert_close(teacher.encode(frames).rows, whole.rows)
    if kind != "snapshot":
        assert tower.batches == [2, 2, 1]


@pytest.mark.parametrize("kind", TEACHERS)
def test_frames_have_to_be_normalised(kind):
    with pytest.raises(ValueError, match=r"got torch.uint8, expected frames normalised"):
        TEACHERS[kind](frozen()).encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_an_external_teacher_prepares_its_frames():
    encoder = Tower()
    prepare = nn.AvgPool2d(2)
    teacher = ExternalTeacher(encoder, DIM, preprocess=lambda frames: prepare(frames.float() / 255))
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert teacher.encode(pixels).grids == ((2, 2),) * 2
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_shared_equals_snapshot_until_the_tower_moves(frames):
    tower = frozen()
    shared, snapshot = SharedTeacher(DIM, tower), SnapshotTeacher(tower, DIM)
    assert torch.equal(shared.encode(frames).rows, snapshot.encode(frames).rows)
    assert shared.fingerprint() == snapshot.fingerprint()
    before = snapshot.encode(frames).rows
    with torch.no_grad():
        tower.convolution.weight.mul_(2)
    assert torch.equal(snapshot.encode(frames).rows, before)
    assert not torch.equal(shared.encode(frames).rows, before)
    assert shared.fingerprint() != snapshot.fingerprint()


def test_a_live_tower_that_is_trained_is_no_teacher(frames):
    """Trap: tower and predictor would agree on a constant."""
    with pytest.raises(ValueError, match="the shared teacher's tower is trained"):
        SharedTeacher(DIM, Tower()).encode(frames)


def test_a_live_tower_keeps_its_mode(frames):
    tower = frozen().train()
    SharedTeacher(DIM, tower).encode(frames)
    assert tower.training
    assert tower.dropout.training


def test_without_a_tower_features_are_handed_over(frames):
    teacher = SharedTeacher(DIM)
    assert teacher.fingerprint() == "shared"
    with pytest.raises(ValueError, match="hand its features over"):
        teacher.encode(frames)


def test_the_fingerprint_names_how_the_weights_are_used():
    tower = frozen()
    one, same, other = (
        SnapshotTeacher(tower, DIM, encode=functools.partial(encode_vit, layer=layer)).fingerprint()
        for layer in (-1, -1, -2)
    )
    assert one == same != other
    assert one.endswith(":video_autoregressive.encoding.encode_vit(layer=-1)")
    prepared = ExternalTeacher(tower, DIM, preprocess=nn.Identity())
    assert ":torch.nn.modules.linear.Identity:" in prepared.fingerprint()


def test_the_fingerprint_names_a_method_with_its_object():
    tower = frozen()
    one, same, other = (
        SnapshotTeacher(tower, DIM, encode=_Shows(layer).encode).fingerprint() for layer in (-1, -1, -2)
    )
    assert one == same != other
    assert one.endswith("_Shows.encode(_Shows(layer=-1))")


@dataclasses.dataclass(frozen=True)
class _Shows:
    """An encoder with a setting of its own."""

    layer: int

    def encode(self, tower, frames):
        return encode_vit(tower, frames, layer=self.layer)


@pytest.mark.parametrize("kind", ["snapshot", "external"])
def test_the_weights_follow_the_frames(kind, frames):
    """Trap: a plain object is not moved with the model around it, nor is it given the model's dtype."""
    devices = []

    class Recorded(Tower):
        def to(self, device):
            devices.append(device)
            return self

    tower = Recorded().bfloat16()
    assert TEACHERS[kind](tower).encode(frames).rows.dtype == torch.bfloat16
    assert devices == [frames.device]


@pytest.mark.parametrize("kind", ["snapshot", "external"])
def test_a_cast_changes_the_weights_and_not_the_fingerprint(kind, frames):
    teacher = TEACHERS[kind](Tower())
    before, features = teacher.fingerprint(), teacher.encode(frames).rows
    for dtype in (torch.bfloat16, torch.bfloat16):
        teacher.cast(dtype)
        assert teacher.fingerprint() == before
    rows = teacher.encode(frames).rows
    assert rows.dtype == torch.bfloat16
    torch.testing.assert_close(rows.float(), features, rtol=0.05, atol=0.05)


def test_a_cast_leaves_the_models_own_tower_alone(frames):
    tower = frozen()
    SharedTeacher(DIM, tower).cast(torch.bfloat16)
    assert tower.convolution.weight.dtype == torch.float32
