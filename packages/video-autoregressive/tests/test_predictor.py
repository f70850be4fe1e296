import pytest
import torch
import torch.nn.functional as F
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.layout import FrameBatch, FrameLayout
from video_autoregressive.masks import FrameLevelMaskGenerator
from video_autoregressive.predictor import FramePredictor
from video_autoregressive.windows import plan_windows

HIDDEN, OUT = 10, 6
GRIDS = {
    "even": [(2, 2)] * 6,
    "ragged": [(2, 3), (1, 1), (2, 2), (2, 3), (1, 2), (1, 1)],
    "one": [(2, 2)],
    "two": [(2, 2)] * 2,
}


def config(**settings):
    return AutoregressiveConfig(**{"embedding_dim": 16, "num_heads": 2, "num_layers": 3, **settings})


def predict(predictor, hidden, frames, settings):
    """Predictions at the positions of `hidden`; NaN elsewhere."""
    windows = plan_windows(frames, settings)
    flat = hidden.flatten(0, 1)
    result = torch.full((len(flat), OUT), torch.nan, dtype=flat.dtype)
    return result.index_put((windows.rows,), predictor(flat[windows.rows], windows)).unflatten(0, hidden.shape[:2])


def dense(predictor, states, places, counts, num_hist):
    """One clip, whose tokens are in order of time, under masks over all tokens: slow and plain."""
    masks = FrameLevelMaskGenerator()
    window = masks.create_sliding_window_frame_mask(len(counts), counts, num_hist)
    own = masks.create_sliding_window_frame_mask(len(counts), counts, 1)
    allowed = torch.cat([own, window & ~own], dim=1)
    entered = predictor.input(predictor.norm(states)) + predictor.position(places)
    tokens = entered
    for block in predictor.blocks:
        attention = block.attention
        normed, remembered = block.attention_norm(tokens), block.attention_norm(entered)
        query = attention.query(normed)
        key, value = attention.key_value(torch.cat([normed, remembered])).chunk(2, dim=1)
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * 8, head * 8 + 8)
            scores = query[:, part] @ key[:, part].T / 8**0.5
            heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value[:, part])
        tokens = tokens + attention.out(torch.cat(heads, dim=1))
        tokens = tokens + block.feed_forward(block.feed_forward_norm(tokens))
    return predictor.head(predictor.head_norm(tokens))


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("num_hist", [1, 2, 3, 8])
def test_equal_to_attention_under_a_dense_mask(clip_layout, grids, num_hist):
    settings = config(num_hist=num_hist)
    predictor = FramePredictor(HIDDEN, settings, OUT).double()
    frames = FrameBatch.collate([clip_layout(grids)], 32)
    hidden = torch.randn(1, 32, HIDDEN, dtype=torch.float64)
    windows = plan_windows(frames, settings)
    order = windows.rows.argsort()
    counts = [height * width for height, width in grids]
    expected = dense(predictor, hidden[0, : sum(counts)], windows.places[order].double(), counts, num_hist)
    got = predict(predictor, hidden, frames, settings)[0]
    torch.testing.assert_close(got[: sum(counts)], expected, atol=1e-6, rtol=1e-5)  # positions are float32


@pytest.mark.parametrize("grids", [GRIDS["even"], GRIDS["ragged"]])
@pytest.mark.parametrize("num_hist", [1, 2, 3])
@pytest.mark.parametrize("row_newline", [False, True])
def test_frames_outside_the_window_have_no_influence(clip_layout, grids, num_hist, row_newline):
    """However many blocks there are; neither later frames nor frames older than the window, text nor newlines."""
    settings = config(num_hist=num_hist)
    predictor = FramePredictor(HIDDEN, settings, OUT).double()
    layout = clip_layout(grids, start=3, between=1, row_newline=row_newline)
    frames = FrameBatch.collate([layout], 60)
    hidden = torch.randn(1, 60, HIDDEN, dtype=torch.float64, requires_grad=True)
    predicted = predict(predictor, hidden, frames, settings)[0]
    for frame, span in enumerate(layout.spans):
        (gradient,) = torch.autograd.grad(predicted[span.patch_indices()].square().sum(), hidden, retain_graph=True)
        reached = gradient[0].abs().sum(1).nonzero().flatten().tolist()
        window = layout.spans[max(0, frame - num_hist + 1) : frame + 1]
        assert reached == [position for seen in window for position in seen.patch_indices().tolist()]


def test_without_the_mask_later_frames_are_seen(clip_layout):
    settings = config(use_frame_causal_mask=False, num_layers=1)
    predictor = FramePredictor(HIDDEN, settings, OUT).double()
    layout = clip_layout([(1, 1)] * 4)
    hidden = torch.randn(1, 4, HIDDEN, dtype=torch.float64, requires_grad=True)
    predicted = predict(predictor, hidden, FrameBatch.collate([layout], 4), settings)
    (gradient,) = torch.autograd.grad(predicted[0, 0].sum(), hidden)
    assert gradient[0].abs().sum(1).all()


def test_a_batch_is_its_clips_one_by_one(clip_layout):
    settings = config()
    predictor = FramePredictor(HIDDEN, settings, OUT).double()
    layouts = [clip_layout(GRIDS["ragged"], start=2), FrameLayout.empty(), clip_layout(GRIDS["even"]), clip_layout([])]
    hidden = torch.randn(4, 30, HIDDEN, dtype=torch.float64)
    together = predict(predictor, hidden, FrameBatch.collate(layouts, 30), settings)
    for row, layout in enumerate(layouts):
        alone = predict(predictor, hidden[row : row + 1], FrameBatch.collate([layout], 30), settings)
        torch.testing.assert_close(together[row : row + 1], alone, equal_nan=True)


def test_where_tokens_stand_does_not_matter(clip_layout):
    """Left padding and packing move tokens and change nothing."""
    settings = config()
    predictor = FramePredictor(HIDDEN, settings, OUT).double()
    layout = clip_layout([(1, 2)] * 4)
    hidden = torch.randn(2, 8, HIDDEN, dtype=torch.float64)
    plain = predict(predictor, hidden, FrameBatch.collate([layout] * 2, 8), settings)
    padded = F.pad(hidden, (0, 0, 5, 0))
    moved = predict(predictor, padded, FrameBatch.collate([layout] * 2, 13, offsets=[5, 5]), settings)
    torch.testing.assert_close(moved[:, 5:], plain)
    packed = FrameBatch.collate([layout] * 2, 16, offsets=[0, 8], rows=[0, 0])
    joined = predict(predictor, hidden.flatten(0, 1)[None], packed, settings)
    torch.testing.assert_close(joined[0].view_as(plain), plain)


@pytest.mark.parametrize("num_frames", [0, 1, 4])
def test_every_parameter_takes_part_in_every_call(clip_layout, num_frames):
    settings = config()
    predictor = FramePredictor(HIDDEN, settings, OUT)
    frames = FrameBatch.collate([clip_layout([(1, 2)] * num_frames)], 8)
    windows = plan_windows(frames, settings)
    predicted = predictor(torch.randn(8, HIDDEN)[windows.rows], windows)
    assert predicted.shape == (2 * num_frames, OUT)
    predicted.sum().backward()
    assert [name for name, parameter in predictor.named_parameters() if parameter.grad is None] == []


def test_parameters_belong_to_layers_that_zero_3_knows():
    """A bare parameter outside its module's forward is empty under ZeRO-3."""
    for name, module in FramePredictor(HIDDEN, config(), OUT).named_modules():
        own = list(module.parameters(recurse=False))
        assert not own or isinstance(module, torch.nn.Linear | torch.nn.LayerNorm), name


def test_each_layer_runs_once_per_call(clip_layout):
    """A layer that runs twice is gathered twice under ZeRO-3."""
    settings = config()
    predictor = FramePredictor(HIDDEN, settings, OUT)
    calls = dict.fromkeys((name for name, module in predictor.named_modules() if not list(module.children())), 0)
    for name, module in predictor.named_modules():
        if name in calls:
            module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    windows = plan_windows(FrameBatch.collate([clip_layout([(1, 2)] * 4)], 8), settings)
    predictor(torch.randn(8, HIDDEN), windows)
    assert {calls[name] for name in calls if "dropout" not in name} == {1}


def test_dropout_only_while_training(clip_layout):
    settings = config(dropout=0.5)
    predictor = FramePredictor(HIDDEN, settings, OUT)
    windows = plan_windows(FrameBatch.collate([clip_layout([(1, 2)] * 4)], 8), settings)
    states = torch.randn(8, HIDDEN)
    assert not torch.equal(predictor(states, windows), predictor(states, windows))
    predictor.eval()
    assert torch.equal(predictor(states, windows), predictor(states, windows))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("states", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_works_in_bfloat16(clip_layout, weights, states, autocast):
    settings = config()
    exact = FramePredictor(HIDDEN, settings, OUT)
    windows = plan_windows(FrameBatch.collate([clip_layout(GRIDS["ragged"])], 20), settings)
    hidden = torch.randn(20, HIDDEN)[windows.rows]
    expected = exact(hidden, windows)
    predictor = FramePredictor(HIDDEN, settings, OUT).to(weights)
    predictor.load_state_dict(exact.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = predictor(hidden.to(states), windows)
    torch.testing.assert_close(got.float(), expected, atol=0.1, rtol=0.1)
