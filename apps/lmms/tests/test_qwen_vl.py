"""Qwen2.5-VL and Qwen3-VL: the library's own numbers, and features on the tokens' grid."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText

FAMILIES = ["qwen2_5_vl", "qwen3_vl"]


@pytest.fixture(params=FAMILIES)
def qwen(request, toy):
    return toy.of(request.param)


def shown_to_the_library(model, batch: dict) -> dict:
    """The library's own arguments for the same pixels."""
    visuals, ids, config = dict(batch["visuals"]), batch["input_ids"], model.config.lmm
    for name in ("pixel_values", "pixel_values_videos"):
        if name in visuals:
            visuals[name] = model.backbone._pixels(visuals[name], torch.float32)
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return {"input_ids": ids, "attention_mask": batch["attention_mask"], "mm_token_type_ids": types, **visuals}


def plain_of(model):
    twin = AutoModelForImageTextToText.from_config(model.config.lmm, dtype=torch.float32).eval()
    twin.load_state_dict(model.lmm.state_dict())
    return twin


@torch.no_grad()
@pytest.mark.parametrize("samples", [[((3,), 0), ((5, 2), 0)], [((), 1), ((), 2)], [((), 0)]], ids=str)
def test_logits_are_the_librarys_to_the_bit(qwen, samples):
    model = qwen.model(enable_autoregressive=False)
    batch = qwen.batch([qwen.sample(videos, images=count, seed=seed) for seed, (videos, count) in enumerate(samples)])
    found = model(batch["input_ids"], batch["attention_mask"], visuals=batch["visuals"]).logits
    arguments = shown_to_the_library(model, batch)
    if not batch["visuals"]:
        arguments.pop("mm_token_type_ids")
    assert torch.equal(found, plain_of(model)(**arguments).logits)


@torch.no_grad()
def test_logits_of_videos_and_images_together_are_the_librarys(qwen):
    """One call of the tower instead of two: equal but for rounding."""
    model, batch = qwen.model(), qwen.batch(qwen.mixed())
    found = model(batch["input_ids"], batch["attention_mask"], visuals=batch["visuals"]).logits
    expected = plain_of(model)(**shown_to_the_library(model, batch)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_librarys_processor_makes_the_same_ids_and_pixels(qwen):
    clip, image = qwen.clip(4, height=30, width=44), qwen.image()
    prepared, pictures = qwen.family().prepare_video(clip), qwen.family().prepare_images([image, qwen.image(seed=1)])
    backbone = qwen.model().backbone
    metadata = {"total_num_frames": 20, "fps": 10.0, "frames_indices": clip.indices.tolist(), "duration": 2.0}
    theirs = qwen.processor(
        text=["<|video_pad|>"],
        videos=[clip.frames],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert torch.equal(qwen.tokenizer(prepared.text, return_tensors="pt")["input_ids"], theirs["input_ids"])
    assert torch.equal(prepared.visuals["video_grid_thw"], theirs["video_grid_thw"])
    pixels = backbone._pixels(prepared.visuals["pixel_values_videos"], torch.float32)
    assert torch.equal(pixels, theirs["pixel_values_videos"])
    theirs = qwen.processor(
        text=["<|image_pad|><|image_pad|>"], images=[image, qwen.image(seed=1)], return_tensors="pt"
    )
    assert torch.equal(qwen.tokenizer("".join(pictures.texts), return_tensors="pt")["input_ids"], theirs["input_ids"])
    assert torch.equal(backbone._pixels(pictures.visuals["pixel_values"], torch.float32), theirs["pixel_values"])


@torch.no_grad()
def test_the_tower_runs_once_and_its_features_lie_on_the_tokens_grid(qwen):
    model, batch, calls = qwen.model(), qwen.batch(qwen.mixed()), []
    tower = model.lmm.model.visual
    tower.register_forward_hook(lambda *_: calls.append(1))
    model.train()(**batch)
    assert len(calls) == 1
    model.eval()
    features = model.encode_frames(batch["visuals"])
    assert [list(grid) for grid in features.grids] == batch["frames"].grids.tolist()
    # Step by step, and square by square through the merger's own eyes: a square's mean decides a linear merger's mean.
    reading = model.backbone.read(model.lmm, batch["input_ids"], batch["attention_mask"], None, batch["visuals"])
    torch.testing.assert_close(reading.features.rows, features.rows, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_pixel_moves_the_feature_of_its_own_place_most(qwen):
    """The squares are in row-major order, whatever windows the tower uses."""
    model, clip, family = qwen.model(), qwen.clip(2, height=24, width=24), qwen.family()
    before = model.encode_frames(family.prepare_video(clip).visuals)
    for row, column in ((0, 0), (0, 2), (1, 1), (2, 0), (2, 1)):
        frames = clip.frames.clone()
        frames[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] ^= 255
        after = model.encode_frames(family.prepare_video(replace(clip, frames=frames)).visuals)
        change = (after.rows - before.rows).norm(dim=1)
        assert divmod(int(change.argmax()), 3) == (row, column)


@torch.no_grad()
def test_steps_of_two_frames_have_their_times(qwen):
    prepared = qwen.family().prepare_video(qwen.clip(5))
    assert [span.time_s for span in prepared.spans] == [0.25, 1.25, 2.0]
    assert [span.source_frame for span in prepared.spans] == [0, 10, 20]
    assert ("<0.2 seconds>" in prepared.text) == (qwen.model_type == "qwen3_vl")
    single = qwen.family().prepare_video(qwen.clip(1))
    assert len(single.spans) == 1
    assert single.num_tokens == prepared.num_tokens // 3


def test_another_layer_of_the_tower_is_refused(qwen):
    with pytest.raises(ValueError, match="teacher_layer: got 1, expected none"):
        qwen.model(autoregressive_config=qwen.autoregressive(teacher_layer=1))


def test_a_library_that_would_drop_the_videos_is_refused(qwen, monkeypatch):
    forward = lambda self, input_ids=None, **kwargs: None  # noqa: E731 - as it was in transformers 5.17
    monkeypatch.setattr(type(qwen.model().lmm.model), "forward", forward)
    with pytest.raises(ValueError, match=rf"{qwen.model_type} needs transformers 5\.18 or later, got \d"):
        qwen.model()


def test_token_layouts_are_the_models_own(qwen):
    from video_autoregressive.config import VideoTokenConfig

    with pytest.raises(ValueError, match=r"model.video_tokens: .* has a token layout of its own"):
        qwen.family(video_tokens=VideoTokenConfig(newline="grid"))
