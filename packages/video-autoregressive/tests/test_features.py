import pytest
import torch
from video_autoregressive.features import FrameFeatures


def test_frames_of_one_grid():
    features = torch.randn(3, 6, 4)
    packed = FrameFeatures.uniform(features, (2, 3))
    assert packed.num_frames == 3
    assert packed.dim == 4
    assert packed.grids == ((2, 3),) * 3
    assert torch.equal(torch.stack(packed.split()), features)


def test_frames_of_several_grids():
    packed = FrameFeatures.concatenated(
        [FrameFeatures.uniform(torch.zeros(1, 6, 4), (2, 3)), FrameFeatures.uniform(torch.ones(2, 1, 4), (1, 1))]
    )
    assert packed.grids == ((2, 3), (1, 1), (1, 1))
    assert [len(rows) for rows in packed.split()] == [6, 1, 1]
    assert packed.rows[:6].sum() == 0
    assert packed.rows[6:].sum() == 8


def test_no_frames():
    assert FrameFeatures(torch.zeros(0, 4), ()).split() == []


def test_rows_that_are_not_those_of_the_grids_are_refused():
    with pytest.raises(ValueError, match="got 5 rows of features for 1 frames whose grids have 6 patches"):
        FrameFeatures(torch.zeros(5, 4), ((2, 3),))
    with pytest.raises(ValueError, match="rows of features"):
        FrameFeatures.uniform(torch.zeros(2, 7, 4), (2, 3))
