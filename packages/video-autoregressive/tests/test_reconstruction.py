import pytest
import torch
from torch import nn
from video_autoregressive.config import AutoregressiveConfig
from video_autoregressive.features import FrameFeatures
from video_autoregressive.layout import FrameBatch, FrameLayout
from video_autoregressive.reconstruction import (
    AutoregressiveReconstructionModule,
    create_autoregressive_reconstruction_module,
)
from video_autoregressive.targets import term_counts
from video_autoregressive.teacher import SharedTeacher

HIDDEN, DIM = 12, 8


def config(**settings):
    return AutoregressiveConfig(**{"embedding_dim": DIM, "num_heads": 2, "num_layers": 2, **settings})


def build(**settings):
    return AutoregressiveReconstructionModule(HIDDEN, config(**settings), SharedTeacher(DIM))


def features_of(layouts, dim=DIM):
    parts = [
        FrameFeatures.uniform(
            torch.randn(1, 4 * span.grid[0] * span.grid[1], dim), (2 * span.grid[0], 2 * span.grid[1])
        )
        for layout in layouts
        for span in layout.spans
    ]
    return FrameFeatures.concatenated(parts) if parts else None


class Tower(nn.Module):
    """Patches of 4 pixels."""

    def __init__(self, dim=DIM):
        super().__init__()
        self.convolution = nn.Conv2d(3, dim, 4, stride=4)

    def forward(self, frames):
        return self.convolution(frames).flatten(2).transpose(1, 2)


def frozen_tower():
    return Tower().requires_grad_(False)


LAYOUTS = {
    "even": lambda build: build([(2, 2)] * 5, start=1),
    "row newlines": lambda build: build([(2, 2)] * 5, start=1, row_newline=True),
    "tails": lambda build: build([(2, 2)] * 5, start=1, tail_specials=1),
    "text between": lambda build: build([(2, 2)] * 5, between=2),
    "slow and fast": lambda build: build([(2, 2), (1, 1), (1, 1), (2, 2), (1, 1)], tail_specials=1),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("horizon", [0, 1, 2])
@pytest.mark.parametrize("multiscale", [False, True])
def test_a_frames_error_depends_on_its_window_alone(clip_layout, layout, horizon, multiscale):
    """Changing a frame changes the predictions made at it and at the num_hist - 1 frames after it, and no other bit."""
    module = build(horizon=horizon, num_hist=2, enable_multiscale_pooling=multiscale)
    layout = layout(clip_layout)
    frames, features = FrameBatch.collate([layout], 40), features_of([layout])
    hidden = torch.randn(1, 40, HIDDEN)

    def errors_after_changing(positions):
        changed = hidden.clone()
        changed[:, positions] = torch.randn(1, len(positions), HIDDEN)
        return module(changed, frames, features).frame_errors.nan_to_num()

    before = module(hidden, frames, features).frame_errors.nan_to_num()
    for frame, span in enumerate(layout.spans):
        moved = (errors_after_changing(span.patch_indices()) != before).nonzero().flatten().tolist()
        assert moved == [target for target in (frame + horizon, frame + 1 + horizon) if target < 5]
    patches = torch.cat([span.patch_indices() for span in layout.spans])
    elsewhere = torch.ones(40, dtype=torch.bool).index_fill(0, patches, False)
    assert torch.equal(errors_after_changing(elsewhere.nonzero().flatten()), before)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("horizon", [0, 1, 2])
def test_gradients_reach_the_window_alone(clip_layout, layout, horizon):
    """The loss of the last frame reaches the states of the window that predicts it: all of them, and exactly."""
    module = build(horizon=horizon, num_hist=2, max_target_frames=1).double()
    layout = layout(clip_layout)
    hidden = torch.randn(1, 40, HIDDEN, dtype=torch.float64, requires_grad=True)
    output = module(hidden, FrameBatch.collate([layout], 40), features_of([layout]))
    (gradient,) = torch.autograd.grad(output.weighted, hidden)
    reached = gradient[0].abs().sum(1).nonzero().flatten().tolist()
    window = layout.spans[3 - horizon : 5 - horizon]
    assert reached == [position for span in window for position in span.patch_indices().tolist()]


def test_noise_cannot_be_predicted(clip_layout):
    """Trap: a predictor that sees the target reaches 0.23 on noise, where nothing can be better than 1."""
    module = build(target_norm="none", loss_weight=1.0)
    layout = clip_layout([(2, 2)] * 5)
    frames = FrameBatch.collate([layout] * 8, 20)
    readout = torch.randn(DIM, HIDDEN)
    errors = []
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(220):
        noise = torch.randn(8, 20, DIM)
        optimizer.zero_grad()
        output = module(noise @ readout, frames, FrameFeatures.uniform(noise.view(40, 4, DIM), (2, 2)))
        output.weighted.backward()
        optimizer.step()
        errors.append(output.raw.item())
    assert 0.97 < sum(errors[-50:]) / 50 < 1.1
    assert output.skill > 0.4  # copying noise makes twice the error


def test_a_moving_pattern_is_predicted_better_than_by_copying(clip_layout):
    """A pattern of noise moves one patch to the right per frame: a copy errs by 2, the mean by 1 (a skill of 0.5)."""
    module = build(target_norm="none", loss_weight=1.0, num_layers=1, predictor_dim=32)
    frames = FrameBatch.collate([clip_layout([(2, 4)] * 5)] * 8, 40)
    readout = torch.randn(DIM, HIDDEN)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(220):
        pattern = torch.randn(8, 1, 2, 4, DIM)
        clip = torch.cat([pattern.roll(frame, dims=3) for frame in range(5)], dim=1)
        hidden = clip.reshape(8, 40, DIM) @ readout
        optimizer.zero_grad()
        output = module(hidden, frames, FrameFeatures.uniform(clip.reshape(40, 8, DIM), (2, 4)))
        output.weighted.backward()
        optimizer.step()
    assert output.skill > 0.9
    # Targets from the same clips in another order hold no motion that could be known.
    shuffled = clip[:, [2, 0, 4, 1, 3]].reshape(40, 8, DIM)
    assert module(hidden, frames, FrameFeatures.uniform(shuffled, (2, 4))).skill < 0.1


def test_a_ragged_batch_is_its_samples_one_by_one(clip_layout):
    module = build(enable_multiscale_pooling=True).double()
    layouts = [
        clip_layout([(2, 3), (1, 1), (2, 2)], start=3),
        FrameLayout.empty(),
        clip_layout([(2, 2)] * 6),
        clip_layout([(2, 2)]),
    ]
    hidden = torch.randn(4, 30, HIDDEN, dtype=torch.float64, requires_grad=True)
    features = [features_of([layout]) for layout in layouts]
    known = FrameFeatures.concatenated([part for part in features if part is not None])
    together = module(hidden, FrameBatch.collate(layouts, 30), known)
    alone = [
        module(hidden[row : row + 1], FrameBatch.collate([layout], 30), features[row])
        for row, layout in enumerate(layouts)
    ]
    for name, term in together.losses.items():
        torch.testing.assert_close(term.total, sum(output.losses[name].total for output in alone))
        assert term.count == sum(output.losses[name].count for output in alone)
    assert together.num_targets == sum(output.num_targets for output in alone)
    errors = torch.cat([output.frame_errors for output in alone])
    torch.testing.assert_close(together.frame_errors, errors, equal_nan=True)


def test_padding_frames_change_nothing(clip_layout):
    module = build().double()
    short, padded = clip_layout([(2, 2)] * 3), clip_layout([(2, 2)] * 5, valid=[True] * 3 + [False] * 2)
    hidden = torch.randn(1, 20, HIDDEN, dtype=torch.float64)
    features = features_of([padded])
    ragged = module(hidden, FrameBatch.collate([short], 20), FrameFeatures(features.rows[:48], features.grids[:3]))
    full = module(hidden, FrameBatch.collate([padded], 20), features)
    assert ragged.num_targets == full.num_targets == 8
    torch.testing.assert_close(ragged.raw, full.raw)


@pytest.mark.parametrize("num_frames", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("horizon", [0, 1, 2])
def test_clips_of_every_length(clip_layout, num_frames, horizon):
    """Including none: every parameter gets a gradient, which is zero where there is nothing to compare."""
    module = build(num_hist=3, horizon=horizon)
    layouts = [clip_layout([(2, 2)] * num_frames), FrameLayout.empty()]
    frames = FrameBatch.collate(layouts, 16)
    hidden = torch.randn(2, 16, HIDDEN, requires_grad=True)
    output = module(hidden, frames, features_of(layouts))
    expected = 4 * max(num_frames - horizon, 0)
    assert output.num_targets == expected
    assert {name: term.count for name, term in output.losses.items()} == term_counts(frames, module.config)
    assert output.frame_errors.shape == (num_frames,)
    output.weighted.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (expected > 0)
    if not expected:
        assert output.weighted == output.raw == 0
        assert output.skill.isnan()


def test_total_copy_and_skill_by_hand(clip_layout):
    module = build(target_norm="none", loss_weight=0.5)
    nn.init.zeros_(module.predictor.head.weight)
    nn.init.ones_(module.predictor.head.bias)
    layout = clip_layout([(1, 1)] * 3)
    values = torch.tensor([0.0, 3.0, 4.0])[:, None, None].expand(3, 1, DIM)
    output = module(torch.randn(1, 3, HIDDEN), FrameBatch.collate([layout], 3), FrameFeatures.uniform(values, (1, 1)))
    # One for all: errors (3 - 1)^2 and (4 - 1)^2; copying: (3 - 0)^2 and (4 - 3)^2.
    assert output.raw.item() == pytest.approx(6.5)
    assert output.weighted.item() == pytest.approx(3.25)
    assert output.copy.item() == pytest.approx(5)
    assert output.skill.item() == pytest.approx(1 - 6.5 / 5)
    assert output.frame_errors.tolist()[1:] == pytest.approx([4, 9])
    assert output.copy_errors.tolist()[1:] == pytest.approx([9, 1])
    assert output.num_targets == 2


def test_scales_share_the_weight(clip_layout):
    module = build(enable_multiscale_pooling=True, loss_weight=0.3)
    layout = clip_layout([(2, 2)] * 3)
    frames = FrameBatch.collate([layout], 12)
    output = module(torch.randn(1, 12, HIDDEN), frames, features_of([layout]))
    assert {name: (term.count, term.weight) for name, term in output.losses.items()} == {
        "autoregressive/stride1": (8, 0.15),
        "autoregressive/stride2": (2, 0.15),
        "autoregressive_copy": (8, 0.0),
    }
    torch.testing.assert_close(output.weighted, 0.3 * output.raw)
    assert output.num_targets == frames.num_targets(module.config) == 10


def test_the_weight_of_a_step(clip_layout):
    module = build()
    layout = clip_layout([(2, 2)] * 3)
    arguments = (torch.randn(1, 12, HIDDEN), FrameBatch.collate([layout], 12), features_of([layout]))
    plain, stronger = module(*arguments), module(*arguments, weight=0.2)
    torch.testing.assert_close(stronger.weighted, 2 * plain.weighted)
    torch.testing.assert_close(stronger.raw, plain.raw)


def test_weight_zero_leaves_other_gradients_to_the_bit(clip_layout):
    module = build()
    layout = clip_layout([(2, 2)] * 3)
    trunk = nn.Linear(HIDDEN, HIDDEN)
    inputs = torch.randn(1, 12, HIDDEN)
    frames, features = FrameBatch.collate([layout], 12), features_of([layout])

    def gradients(with_module):
        trunk.zero_grad()
        hidden = trunk(inputs)
        loss = hidden.square().mean()
        if with_module:
            loss = loss + module(hidden, frames, features, weight=0.0).weighted
        loss.backward()
        return trunk.weight.grad.clone(), trunk.bias.grad.clone()

    for with_it, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_it, without)
    assert all(not parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("loss", ["mse", "smooth_l1", "cosine"])
def test_the_loss_is_float32_in_bfloat16(clip_layout, loss):
    module = build(loss=loss)
    layout = clip_layout([(2, 2)] * 4)
    hidden, features = torch.randn(1, 16, HIDDEN), features_of([layout])
    frames = FrameBatch.collate([layout], 16)
    exact = module(hidden, frames, features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = module(hidden.bfloat16(), frames, features)
    rough = module.bfloat16()(hidden.bfloat16(), frames, FrameFeatures(features.rows.bfloat16(), features.grids))
    for output in (cast, rough):
        assert output.weighted.dtype == output.frame_errors.dtype == torch.float32
        torch.testing.assert_close(output.raw, exact.raw, rtol=0.05, atol=0.01)
    torch.testing.assert_close(cast.copy, exact.copy, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["shared", "snapshot"])
def test_no_tensor_of_the_teacher_is_in_the_module(kind):
    tower = Tower()
    own = {id(tensor) for tensor in [*tower.parameters(), *tower.buffers()]}
    tower.requires_grad_(kind == "snapshot")
    module = create_autoregressive_reconstruction_module(tower, HIDDEN, {"embedding_dim": DIM, "num_heads": 2})
    assert module.teacher.kind == kind
    assert {name.split(".")[0] for name in module.state_dict()} == {"predictor"}
    assert not own & {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    assert not any(isinstance(part, Tower) for part in module.modules())
    assert tower.training
    module.train()
    assert module.teacher.encode(torch.randn(1, 3, 4, 4)).rows.requires_grad is False


def test_shared_equals_snapshot_at_the_first_step():
    tower = frozen_tower()
    settings = {"embedding_dim": DIM, "num_heads": 2, "num_layers": 1}
    shared = create_autoregressive_reconstruction_module(tower, HIDDEN, settings)
    snapshot = create_autoregressive_reconstruction_module(tower, HIDDEN, {**settings, "teacher": "snapshot"})
    snapshot.load_state_dict(shared.state_dict())
    frames, hidden = torch.randn(2, 3, 3, 8, 8), torch.randn(2, 12, HIDDEN)
    losses = [module.compute_autoregressive_loss(hidden, frames) for module in (shared, snapshot)]
    assert torch.equal(*losses)


def test_saved_and_loaded_it_says_the_same_to_the_bit(tmp_path, clip_layout):
    module, other = build(), build()
    torch.save(module.state_dict(), tmp_path / "module.pt")
    other.load_state_dict(torch.load(tmp_path / "module.pt", weights_only=True))
    layout = clip_layout([(2, 2)] * 4)
    arguments = (torch.randn(1, 16, HIDDEN), FrameBatch.collate([layout], 16), features_of([layout]))
    assert torch.equal(module(*arguments).weighted, other(*arguments).weighted)


def test_the_guides_call():
    """Sequences that are nothing but the teacher's patches need no layout."""
    module = create_autoregressive_reconstruction_module(
        vision_tower=frozen_tower(),
        hidden_size=HIDDEN,
        config={"embedding_dim": DIM, "num_heads": 2, "loss_weight": 0.1, "use_frame_causal_mask": True},
    )
    assert module.loss_weight == 0.1
    assert not module.enable_multiscale_pooling
    video = torch.randn(2, 4, 3, 8, 12)
    hidden = torch.randn(2, 4 * 6, HIDDEN, requires_grad=True)
    loss = module.compute_autoregressive_loss(hidden_states=hidden, video_frames=video)
    assert loss.shape == ()
    loss.backward()
    assert hidden.grad.view(2, 4, 6, HIDDEN).abs().sum((0, 2, 3))[:3].all()
    assert not hidden.grad.view(2, 4, 6, HIDDEN)[:, 3].any()


def test_positions_have_to_be_given(clip_layout):
    """Trap: the first states of a sequence are the system prompt, not the first frame."""
    module = create_autoregressive_reconstruction_module(frozen_tower(), HIDDEN, config())
    video, hidden = torch.randn(2, 3, 3, 8, 8), torch.randn(2, 15, HIDDEN)
    with pytest.raises(
        ValueError, match="layout: needed, since 2 sequences of 15 tokens are not the 6 frames of 2 x 2"
    ):
        module.compute_autoregressive_loss(hidden, video)
    layout = clip_layout([(2, 2)] * 3, start=3)
    frames = FrameBatch.collate([layout] * 2, 15)
    loss = module.compute_autoregressive_loss(hidden, video, frames)
    packed = module.compute_autoregressive_loss(hidden, video.flatten(0, 1), frames)
    assert torch.equal(loss, packed)
    assert torch.equal(loss, module(hidden, frames, module.teacher.encode(video.flatten(0, 1))).weighted)


def test_what_does_not_fit_is_refused(clip_layout):
    module = build()
    layout = clip_layout([(2, 2)] * 3)
    frames, features = FrameBatch.collate([layout], 12), features_of([layout])
    hidden = torch.randn(1, 12, HIDDEN)
    with pytest.raises(ValueError, match="got 1 sequences of 13 tokens, but the layout is of sequences of 12"):
        module(torch.randn(1, 13, HIDDEN), frames, features)
    with pytest.raises(ValueError, match=r"got 1 sequences of 12 tokens, but .* reaches token 23"):
        module(hidden, FrameBatch.collate([layout] * 2, 12), features)
    with pytest.raises(ValueError, match="targets: got None for 3 frames"):
        module(hidden, frames)
    with pytest.raises(ValueError, match="got features of 6 frames, the layout has 3"):
        module(hidden, frames, features_of([layout] * 2))
    with pytest.raises(ValueError, match="got features 9 wide, expected embedding_dim = 8"):
        module(hidden, frames, features_of([layout], dim=9))


def test_towers_of_another_width_are_refused():
    class Config:
        hidden_size = 768

    tower = frozen_tower()
    tower.config = Config()
    with pytest.raises(ValueError, match="embedding_dim: got 8, expected the width 768 of the shared teacher's"):
        create_autoregressive_reconstruction_module(tower, HIDDEN, config())


@pytest.mark.parametrize(
    ("settings", "trained", "kind"),
    [
        ({}, False, "shared"),
        ({}, True, "snapshot"),
        ({"teacher": "shared"}, False, "shared"),
        ({"teacher": "snapshot"}, False, "snapshot"),
        ({"teacher": "cache", "teacher_path": "features"}, True, "cache"),
    ],
)
def test_which_teacher(tmp_path, monkeypatch, caplog, settings, trained, kind):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO"):
        module = create_autoregressive_reconstruction_module(
            Tower().requires_grad_(trained), HIDDEN, {"embedding_dim": DIM, "num_heads": 2, **settings}
        )
    assert module.teacher.kind == kind
    assert "reconstruction targets: s" in caplog.text
    hidden, video = torch.randn(1, 8, HIDDEN), torch.randn(1, 2, 3, 8, 8)
    once, again = (module.compute_autoregressive_loss(hidden, video) for _ in range(2))
    assert torch.equal(once, again)


def test_teachers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="'shared' needs a frozen tower"):
        create_autoregressive_reconstruction_module(Tower(), HIDDEN, config(teacher="shared"))
    with pytest.raises(ValueError, match="'external' is another encoder"):
        create_autoregressive_reconstruction_module(Tower(), HIDDEN, config(teacher="external", teacher_path="x"))
    with pytest.raises(ValueError, match="did you mean 'num_hist'"):
        create_autoregressive_reconstruction_module(Tower(), HIDDEN, {"num_hists": 3})

    class Module(nn.Module):
        kind, dim = "external", DIM

        def encode(self, frames):
            return FrameFeatures.uniform(frames.flatten(2).mT, (1, 1))

        def fingerprint(self):
            return "module"

        def cast(self, dtype):
            self.to(dtype)

    with pytest.raises(ValueError, match="got the module Module, whose weights would be trained and saved"):
        AutoregressiveReconstructionModule(HIDDEN, config(), Module())
