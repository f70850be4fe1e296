import math

import pytest
import torch
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.features import FrameFeatures
from video_autoregressive.layout import FrameBatch
from video_autoregressive.targets import (
    PAIRS_AT_ONCE,
    compare_frames,
    normalise_targets,
    term_counts,
    term_names,
    token_errors,
)
from video_autoregressive.windows import plan_windows

DIM = 4


def config(**settings):
    return AutoregressiveConfig(**{"embedding_dim": DIM, "num_heads": 2, "target_norm": "none", **settings})


def compare(layouts, features, settings, predictions=None, length=200):
    """Compare; the prediction at every packed row is that of `predictions`, which is in the order of the batch."""
    frames = FrameBatch.collate(layouts, length)
    windows = plan_windows(frames, settings)
    counts = frames.num_patches.tolist()
    if predictions is None:
        predictions = torch.randn(sum(counts), DIM)
    packed = torch.empty_like(predictions)
    for start, rows in zip(windows.starts.tolist(), predictions.split(counts), strict=True):
        packed[start : start + len(rows)] = rows
    return compare_frames(packed, windows.starts, frames, features, settings)


def test_norms_by_hand():
    features = torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, 3.0, 3.0]])
    torch.testing.assert_close(normalise_targets(features, "none"), features)
    torch.testing.assert_close(normalise_targets(features, "l2")[0], torch.tensor([0.6, 0.8, 0, 0]))
    torch.testing.assert_close(
        normalise_targets(features, "layernorm")[1], torch.tensor([-1.0, -1, 1, 1]), atol=1e-4, rtol=0
    )


def test_errors_by_hand():
    predicted, wanted = torch.tensor([[1.0, 0, 0, 3]]), torch.tensor([[1.0, 0, 0, 0]])
    assert token_errors(predicted, wanted, "mse").item() == 9 / 4
    assert token_errors(predicted, wanted, "smooth_l1").item() == 2.5 / 4
    assert token_errors(predicted, wanted, "cosine").item() == pytest.approx(1 - 1 / math.sqrt(10))


@pytest.mark.parametrize("name", ["l1", "", "MSE"])
def test_unknown_losses_and_norms_are_refused(name):
    with pytest.raises(ValueError, match="loss: got"):
        token_errors(torch.zeros(1, 2), torch.zeros(1, 2), name)
    with pytest.raises(ValueError, match="target_norm: got"):
        normalise_targets(torch.zeros(1, 2), name)


def test_outlier_channels_do_not_set_the_loss():
    """Trap: in raw features a few channels decide a squared error."""
    features = torch.randn(100, 64)
    features[:, 3] *= 100
    raw = normalise_targets(features, "none").square().mean(0)
    assert raw[3] / raw.sum() > 0.9
    assert normalise_targets(features, "layernorm").square().mean(1).sub(1).abs().max() < 1e-3


@pytest.mark.parametrize("horizon", [0, 1, 2])
def test_a_prediction_belongs_to_the_frame_ahead(clip_layout, horizon):
    values = torch.randn(5, 2, DIM)
    features = FrameFeatures.uniform(values, (1, 2))
    settings = config(horizon=horizon)
    shifted = torch.cat([values[horizon:], values[:horizon]]).flatten(0, 1)
    compared = compare([clip_layout([(1, 2)] * 5)], features, settings, shifted)
    assert compared.totals[0] == 0
    assert compared.counts == (2 * (5 - horizon),)
    assert compared.frame_errors.isnan().tolist() == [frame < horizon for frame in range(5)]
    copied = (values[: 5 - horizon] - values[horizon:]).square().mean(2)
    torch.testing.assert_close(compared.copy_total, copied.sum())
    torch.testing.assert_close(compared.copy_errors[horizon:], copied.mean(1))


def test_errors_stand_at_the_frame_they_are_about(clip_layout):
    values = torch.zeros(3, 1, DIM)
    predictions = torch.zeros(3, DIM)
    predictions[1] = 2.0
    compared = compare([clip_layout([(1, 1)] * 3)], FrameFeatures.uniform(values, (1, 1)), config(), predictions)
    torch.testing.assert_close(compared.frame_errors, torch.tensor([torch.nan, 0.0, 4.0]), equal_nan=True)


def test_features_are_averaged_to_the_tokens_grid(clip_layout):
    """3 x 3 patches of the teacher, 2 x 2 tokens: windows of stride 2 rounded up, by hand."""
    values = torch.arange(9.0)[None, :, None].expand(2, 9, DIM)
    wanted = torch.tensor([2.0, 3.5, 6.5, 8.0])  # (0+1+3+4)/4, (2+5)/2, (6+7)/2, 8
    predictions = torch.zeros(8, DIM)
    predictions[:4] = wanted[:, None]
    compared = compare([clip_layout([(2, 2)] * 2)], FrameFeatures.uniform(values, (3, 3)), config(), predictions)
    assert compared.totals[0] == 0


@pytest.mark.parametrize("grids", [[(4, 4), (2, 2)], [(2, 2), (4, 4)]])
def test_frames_of_different_grids_are_compared_on_the_coarser(clip_layout, grids):
    predicted = torch.randn(grids[0][0] * grids[0][1], DIM)
    values = torch.randn(2, 16, DIM)

    def pooled(rows):
        return rows.unflatten(0, (4, 4)).unflatten(0, (2, 2)).unflatten(2, (2, 2)).mean((1, 3)).flatten(0, 1)

    rows = torch.cat([predicted, torch.zeros(grids[1][0] ** 2, DIM)])
    compared = compare([clip_layout(grids)], FrameFeatures.uniform(values, (4, 4)), config(), rows)
    expected = (pooled(predicted) if grids[0] == (4, 4) else predicted) - pooled(values[1])
    torch.testing.assert_close(compared.totals[0], expected.square().mean(1).sum())
    assert compared.counts == (4,)


@pytest.mark.parametrize("mode", ["average", "max", "bilinear"])
def test_a_perfect_prediction_is_perfect_at_every_scale(clip_layout, mode):
    values = torch.randn(3, 9, DIM)
    settings = config(
        enable_multiscale_pooling=True, mm_spatial_pool_stride=2, mm_spatial_pool_mode=mode, target_norm="layernorm"
    )
    perfect = normalise_targets(torch.cat([values[1:], values[:1]]), "layernorm").flatten(0, 1)
    compared = compare([clip_layout([(3, 3)] * 3)], FrameFeatures.uniform(values, (3, 3)), settings, perfect)
    assert [total.item() for total in compared.totals] == [0, 0]
    assert compared.counts == (18, 8)


@pytest.mark.parametrize("loss", ["mse", "smooth_l1", "cosine"])
@pytest.mark.parametrize("horizon", [0, 1, 3])
@pytest.mark.parametrize("multiscale", [False, True])
@pytest.mark.parametrize("gap_tolerance", [0.0, 0.2])
@pytest.mark.parametrize("max_target_frames", [0, 2])
def test_counts_are_those_that_the_layout_promises(
    clip_layout, loss, horizon, multiscale, gap_tolerance, max_target_frames
):
    settings = config(
        loss=loss,
        horizon=horizon,
        enable_multiscale_pooling=multiscale,
        gap_tolerance=gap_tolerance,
        max_target_frames=max_target_frames,
    )
    times = [0.0, 1.0, 2.0, 2.1, 3.1]
    layouts = [
        clip_layout([(3, 3), (1, 1), (3, 3), (2, 3), (3, 3)], times=times, valid=[True, True, True, False, True]),
        clip_layout([]),
        clip_layout([(2, 2)] * 3),
        clip_layout([(2, 2)]),
    ]
    grids = [(4, 4), (3, 5)] * 4 + [(2, 2)]
    parts = [FrameFeatures.uniform(torch.randn(1, height * width, DIM), (height, width)) for height, width in grids]
    compared = compare(layouts, FrameFeatures.concatenated(parts), settings)
    frames = FrameBatch.collate(layouts, 200)
    assert compared.counts == frames.target_counts(settings)
    assert sum(compared.counts) == frames.num_targets(settings)
    names = term_names(settings)
    expected = {**dict(zip(names, compared.counts, strict=True)), "autoregressive_copy": compared.counts[0]}
    assert term_counts(frames, settings) == expected


def test_names_of_terms():
    assert term_names(config()) == ("autoregressive",)
    two = config(enable_multiscale_pooling=True, mm_spatial_pool_stride=4)
    assert term_names(two) == ("autoregressive/stride1", "autoregressive/stride4")


def test_long_clips_are_compared_in_parts(clip_layout):
    num_frames = 2 * PAIRS_AT_ONCE + 5
    values, predictions = torch.randn(num_frames, 1, DIM), torch.randn(num_frames, DIM)
    compared = compare(
        [clip_layout([(1, 1)] * num_frames)], FrameFeatures.uniform(values, (1, 1)), config(), predictions
    )
    expected = (predictions[:-1] - values[1:, 0]).square().mean(1)
    torch.testing.assert_close(compared.totals[0], expected.sum())
    torch.testing.assert_close(compared.frame_errors[1:], expected)


def test_numbers_are_float32_under_autocast(clip_layout):
    values = torch.randn(4, 4, DIM)
    layouts, features = [clip_layout([(2, 2)] * 4)], FrameFeatures.uniform(values, (2, 2))
    predictions = torch.randn(16, DIM)
    settings = config(loss="cosine", target_norm="layernorm")
    plain = compare(layouts, features, settings, predictions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = compare(layouts, features, settings, predictions)
    assert cast.totals[0].dtype == torch.float32
    assert torch.equal(plain.totals[0], cast.totals[0])
    rough = compare(layouts, FrameFeatures(features.rows.bfloat16(), features.grids), settings, predictions.bfloat16())
    assert rough.totals[0].dtype == rough.frame_errors.dtype == torch.float32


def test_no_gradient_reaches_the_features(clip_layout):
    values = torch.randn(3, 4, DIM, requires_grad=True)
    predictions = torch.randn(12, DIM, requires_grad=True)
    compared = compare([clip_layout([(2, 2)] * 3)], FrameFeatures.uniform(values, (2, 2)), config(), predictions * 1)
    assert not compared.copy_total.requires_grad
    assert not compared.frame_errors.requires_grad
    compared.totals[0].backward()
    assert values.grad is None
    assert predictions.grad[:8].abs().sum(1).all()
    assert not predictions.grad[8:].any()
