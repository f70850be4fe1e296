"""Errors by frame: those of the model's own output, by position in the clip, and read back."""

import math

import pytest
import torch
from lmms.frame_errors import FrameErrors, errors_of, mean_errors


def test_errors_are_the_models_own_and_the_first_frame_has_none(each):
    model, sample = each.model(), each.sample((5,), answer=None)
    with torch.no_grad():
        output = model(**each.batch([sample])).autoregressive
    predicted, copied = errors_of(model, each.family(), sample)
    assert len(predicted) == len(sample.layout)
    assert predicted[0] is None
    assert copied[0] is None
    assert predicted[1:] == output.frame_errors.tolist()[1:]
    assert copied[1:] == output.copy_errors.tolist()[1:]
    assert all(math.isfinite(value) for value in predicted[1:])


def test_means_are_by_the_position_in_the_clip(toy):
    model, family = toy.model(), toy.family()
    samples = [toy.sample((4,), answer=None), toy.sample((2, 3), answer=None, seed=5)]
    found = mean_errors(model, family, samples)
    assert found.positions == (1, 2, 3)
    assert found.counts == (3, 2, 1)
    first, second = (errors_of(model, family, sample) for sample in samples)
    for own, means in zip((0, 1), (found.predicted, found.copied), strict=True):
        assert means[0] == pytest.approx((first[own][1] + second[own][1] + second[own][3]) / 3)
        assert means[2] == pytest.approx(first[own][3])


def test_they_are_read_back(tmp_path):
    assert FrameErrors.read(tmp_path) is None
    errors = FrameErrors((1, 2), (0.5, 0.25), (1.0, 0.5), (3, 2))
    errors.write(tmp_path)
    assert FrameErrors.read(tmp_path) == errors


def test_a_model_without_a_teacher_is_refused(toy):
    model = toy.model(enable_autoregressive=False)
    with pytest.raises(ValueError, match="no reconstruction module"):
        errors_of(model, toy.family(), toy.sample())
