import pytest
import torch
import torch.nn.functional as F
from video_autoregressive.frames import check_indices, chosen_indices, resize_frames


def test_resizing_is_antialiased_bicubic():
    frames = torch.randint(0, 256, (2, 3, 40, 30), dtype=torch.uint8)
    resized = resize_frames(frames, (13, 20))
    expected = F.interpolate(frames.double(), size=(13, 20), mode="bicubic", antialias=True)
    assert resized.dtype == torch.uint8
    # Rounding, and overshoot that is cut off, once per direction.
    assert (resized - expected.clamp(0, 255)).abs().mean() < 1


def test_frames_of_the_right_size_are_returned_as_they_are():
    frames = torch.zeros(2, 3, 4, 6, dtype=torch.uint8)
    assert resize_frames(frames, (4, 6)) is frames


def test_no_frames_are_resized_to_none():
    assert resize_frames(torch.zeros(0, 3, 4, 6, dtype=torch.uint8), (2, 2)).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("indices", [[], [0], [0, 3, 9]])
def test_increasing_indices_in_range_pass(indices):
    check_indices(torch.tensor(indices, dtype=torch.int64), 10, "here")


@pytest.mark.parametrize("indices", [[-1, 2], [3, 10]])
def test_indices_out_of_range_are_named(indices):
    with pytest.raises(
        IndexError, match=rf"here: got frame indices from {indices[0]} to {indices[1]}, expected 0 to 9"
    ):
        check_indices(torch.tensor(indices), 10, "here")


@pytest.mark.parametrize("indices", [[2, 1], [2, 2]])
def test_indices_out_of_order_are_refused(indices):
    with pytest.raises(ValueError, match=r"expected strictly increasing"):
        check_indices(torch.tensor(indices), 10, "here")


def test_indices_are_given_or_chosen_by_times_and_checked_alike():
    times = torch.arange(4, dtype=torch.float64) / 2
    assert chosen_indices(torch.tensor([1, 3]), times, "here").tolist() == [1, 3]
    assert chosen_indices(lambda all_times: (all_times >= 1).nonzero().flatten(), times, "here").tolist() == [2, 3]
    for wanted in (torch.tensor([2, 4]), lambda all_times: torch.tensor([2, len(all_times)])):
        with pytest.raises(IndexError, match="here: got frame indices from 2 to 4, expected 0 to 3"):
            chosen_indices(wanted, times, "here")
