import dataclasses
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch, FrameLayout, FrameSpan

PAD, VIDEO, TEXT = 0, 7, 3


def span(start=0, grid=(2, 3), **changes):
    values = {"index": 0, "time_s": 0.0, "token_start": start, "token_count": grid[0] * grid[1], "grid": grid}
    return FrameSpan(**(values | changes))


# FrameSpan


def test_patches_follow_each_other():
    assert span(5).patch_indices().tolist() == [5, 6, 7, 8, 9, 10]


def test_newlines_and_trailing_tokens_are_no_patches():
    frame = span(5, token_count=10, row_newline=True, tail_specials=2)
    assert frame.patch_indices().tolist() == [5, 6, 7, 9, 10, 11]
    assert frame.token_end == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_count": 7}, "token_count: got 7, expected 6"),
        ({"row_newline": True}, "token_count: got 6, expected 8"),
        ({"tail_specials": 1}, "token_count: got 6, expected 7"),
        ({"grid": (0, 3), "token_count": 0}, "at least 1 x 1"),
        ({"token_start": -1}, "no negative position"),
        ({"tail_specials": -1, "token_count": 5}, "no negative position"),
    ],
)
def test_a_span_must_agree_with_itself(changes, message):
    with pytest.raises(ValueError, match=message):
        span(**changes)


# FrameLayout


def test_the_empty_layout():
    layout = FrameLayout.empty()
    assert len(layout) == 0
    assert layout.token_end == 0
    assert layout == layout.shifted(3) == layout.truncated(0) == layout.concatenated(layout)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (span(5, index=1, time_s=1.0), "overlap or are out of order"),
        (span(6, index=1, time_s=-1.0), "ordered by time"),
        (span(6, video=-1), "must follow each other"),
    ],
)
def test_frames_are_disjoint_and_in_order(second, message):
    with pytest.raises(ValueError, match=message):
        FrameLayout((span(0), second))


def test_another_video_starts_its_time_anew():
    layout = FrameLayout((span(0, time_s=9.0), span(6, video=1)))
    assert len(layout) == 2


def test_shifted_and_concatenated_keep_videos_apart(clip_layout):
    first, second = clip_layout([(2, 3)] * 2), clip_layout([(1, 2)], start=20)
    both = first.shifted(4).concatenated(second, second.shifted(2))
    assert [frame.token_start for frame in both.spans] == [4, 10, 20, 22]
    assert [frame.video for frame in both.spans] == [0, 0, 1, 2]


def test_truncation_drops_whole_frames(clip_layout):
    layout = clip_layout([(2, 3)] * 3, start=4, row_newline=True)
    assert [layout.truncated(length).token_end for length in (3, 11, 12, 27, 28)] == [0, 0, 12, 20, 28]


def test_from_placeholder_ids_finds_the_frames(clip_layout):
    clip = clip_layout([(1, 2), (2, 2)]).spans
    ids = [TEXT, *[VIDEO] * 7, TEXT, *[VIDEO] * 7, TEXT]  # each video ends with one token that belongs to no frame
    layout = FrameLayout.from_placeholder_ids(torch.tensor(ids), VIDEO, [clip, clip], [7, 7])
    assert [frame.token_start for frame in layout.spans] == [1, 3, 9, 11]
    assert [frame.video for frame in layout.spans] == [0, 0, 1, 1]
    assert FrameLayout.from_placeholder_ids(ids, VIDEO, [clip, clip], [7, 7]) == layout


def test_text_may_stand_between_frames(clip_layout):
    ids = [TEXT, VIDEO, VIDEO, TEXT, TEXT, VIDEO, VIDEO, VIDEO, VIDEO]
    layout = FrameLayout.from_placeholder_ids(ids, VIDEO, [clip_layout([(1, 2), (2, 2)]).spans])
    assert [frame.token_start for frame in layout.spans] == [1, 5]


def test_no_video_needs_no_placeholder():
    assert FrameLayout.from_placeholder_ids([TEXT], VIDEO, []) == FrameLayout.empty()
    assert FrameLayout.from_placeholder_ids(torch.tensor([], dtype=torch.int64), VIDEO, [[]]) == FrameLayout.empty()


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([VIDEO] * 5, None, r"token 7: found 5 placeholders, expected 6 for 1 videos of \[6\] tokens"),
        ([VIDEO] * 7, None, "found 7 placeholders, expected 6"),
        ([VIDEO] * 5, [5], "video 0: has 5 placeholders, which end before FrameSpan"),
        ([VIDEO] * 3 + [TEXT] + [VIDEO] * 3, None, "other tokens stand within FrameSpan.*at positions 2-6"),
    ],
)
def test_placeholders_must_be_those_of_the_frames(clip_layout, ids, counts, message):
    with pytest.raises(ValueError, match=message):
        FrameLayout.from_placeholder_ids(ids, VIDEO, [clip_layout([(1, 2), (2, 2)]).spans], counts)


def test_qwen_steps_merge_frames_and_patches():
    layout = FrameLayout.qwen_vl((3, 4, 6), [0.0, 0.5, 1.0, 1.5, 2.0], start=2)
    assert [frame.token_start for frame in layout.spans] == [2, 8, 14]
    assert [frame.grid for frame in layout.spans] == [(2, 3)] * 3
    assert [frame.time_s for frame in layout.spans] == [0.25, 1.25, 2.0]  # the last frame counts twice
    assert [frame.source_frame for frame in layout.spans] == [0, 2, 4]


@pytest.mark.parametrize(
    ("grid", "times", "message"),
    [
        ((1, 3, 4), [0.0, 1.0], "3 x 4 patches, which do not divide into squares of 2"),
        ((2, 4, 4), [0.0, 1.0], "got 2 frames, which do not make 2 steps of 2"),
        ((1, 4, 4), [0.0, 1.0, 2.0], "got 3 frames, which do not make 1 steps of 2"),
    ],
)
def test_qwen_grids_that_cannot_be(grid, times, message):
    with pytest.raises(ValueError, match=message):
        FrameLayout.qwen_vl(grid, times)


# FrameBatch


def test_positions_are_those_of_every_frames_patches(clip_layout):
    layouts = [
        clip_layout([(2, 3), (1, 2)], start=3, row_newline=True, tail_specials=1, between=2),
        FrameLayout.empty(),
        clip_layout([(2, 2)], start=1),
    ]
    offsets = [0, 0, 10]
    batch = FrameBatch.collate(layouts, 30, offsets)
    frames = [(row, frame) for row, layout in enumerate(layouts) for frame in layout.spans]
    assert batch.num_frames == 3
    assert batch.num_patches.tolist() == [6, 2, 4]
    for tokens, (row, frame) in zip(batch.tokens, frames, strict=True):
        expected = row * 30 + offsets[row] + frame.patch_indices()
        assert tokens[tokens >= 0].tolist() == expected.tolist()
        assert (tokens[len(expected) :] == -1).all()
    assert batch.sample.tolist() == [0, 0, 2]
    assert batch.video.tolist() == [0, 0, 1]
    assert batch.times.tolist() == [0, 1, 0]
    assert batch.grids.tolist() == [[2, 3], [1, 2], [2, 2]]


def test_packed_samples_share_a_row(clip_layout):
    layout = clip_layout([(1, 2)])
    batch = FrameBatch.collate([layout] * 3, 10, offsets=[0, 4, 3], rows=[0, 0, 1])
    assert batch.tokens.tolist() == [[0, 1], [4, 5], [13, 14]]
    assert batch.sample.tolist() == batch.video.tolist() == [0, 1, 2]


def test_videos_are_numbered_over_the_batch(clip_layout):
    two = clip_layout([(1, 1)] * 2).concatenated(clip_layout([(1, 1)], start=5))
    batch = FrameBatch.collate([two, two], 9)
    assert batch.video.tolist() == [0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize("layouts", [[], [FrameLayout.empty()] * 2])
def test_a_batch_without_frames(layouts):
    batch = FrameBatch.collate(layouts, 5)
    assert batch.num_frames == 0
    assert batch.tokens.shape == (0, 0)
    assert batch.gather(torch.randn(2, 5, 4)).shape == (0, 0, 4)
    assert batch.history(3).shape == (0, 3)
    assert batch.num_targets(AutoregressiveConfig(gap_tolerance=0.1, max_target_frames=2)) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"offsets": [5, 4]}, "sample 0: its frames end at token 6, which with offset 5 does not fit a row of 10"),
        ({"offsets": [4, -1]}, "sample 1"),
        ({"offsets": [0]}, "got 2 layouts, 1 offsets and 2 rows"),
        ({"rows": [0, 0, 1]}, "2 offsets and 3 rows"),
    ],
)
def test_frames_must_fit_their_rows(clip_layout, arguments, message):
    with pytest.raises(ValueError, match=message):
        FrameBatch.collate([clip_layout([(2, 3)])] * 2, 10, **arguments)


def test_gathering_what_was_scattered_is_the_identity(clip_layout):
    batch = FrameBatch.collate([clip_layout([(2, 3), (1, 2)], row_newline=True), clip_layout([(2, 2)], start=4)], 12)
    states = torch.randn(3, 6, 5).masked_fill(~batch.token_mask[:, :, None], 0)
    hidden = torch.full((24, 5), torch.nan)
    hidden[batch.tokens[batch.token_mask]] = states[batch.token_mask]
    assert torch.equal(batch.gather(hidden.view(2, 12, 5).nan_to_num()), states)


def test_gather_reaches_patches_and_nothing_else(clip_layout):
    batch = FrameBatch.collate([clip_layout([(2, 3), (1, 2)], start=1, row_newline=True, tail_specials=1)], 14)
    hidden = torch.zeros(1, 14, 2, requires_grad=True)
    batch.gather(hidden).sum().backward()
    reached = hidden.grad[0, :, 0].nonzero().flatten().tolist()
    assert reached == [1, 2, 3, 5, 6, 7, 10, 11]
    assert set(hidden.grad.unique().tolist()) == {0, 1}


def test_gather_refuses_other_rows(clip_layout):
    batch = FrameBatch.collate([clip_layout([(1, 2)])], 10)
    with pytest.raises(ValueError, match="got rows of 9 tokens, expected 10"):
        batch.gather(torch.zeros(1, 9, 2))


def test_history_stays_within_the_video_and_the_window(clip_layout):
    layout = clip_layout([(1, 1)] * 3).concatenated(clip_layout([(1, 1)] * 2, start=5))
    history = FrameBatch.collate([layout], 9).history(3)
    assert history.tolist() == [[-1, -1, 0], [-1, 0, 1], [0, 1, 2], [-1, -1, 3], [-1, 3, 4]]


def test_history_leaves_out_invalid_frames_but_never_the_frame_itself(clip_layout):
    layout = clip_layout([(1, 1)] * 3, valid=[True, False, True])
    assert FrameBatch.collate([layout], 9).history(2).tolist() == [[-1, 0], [0, 1], [-1, 2]]


@pytest.mark.parametrize(
    ("horizon", "source", "target"),
    [(0, [0, 1, 2, 3], [0, 1, 2, 3]), (1, [0, 1], [1, 2]), (2, [0], [2]), (3, [], []), (9, [], [])],
)
def test_pairs_are_within_one_video(clip_layout, horizon, source, target):
    batch = FrameBatch.collate([clip_layout([(1, 1)] * 3), clip_layout([(1, 1)])], 9)
    assert [frames.tolist() for frames in batch.pairs(horizon)] == [source, target]


def test_pairs_need_two_valid_frames(clip_layout):
    batch = FrameBatch.collate([clip_layout([(1, 1)] * 5, valid=[True, True, False, True, True])], 9)
    assert batch.pairs(1)[0].tolist() == [0, 3]
    assert batch.pairs(0)[0].tolist() == [0, 1, 3, 4]


def test_pairs_at_an_unusual_distance_are_left_out(clip_layout):
    """Usual is the lower median of a video's own distances: 1 in the first video, 0.5 in the second."""
    layouts = [
        clip_layout([(1, 1)] * 5, times=[0, 8, 9, 10, 11.15]),
        clip_layout([(1, 1)] * 3, times=[0, 0.5, 4]),
    ]
    batch = FrameBatch.collate(layouts, 9)
    assert batch.pairs(1)[0].tolist() == [0, 1, 2, 3, 5, 6]
    assert batch.pairs(1, 0.1)[0].tolist() == [1, 2, 5]
    assert batch.pairs(1, 0.2)[0].tolist() == [1, 2, 3, 5]
    assert batch.pairs(0, 0.1)[0].tolist() == list(range(8))


def test_recent_frames_are_the_usual_ones_beside_a_few_of_the_whole_clip(clip_layout):
    times = [0, 10, 20, 30, 40, 50, 60, 62.5, 63, 63.5, 64, 64.5, 65, 65.5, 66]
    batch = FrameBatch.collate([clip_layout([(1, 1)] * 15, times=times)], 15)
    assert batch.pairs(1, 0.1)[0].tolist() == [7, 8, 9, 10, 11, 12, 13]


def test_the_last_targets_of_every_video_are_kept(clip_layout):
    batch = FrameBatch.collate([clip_layout([(1, 1)] * 4), clip_layout([(1, 1)] * 2), clip_layout([(1, 1)] * 3)], 9)
    assert batch.pairs(1, max_target_frames=2)[1].tolist() == [2, 3, 5, 7, 8]


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, (2 * 9 + 4,)),  # 3x3 -> 3x3 -> 2x2 -> 3x3: the last two pairs on 2x2
        ({"horizon": 0}, (9 + 9 + 4 + 9,)),
        ({"max_target_frames": 1}, (4,)),
        ({"enable_multiscale_pooling": True}, (22, 2 * 4 + 1)),
        ({"enable_multiscale_pooling": True, "mm_spatial_pool_stride": 3}, (22, 3)),
    ],
)
def test_targets_are_counted_on_the_coarser_grid_and_per_scale(clip_layout, settings, counts):
    batch = FrameBatch.collate([clip_layout([(3, 3)] * 3 + [(2, 2)])], 40)
    config = AutoregressiveConfig(**settings)
    assert batch.target_counts(config) == counts
    assert batch.num_targets(config) == sum(counts)


def test_the_grid_of_a_pair_is_the_coarser_one(clip_layout):
    batch = FrameBatch.collate([clip_layout([(5, 3), (3, 2), (5, 3), (5, 3)])], 60)
    assert batch.compared_grids(*batch.pairs(1)).tolist() == [[3, 2], [3, 2], [5, 3]]
    assert batch.compared_grids(*batch.pairs(1), stride=2).tolist() == [[2, 1], [2, 1], [3, 2]]


def test_moving_keeps_everything_and_workers_can_send_it(clip_layout):
    batch = FrameBatch.collate([clip_layout([(2, 3), (1, 2)])], 10)
    for copy in (batch.to("cpu"), pickle.loads(pickle.dumps(batch))):  # noqa: S301
        for name, value in vars(batch).items():
            other = vars(copy)[name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert {tensor.device.type for tensor in vars(batch.to("meta")).values() if isinstance(tensor, torch.Tensor)} == {
        "meta"
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pairs_history_and_gather_work_on_a_device(clip_layout):
    batch = FrameBatch.collate([clip_layout([(2, 3), (1, 2), (2, 3)])] * 2, 20)
    moved = batch.pin_memory().to("cuda", non_blocking=True)
    hidden = torch.randn(2, 20, 4)
    assert torch.equal(moved.gather(hidden.cuda()).cpu(), batch.gather(hidden))
    assert torch.equal(moved.history(2).cpu(), batch.history(2))
    assert torch.equal(moved.pairs(1, 0.1, 1)[0].cpu(), batch.pairs(1, 0.1, 1)[0])


CLIPS = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.floats(0.1, 5)), max_size=6),
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(clips=CLIPS, newline=st.booleans(), tail=st.integers(0, 2), horizon=st.integers(0, 3), offset=st.integers(0, 5))
def test_a_batch_is_its_samples_one_by_one(clips, newline, tail, horizon, offset):
    layouts = []
    for clip in clips:
        spans, start, time = [], 0, 0.0
        for index, (height, width, valid, gap) in enumerate(clip):
            count = height * (width + newline) + tail
            time += gap
            shape = {"token_start": start, "token_count": count, "grid": (height, width), "row_newline": newline}
            spans.append(FrameSpan(index=index, time_s=time, tail_specials=tail, valid=valid, **shape))
            start += count + 1
        layouts.append(FrameLayout(tuple(spans)))
    length = max([layout.token_end for layout in layouts], default=0) + offset
    batch = FrameBatch.collate(layouts, length, [offset] * len(layouts))
    config = AutoregressiveConfig(
        horizon=horizon, gap_tolerance=0.3, max_target_frames=2, enable_multiscale_pooling=True
    )
    alone = [FrameBatch.collate([layout], length, [offset]) for layout in layouts]
    first = [0, *torch.tensor([single.num_frames for single in alone]).cumsum(0).tolist()]
    pairs = [single.pairs(horizon, 0.3, 2)[0] + start for single, start in zip(alone, first, strict=False)]
    assert batch.pairs(horizon, 0.3, 2)[0].tolist() == torch.cat([*pairs, torch.tensor([], dtype=torch.int64)]).tolist()
    assert batch.num_targets(config) == sum(single.num_targets(config) for single in alone)
    for row, (single, start) in enumerate(zip(alone, first, strict=False)):
        mine = slice(start, start + single.num_frames)
        tokens = batch.tokens[mine, : single.tokens.shape[1]]
        assert torch.equal(tokens, torch.where(single.tokens >= 0, single.tokens + row * length, -1))
        history = single.history(2)
        assert torch.equal(batch.history(2)[mine], torch.where(history >= 0, history + start, -1))


def test_a_batch_is_frozen(clip_layout):
    batch = FrameBatch.collate([clip_layout([(1, 2)])], 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.sequence_length = 3
