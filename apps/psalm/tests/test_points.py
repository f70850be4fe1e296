"""Points on masks: where they are read and which are chosen."""

import torch
from psalm.config import CriterionConfig
from psalm.points import SeededPoints, random_points, read_points, uncertain_points


def test_points_are_read_between_cell_centres_and_zero_outside():
    maps = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.5, 0.5], [0.0, 0.25]]])
    # The last point is on the left edge, half a cell from the first centre: half the cell, half the zero outside.
    assert read_points(maps, points).tolist() == [[0.0, 4.0, 8.0, 6.0, 0.0]]
    assert read_points(maps, torch.tensor([[[1.0, 0.25]]])).tolist() == [[2.0]]


def test_random_points_lie_in_the_map():
    points = random_points([0, 1, 2], 1000, torch.device("cpu"))
    assert points.shape == (3, 1000, 2)
    assert 0 <= points.min() < 0.01
    assert 0.99 < points.max() < 1


def test_most_points_are_the_least_certain_ones():
    """Three quarters of the points are the most uncertain of three times as many."""
    logits = (torch.arange(16.0) - 8).expand(1, 16, 16)
    drawn = []

    def draw(samples, num_points, device):
        drawn.append(num_points)
        return random_points(samples, num_points, device)

    torch.manual_seed(0)
    points = uncertain_points(logits, [0], CriterionConfig(num_points=40), draw)
    assert points.shape == (1, 40, 2)
    assert drawn == [120, 10]
    certainty = read_points(logits, points).abs()[0]
    # 30 of 120 uniform points: those within a quarter of the range |logit| <= 8.
    assert certainty[:30].max() < 3
    assert certainty[30:].max() > 4


def test_few_points_and_no_points_by_importance():
    logits = torch.randn(2, 4, 4)
    assert uncertain_points(logits, [0, 1], CriterionConfig(num_points=1)).shape == (2, 1, 2)
    assert uncertain_points(logits, [0, 1], CriterionConfig(num_points=8, importance_ratio=0.0)).shape == (2, 8, 2)
    assert uncertain_points(logits, [0, 1], CriterionConfig(num_points=8, importance_ratio=1.0)).shape == (2, 8, 2)


def test_a_sample_draws_the_same_points_whatever_stands_beside_it():
    device = torch.device("cpu")
    both, alone = SeededPoints([3, 5], device), SeededPoints([5], device)
    for num_points in (4, 7):
        drawn = both([0, 0, 1], num_points, device)
        assert torch.equal(drawn[2:], alone([0], num_points, device))
        assert len(drawn.flatten(0, 1).unique(dim=0)) == 3 * num_points
    assert torch.equal(both([0, 1, 0], 3, device)[1:2], alone([0], 3, device))
    assert both([], 4, device).shape == (0, 4, 2)
