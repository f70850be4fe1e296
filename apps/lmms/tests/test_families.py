"""What a clip or a picture becomes before the model sees it."""

from dataclasses import replace

import pytest
import torch
from lmms.families import FAMILIES, family_class, family_of
from transformers import LlavaOnevisionProcessor, LlavaProcessor
from video_autoregressive.config import VideoTokenConfig


def test_pixels_are_bytes_and_as_many_placeholders_as_tokens(each):
    family, clip = each.family(), each.clip(4)
    prepared = family.prepare_video(clip)
    assert {value.dtype for name, value in prepared.visuals.items() if "frames" in name or "pixel" in name} == {
        torch.uint8
    }
    assert prepared.text.count(family.placeholders[1]) == prepared.num_tokens >= prepared.spans[-1].token_end
    assert [span.video for span in prepared.spans] == [0] * len(prepared.spans)
    assert [span.source_frame for span in prepared.spans] == clip.indices.tolist()[:: 4 // len(prepared.spans)]
    pictures = family.prepare_images([each.image(), each.image(seed=1)])
    assert len(pictures.texts) == 2
    assert {value.dtype for name, value in pictures.visuals.items() if "tiles" in name or "pixel" in name} == {
        torch.uint8
    }


def test_a_clip_is_a_function_of_its_pixels_and_times(each):
    family, clip = each.family(), each.clip(4)
    one, two = family.prepare_video(clip), family.prepare_video(clip)
    assert one.text == two.text
    assert one.spans == two.spans
    assert all(torch.equal(one.visuals[name], two.visuals[name]) for name in one.visuals)
    slower = family.prepare_video(replace(clip, times=clip.times * 2))
    assert [span.time_s for span in slower.spans] == [2 * span.time_s for span in one.spans]


def test_visuals_are_packed_and_may_be_absent(each):
    family = each.family()
    video, images = family.prepare_video(each.clip(2)).visuals, family.prepare_images([each.image()]).visuals
    joined = family.collate_visuals([video, {}, images, video | images])
    assert set(joined) == set(video) | set(images)
    for name in video:
        assert torch.equal(joined[name], torch.cat([video[name], video[name]]))
    assert family.collate_visuals([{}, {}]) == {}


def test_layouts_decide_the_number_of_placeholders(toy):
    clip = toy.clip(3)
    counts = {
        "one_token": 3 * 4 + 1,
        "grid": 3 * 2 * 3,
        "frame": 3 * 5,
        "no_token": 3 * 4,
    }
    for newline, expected in counts.items():
        family = toy.family(video_tokens=VideoTokenConfig(newline=newline))
        assert family.prepare_video(clip).num_tokens == expected


def test_unknown_families_are_named_with_the_known_ones(toy):
    assert set(FAMILIES) == {"llava_onevision", "qwen2_5_vl", "qwen3_vl"}
    with pytest.raises(ValueError, match="model_type: got 'blip', expected one of llava_onevision, qwen2_5_vl, qwen3"):
        family_class("blip")
    other = LlavaProcessor(toy.processor.image_processor, toy.tokenizer)
    with pytest.raises(ValueError, match="LlavaProcessor is the processor of no known family; known are LlavaOnevis"):
        family_of(other)


def test_a_tokenizer_without_the_placeholders_is_refused(toy):
    processor = LlavaOnevisionProcessor(
        toy.processor.image_processor, toy.tokenizer, toy.processor.video_processor, num_image_tokens=16
    )
    processor.video_token = "<clip>"
    with pytest.raises(ValueError, match="the tokenizer has no token '<clip>', which llava_onevision models need"):
        family_of(processor)
