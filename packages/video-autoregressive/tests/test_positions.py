import math

import torch
from video_autoregressive.positions import NUM_FEATURES, PositionEncoding, sine_features


def test_features_by_hand():
    values = torch.tensor([0.0, 0.5])
    # Periods 4, 2 and 1: at 0.5 an eighth, a quarter and half of a wave.
    features = sine_features(values, 4.0, 1.0, 3)
    half = math.sqrt(0.5)
    expected = torch.tensor([[0, 0, 0, 1, 1, 1], [half, 1, 0, half, 0, -1]])
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)


def test_every_part_of_a_position_is_seen():
    encode = PositionEncoding(16)
    place = torch.tensor([[0.25, 0.5, 3.0, 1.0]])
    for part in range(4):
        moved = place.clone()
        moved[0, part] += 0.1
        assert not torch.allclose(encode(place), encode(moved))


def test_features_are_float32_whatever_the_weights_are():
    """An hour in bfloat16 would be known to sixteen seconds."""
    encode = PositionEncoding(8).bfloat16()
    places = torch.tensor([[0.5, 0.5, 3600.0, 1.0], [0.5, 0.5, 3600.5, 1.0]])
    one, other = encode(places)
    assert one.dtype == torch.bfloat16
    assert not torch.equal(one, other)


def test_its_width():
    assert PositionEncoding(8).project.in_features == NUM_FEATURES == 96
