import pytest
import torch
from video_autoregressive.config import VideoTokenConfig
from video_autoregressive.layout import FrameBatch, FrameLayout
from video_autoregressive.pooling import spatial_pool
from video_autoregressive.token_layout import VideoTokenLayout

NEWLINES = ["grid", "frame", "one_token", "no_token"]
LAYOUTS = [VideoTokenConfig(newline=newline) for newline in NEWLINES] + [
    VideoTokenConfig(newline=newline, faster_stride=stride) for newline in ("grid", "no_token") for stride in (1, 3, 10)
]
NEWLINE, FASTER = -1.0, -2.0


def published_order(features, grid, config, newline, faster):
    """The layouts frame by frame and row by row, as LLaVA-NeXT describes them."""
    rows = []
    for index, frame in enumerate(features):
        stride = config.pool_stride
        if config.faster_stride and index % config.faster_stride:
            stride *= 2
        pooled = spatial_pool(frame[None], grid, stride, config.pool_mode)[0]
        width = -(-grid[1] // stride) if config.pool_mode == "bilinear" else grid[1] // stride
        for row in pooled.split(width):
            rows.append(row)
            if config.newline == "grid":
                rows.append(newline[None])
        if config.newline == "frame":
            rows.append(newline[None])
        if config.faster_stride:
            rows.append(faster[None])
    if config.newline == "one_token":
        rows.append(newline[None])
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("settings", "frames", "tokens"),
    [
        ({"newline": "grid"}, 32, 6_720),
        ({"newline": "frame"}, 32, 32 * 197),
        ({"newline": "one_token"}, 32, 6_273),
        ({"newline": "no_token"}, 32, 32 * 196),
        ({"newline": "grid", "faster_stride": 10}, 32, 2_440),
        ({"newline": "grid", "faster_stride": 3}, 32, 3_518),
        ({"newline": "grid"}, 64, 13_440),
        ({"newline": "one_token"}, 64, 12_545),
        ({"newline": "grid", "faster_stride": 10}, 64, 4_726),
        ({"newline": "grid", "faster_stride": 3}, 64, 7_036),
        ({"newline": "no_token", "faster_stride": 10}, 32, 4 * 197 + 28 * 50),
        ({"newline": "frame", "pool_mode": "average"}, 32, 32 * 170),
        ({}, 1, 197),
        ({}, 0, 0),
        ({"newline": "grid", "faster_stride": 10}, 1, 211),
        ({"newline": "grid", "faster_stride": 10}, 0, 0),
    ],
)
def test_published_token_counts_of_384_pixel_frames(settings, frames, tokens):
    assert VideoTokenLayout(VideoTokenConfig(**settings)).num_tokens(frames, (27, 27)) == tokens


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
@pytest.mark.parametrize(("frames", "grid"), [(0, (5, 7)), (1, (5, 7)), (4, (5, 7)), (7, (4, 4)), (11, (9, 6))])
def test_processor_and_model_agree(config, mode, frames, grid):
    """Counts, spans and arranged features tell the same story: what stands at a span's patches is its pooled frame."""
    config = VideoTokenConfig(config.newline, config.pool_stride, mode, config.faster_stride)
    tokens = VideoTokenLayout(config)
    features = torch.randn(frames, grid[0] * grid[1], 3)
    newline, faster = torch.full((3,), NEWLINE), torch.full((3,), FASTER)
    arranged = tokens.arrange(features, grid, newline, faster)
    assert len(arranged) == tokens.num_tokens(frames, grid)
    if frames:
        assert torch.equal(arranged, published_order(features, grid, config, newline, faster))
    layout = tokens.layout([0.5 * index for index in range(frames)], grid)
    extra = torch.ones(len(arranged), dtype=torch.bool)
    for index, span in enumerate(layout.spans):
        stride = 2 * (1 + (span.kind == "fast"))
        assert torch.equal(arranged[span.patch_indices()], spatial_pool(features[[index]], grid, stride, mode)[0])
        extra[span.patch_indices()] = False
    assert set(arranged[extra].unique().tolist()) <= {NEWLINE, FASTER}
    assert len(arranged) - layout.token_end == (config.newline == "one_token" and frames > 0)


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_the_frames_are_found_again_among_placeholders(config):
    tokens = VideoTokenLayout(config)
    counts = [tokens.num_tokens(frames, (8, 8)) for frames in (4, 2)]
    videos = [tokens.spans([float(index) for index in range(frames)], (8, 8)) for frames in (4, 2)]
    ids = [1, *[9] * counts[0], 1, 1, *[9] * counts[1]]
    layout = FrameLayout.from_placeholder_ids(ids, 9, videos, counts)
    first = tokens.layout([0.0, 1.0, 2.0, 3.0], (8, 8), start=1)
    second = tokens.layout([0.0, 1.0], (8, 8), start=3 + counts[0])
    assert layout == first.concatenated(second)


def test_slow_and_fast_frames():
    spans = VideoTokenLayout(VideoTokenConfig("grid", faster_stride=2)).spans(
        [0.0, 1.0, 2.0], (8, 8), start=5, video=3, sources=[4, 8, 12]
    )
    assert [span.kind for span in spans] == ["slow", "fast", "slow"]
    assert [span.grid for span in spans] == [(4, 4), (2, 2), (4, 4)]
    assert [span.token_start for span in spans] == [5, 26, 33]
    assert [span.source_frame for span in spans] == [4, 8, 12]
    assert [span.index for span in spans] == [0, 1, 2]
    assert {span.video for span in spans} == {3}


def test_a_grid_too_small_for_fast_frames_is_enough_for_slow_ones():
    tokens = VideoTokenLayout(VideoTokenConfig("no_token", pool_mode="average", faster_stride=5))
    assert tokens.num_tokens(1, (3, 3)) == 2
    assert tokens.arrange(torch.randn(1, 9, 2), (3, 3), torch.zeros(2), torch.zeros(2)).shape == (2, 2)
    with pytest.raises(ValueError, match="no window of stride 4 fits"):
        tokens.num_tokens(2, (3, 3))


def test_the_faster_token_is_needed():
    tokens = VideoTokenLayout(VideoTokenConfig("grid", faster_stride=2))
    with pytest.raises(ValueError, match="faster: the learned token is needed with faster_stride 2"):
        tokens.arrange(torch.zeros(2, 16, 3), (4, 4), torch.zeros(3))


def test_class_tokens_are_refused():
    with pytest.raises(ValueError, match="got 17 patches per frame, expected 16"):
        VideoTokenLayout(VideoTokenConfig()).arrange(torch.zeros(2, 17, 3), (4, 4), torch.zeros(3))


def test_every_time_has_its_source():
    with pytest.raises(ValueError, match="zip"):
        VideoTokenLayout(VideoTokenConfig()).spans([0.0, 1.0], (4, 4), sources=[3])


@pytest.mark.parametrize("config", LAYOUTS, ids=str)
def test_gradients_reach_features_and_the_learned_tokens_that_are_used(config):
    features = torch.randn(4, 64, 2, requires_grad=True)
    newline, faster = (torch.zeros(2, requires_grad=True) for _ in range(2))
    tokens = VideoTokenLayout(config).arrange(features, (8, 8), newline, faster)
    tokens.sum().backward()
    assert (features.grad.abs().sum((1, 2)) > 0).all()
    uses = {"grid": 4 * 4, "frame": 4, "one_token": 1, "no_token": 0}[config.newline]
    if config.faster_stride > 1 and config.newline == "grid":
        slow = -(-4 // config.faster_stride)
        uses = slow * 4 + (4 - slow) * 2
    assert (newline.grad is None and uses == 0) or newline.grad.tolist() == [uses] * 2
    assert (faster.grad is None and not config.faster_stride) or faster.grad.tolist() == [4, 4]


def test_states_of_a_batch_are_read_at_the_patches():
    """From pooled features to the positions that the loss reads: newline and faster tokens never appear."""
    tokens = VideoTokenLayout(VideoTokenConfig("grid", faster_stride=2))
    features = torch.randn(3, 64, 4)
    arranged = tokens.arrange(features, (8, 8), torch.full((4,), 7.0), torch.full((4,), 8.0))
    hidden = torch.full((2, 60, 4), 9.0)
    hidden[1, 6 : 6 + len(arranged)] = arranged
    layouts = [FrameLayout.empty(), tokens.layout([0.0, 1.0, 2.0], (8, 8), start=4)]
    states = FrameBatch.collate(layouts, 60, offsets=[0, 2]).gather(hidden)
    assert torch.equal(states[0], spatial_pool(features[:1], (8, 8), 2, "bilinear")[0])
    assert torch.equal(states[1, :4], spatial_pool(features[1:2], (8, 8), 4, "bilinear")[0])
    assert not states[1, 4:].any()
