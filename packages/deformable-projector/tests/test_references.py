import math

import pytest
import torch
from deformable_projector.references import cosine_logits, grid_centres, mean_places, peak_places, sine_embedding


def test_centres_run_row_by_row_as_x_and_y():
    expected = [[1 / 6, 0.25], [0.5, 0.25], [5 / 6, 0.25], [1 / 6, 0.75], [0.5, 0.75], [5 / 6, 0.75]]
    torch.testing.assert_close(grid_centres(2, 3), torch.tensor(expected))


def test_sines_of_a_point():
    embedding = sine_embedding(torch.tensor([0.25, 0.5]), 8)
    slow = 2 * math.pi / 100  # 10000 ** (1 / 2)
    expected = [1.0, math.sin(slow / 4), 0.0, math.cos(slow / 4), 0.0, math.sin(slow / 2), -1.0, math.cos(slow / 2)]
    torch.testing.assert_close(embedding, torch.tensor(expected), atol=1e-6, rtol=0)


def test_cosines_ignore_length_and_divide_by_the_temperature():
    queries, keys = torch.tensor([[[3.0, 0.0]]]), torch.tensor([[[5.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]])
    torch.testing.assert_close(cosine_logits(queries, keys, 0.5), torch.tensor([[[2.0, 0.0, -2.0]]]))


def test_the_mean_place_lies_between_equal_cells():
    logits = torch.full((1, 1, 2, 4), -1e9)
    logits[0, 0, 0, 1] = logits[0, 0, 1, 3] = 5.0
    torch.testing.assert_close(mean_places(logits, None), torch.tensor([[[0.625, 0.5]]]))


def test_padding_is_not_looked_at():
    logits = torch.zeros(1, 1, 1, 4)
    logits[0, 0, 0, 3] = 50.0
    valid = torch.tensor([[[True, True, False, False]]])
    torch.testing.assert_close(mean_places(logits, valid), torch.tensor([[[0.25, 0.5]]]))
    points, weights = peak_places(logits, valid, 4)
    assert bool((points[weights > 0][:, 0] < 0.5).all())


@pytest.mark.parametrize("find", [mean_places, lambda logits, valid: peak_places(logits, valid, 3)[1]])
def test_an_image_of_padding_alone_gives_no_nan(find):
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    result = find(logits, torch.zeros(1, 2, 2, dtype=torch.bool))
    result.square().sum().backward()
    assert result.isfinite().all()
    assert logits.grad.isfinite().all()


def test_peaks_are_local_maxima_by_height():
    logits = torch.zeros(1, 1, 3, 6)
    logits[0, 0, 0, 0], logits[0, 0, 0, 1], logits[0, 0, 2, 4] = 3.0, 2.9, 1.0  # 2.9 is the neighbour of 3
    points, weights = peak_places(logits, None, 2)
    torch.testing.assert_close(points[0, 0], torch.tensor([[1 / 12, 1 / 6], [0.75, 5 / 6]]))
    torch.testing.assert_close(weights[0, 0], torch.tensor([3.0, 1.0]).softmax(0))


def test_fewer_peaks_than_asked_for_weigh_nothing():
    logits = -(torch.arange(9.0).view(1, 1, 3, 3))
    points, weights = peak_places(logits, None, 20)
    assert points.shape == (1, 1, 9, 2)
    assert torch.equal(weights[0, 0], torch.tensor([1.0] + [0.0] * 8))


def test_the_gradient_reaches_the_similarity():
    for find in (lambda x: mean_places(x, None), lambda x: peak_places(x, None, 4)[1]):
        logits = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        find(logits)[..., 0].sum().backward()
        assert logits.grad.abs().sum() > 0
    torch.autograd.gradcheck(lambda x: mean_places(x, None), logits)
