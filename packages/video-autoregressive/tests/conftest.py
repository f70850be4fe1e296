import pytest
import torch
from video_autoregressive.layout import FrameLayout, FrameSpan


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def clip_layout():
    """The layout of one video: frames of the given grids one after another, `gap` seconds apart."""

    def build(grids, *, start=0, between=0, gap=1.0, times=None, valid=None, video=0, **extras):
        spans = []
        for index, (height, width) in enumerate(grids):
            count = height * (width + extras.get("row_newline", False)) + extras.get("tail_specials", 0)
            spans.append(
                FrameSpan(
                    index=index,
                    time_s=index * gap if times is None else times[index],
                    token_start=start,
                    token_count=count,
                    grid=(height, width),
                    valid=True if valid is None else valid[index],
                    video=video,
                    **extras,
                )
            )
            start += count + between
        return FrameLayout(tuple(spans))

    return build
