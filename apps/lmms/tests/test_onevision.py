"""LLaVA-OneVision with packed frames: equal to the library's own model, and right where that cannot follow."""

from dataclasses import replace

import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration
from video_autoregressive.config import VideoTokenConfig


@pytest.fixture(scope="module")
def model(toy):
    """Not to be changed."""
    return toy.model()


@pytest.fixture(scope="module")
def plain(model):
    """The library's own model with the same weights."""
    twin = LlavaOnevisionForConditionalGeneration(model.config.lmm).eval()
    twin.load_state_dict(model.lmm.state_dict())
    return twin


def pixels_of(toy, samples: list, kind: str) -> dict:
    """What the library's processor makes of the same pixels."""
    mean = torch.tensor(127.5)
    normal = lambda pixels: (pixels.float() - mean) / mean  # noqa: E731
    if kind == "video":
        frames = [sample.visuals["video_frames"] for sample in samples]
        return {"pixel_values_videos": torch.stack([normal(one) for one in frames])}
    counts = torch.cat([sample.visuals["image_tile_counts"] for sample in samples]).tolist()
    tiles = torch.cat([sample.visuals["image_tiles"] for sample in samples]).split(counts)
    padded = torch.zeros(len(tiles), max(counts), 3, 32, 32)
    for row, image in zip(padded, tiles, strict=True):
        row[: len(image)] = normal(image)
    return {
        "pixel_values": padded,
        "image_sizes": torch.cat([sample.visuals["image_sizes"] for sample in samples]),
        "batch_num_images": torch.tensor([len(sample.visuals["image_sizes"]) for sample in samples]),
    }


CASES = {
    "videos": ("video", [((3,), 0), ((3,), 0)]),
    "an image in tiles": ("image", [((), 1), ((), 1)]),
    "several images": ("image", [((), 2), ((), 3)]),
    "text": (None, [((), 0), ((), 0)]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_librarys(toy, model, plain, name):
    kind, samples = CASES[name]
    samples = [toy.sample(videos, images=images, seed=seed) for seed, (videos, images) in enumerate(samples)]
    batch = toy.batch(samples)
    found = model(batch["input_ids"], batch["attention_mask"], visuals=batch["visuals"]).logits
    shown = {} if kind is None else pixels_of(toy, samples, kind)
    expected = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **shown).logits
    true = batch["attention_mask"].bool()
    torch.testing.assert_close(found[true], expected[true], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_librarys_processor_makes_the_same_ids_and_pixels(toy):
    """Clips of another size than the tower's are resized as there, to the bit."""
    clip, image = toy.clip(4), toy.image()
    video = toy.family().prepare_video(clip)
    picture = toy.family().prepare_images([image])
    theirs = toy.processor(text=["<video>"], videos=[clip.frames], do_sample_frames=False, return_tensors="pt")
    ids = toy.tokenizer(video.text, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, theirs["input_ids"])
    backbone = toy.model().backbone
    normal = backbone.normalise(video.visuals["video_frames"], 1, torch.float32)
    assert torch.equal(normal[None], theirs["pixel_values_videos"])
    theirs = toy.processor(text=["<image>"], images=[image], return_tensors="pt")
    assert torch.equal(toy.tokenizer(picture.texts[0], return_tensors="pt")["input_ids"], theirs["input_ids"])
    normal = backbone.normalise(picture.visuals["image_tiles"], 1, torch.float32)
    assert torch.equal(normal[None], theirs["pixel_values"])
    assert torch.equal(picture.visuals["image_sizes"], theirs["image_sizes"])
    several = toy.family().prepare_images([image, toy.image(height=30)])
    theirs = toy.processor(text=["<image><image>"], images=[[image, toy.image(height=30)]], return_tensors="pt")
    ids = toy.tokenizer("".join(several.texts), return_tensors="pt")["input_ids"]
    assert torch.equal(ids, theirs["input_ids"])
    normal = backbone.normalise(several.visuals["image_tiles"], 1, torch.float32)
    assert torch.equal(normal[:, None], theirs["pixel_values"])


@torch.no_grad()
def test_features_for_the_teacher_are_the_towers_hidden_states(toy, model):
    batch = toy.batch(toy.mixed())
    reading = model.backbone.read(model.lmm, batch["input_ids"], batch["attention_mask"], None, batch["visuals"])
    frames = model.backbone.normalise(batch["visuals"]["video_frames"], 1, torch.float32)
    tower = model.lmm.model.vision_tower
    states = tower(frames, output_hidden_states=True).hidden_states[model.config.lmm.vision_feature_layer]
    torch.testing.assert_close(reading.features.rows.view_as(states), states)
    assert reading.features.num_frames == batch["frames"].num_frames == 11
    assert not reading.features.rows.requires_grad


def test_the_tower_runs_once_a_step(toy):
    model, calls = toy.model(), []
    model.lmm.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    for samples in (toy.mixed(), [toy.sample(())]):
        calls.clear()
        model.train()(**toy.batch(samples))
        assert len(calls) == 1
    trained = toy.model(frozen_parts=())
    assert trained.config.teacher["kind"] == "snapshot"
    trained.lmm.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    calls.clear()
    trained.train()(**toy.batch(toy.mixed()))
    assert len(calls) == 1  # the snapshot is another module


LAYOUTS = {
    "grid": VideoTokenConfig(newline="grid"),
    "frame": VideoTokenConfig(newline="frame", pool_mode="average"),
    "no_token": VideoTokenConfig(newline="no_token", pool_stride=1),
    "faster": VideoTokenConfig(newline="grid", faster_stride=2, pool_stride=1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_as_many_placeholders_as_rows(toy, name):
    changes = {"video_tokens": LAYOUTS[name]}
    model = toy.model(**changes)
    batch = toy.batch(toy.mixed(**changes))
    output = model.train()(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert output.autoregressive.num_targets > 0
    without = [key for key, entry in model.named_parameters() if entry.requires_grad and entry.grad is None]
    assert without == []
    faster = model.lmm.model.faster_token
    assert (faster is not None) == (name == "faster")
    assert faster is None or faster.grad.abs().max() > 0
    wrong = replace(toy.sample(), layout=toy.sample().layout)
    with pytest.raises(ValueError, match="<video>: found"):
        model(**toy.batch([wrong, toy.sample((4,))]) | {"visuals": toy.sample(**changes).visuals})


@torch.no_grad()
def test_position_ids_pack_samples_that_do_not_see_each_other(toy, model):
    samples = toy.mixed()[:3]
    length = sum(len(sample.input_ids) for sample in samples)
    ids = torch.cat([sample.input_ids for sample in samples])[None]
    positions = torch.cat([torch.arange(len(sample.input_ids)) for sample in samples])[None]
    visuals = toy.family().collate_visuals([sample.visuals for sample in samples])
    packed = model(ids, position_ids=positions, visuals=visuals).logits[0]
    assert len(packed) == length
    start = 0
    for sample in samples:
        alone = model(**{key: toy.batch([sample])[key] for key in ("input_ids", "attention_mask", "visuals")}).logits[0]
        torch.testing.assert_close(packed[start : start + len(alone)], alone, rtol=1e-5, atol=1e-5)
        start += len(alone)
