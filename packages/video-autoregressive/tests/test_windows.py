import pytest
import torch
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch, FrameLayout
from video_autoregressive.windows import plan_windows


def config(**settings):
    return AutoregressiveConfig(embedding_dim=8, num_heads=2, **settings)


def seen_positions(windows):
    """For every packed token, the positions in the batch that it may look at."""
    seen, start = {}, 0
    for group in windows.groups:
        for others in group.others:
            own = windows.rows[start : start + group.num_tokens]
            start += group.num_tokens
            visible = {*own.tolist(), *windows.rows[others].tolist()}
            seen |= {position: visible for position in own.tolist()}
    assert start == len(windows.rows)
    return seen


@pytest.mark.parametrize("num_hist", [1, 2, 3, 9])
@pytest.mark.parametrize("grids", [[(2, 3)] * 5, [(2, 2), (1, 1), (1, 2), (2, 2), (1, 1)], [(1, 1)]])
def test_a_frame_sees_itself_and_the_frames_before(clip_layout, num_hist, grids):
    layout = clip_layout(grids, start=2, between=1)
    windows = plan_windows(FrameBatch.collate([layout], 50), config(num_hist=num_hist))
    seen = seen_positions(windows)
    spans = layout.spans
    for frame, span in enumerate(spans):
        window = spans[max(0, frame - num_hist + 1) : frame + 1]
        expected = {position for seen_span in window for position in seen_span.patch_indices().tolist()}
        for position in span.patch_indices().tolist():
            assert seen[position] == expected
    assert len(seen) == sum(span.token_count for span in spans)


def test_without_the_mask_a_frame_sees_its_whole_video(clip_layout):
    layouts = [clip_layout([(1, 2), (1, 1), (1, 1)], valid=[True, True, False]), clip_layout([(1, 3)] * 2)]
    windows = plan_windows(FrameBatch.collate(layouts, 6), config(use_frame_causal_mask=False))
    seen = seen_positions(windows)
    assert seen[0] == seen[2] == {0, 1, 2}
    assert seen[3] == {0, 1, 2, 3}  # itself, though it only fills up; nobody else reads it
    assert seen[6] == seen[11] == set(range(6, 12))


def test_videos_and_samples_are_apart(clip_layout):
    first = clip_layout([(1, 1)] * 2)
    both = first.concatenated(clip_layout([(1, 1)] * 2, start=4))
    windows = plan_windows(FrameBatch.collate([both, first], 8), config())
    seen = seen_positions(windows)
    assert seen == {0: {0}, 1: {0, 1}, 4: {4}, 5: {4, 5}, 8: {8}, 9: {8, 9}}


def test_full_windows_are_one_group(clip_layout):
    windows = plan_windows(FrameBatch.collate([clip_layout([(2, 2)] * 8)] * 3, 32), config(num_hist=3))
    assert [(group.num_frames, tuple(group.others.shape)) for group in windows.groups] == [
        (3, (3, 0)),
        (3, (3, 4)),
        (18, (18, 8)),
    ]


def test_starts_find_the_frames(clip_layout):
    frames = FrameBatch.collate([clip_layout([(2, 2), (1, 1), (2, 2), (1, 3)], start=1)] * 2, 20)
    windows = plan_windows(frames, config())
    for frame, start in enumerate(windows.starts.tolist()):
        own = frames.tokens[frame][frames.tokens[frame] >= 0]
        assert torch.equal(windows.rows[start : start + len(own)], own)


def test_places_by_hand(clip_layout):
    frames = FrameBatch.collate([clip_layout([(2, 2), (1, 1)], times=[1.5, 4.0])], 8)
    windows = plan_windows(frames, config())
    places = {position: place for position, place in zip(windows.rows.tolist(), windows.places.tolist(), strict=True)}
    assert places == {
        0: [0.25, 0.25, 1.5, 2.5],
        1: [0.25, 0.75, 1.5, 2.5],
        2: [0.75, 0.25, 1.5, 2.5],
        3: [0.75, 0.75, 1.5, 2.5],
        4: [0.5, 0.5, 4.0, 0.0],  # the last frame has none to predict
    }


def test_no_frames():
    windows = plan_windows(FrameBatch.collate([FrameLayout.empty()] * 2, 8), config())
    assert windows.groups == ()
    assert windows.rows.shape == (0,)
    assert windows.places.shape == (0, 4)
