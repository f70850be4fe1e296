"""Conversations and pictures as the model reads them."""

import numpy as np
import pytest
import torch
from region_core.geometry import GEOMETRY_NAMES
from spatialrgpt.configuration import DEPTH_TOKEN, IGNORED_LABEL, IMAGE_TOKEN, MASK_TOKEN
from spatialrgpt.processing import SpatialRGPTProcessor
from spatialrgpt.tokenizer import ASSISTANT, END, USER
from transformers import AutoProcessor

IMAGE_TOKENS = 4  # a grid of 4 x 4, folded by 2 x 2


def turns(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[position % 2], "content": content} for position, content in enumerate(contents)]


def encode(processor, *contents, num_images=1, depth=(), where="here"):
    return processor.encode(turns(*contents), num_images=num_images, region_has_depth=depth, where=where)


def spelled(processor, ids) -> str:
    return processor.tokenizer.decode(ids.tolist() if torch.is_tensor(ids) else ids)


def count(processor, encoded, token: str) -> int:
    return int((encoded.input_ids == processor.tokenizer.convert_tokens_to_ids(token)).sum())


def test_every_placeholder_is_written_as_often_as_the_model_needs_it(processor):
    encoded = encode(processor, "<image>\nfar <mask> from <mask>", "It is 2 m.", depth=(True, True))
    assert count(processor, encoded, IMAGE_TOKEN) == IMAGE_TOKENS
    assert count(processor, encoded, MASK_TOKEN) == 2
    assert count(processor, encoded, DEPTH_TOKEN) == 2


def test_depth_follows_the_regions_whose_image_has_it(processor):
    encoded = encode(processor, "<mask> a <mask> b <mask>", depth=(True, False, True))
    text = spelled(processor, encoded.input_ids)
    assert f"{MASK_TOKEN}{DEPTH_TOKEN} a {MASK_TOKEN} b {MASK_TOKEN}{DEPTH_TOKEN}" in text


def test_depth_is_not_written_for_a_model_without_it(toy):
    encoded = encode(toy.processor(enable_depth=False), "<mask>", depth=(True,))
    assert count(toy.processor(), encoded, DEPTH_TOKEN) == 0


@pytest.mark.parametrize(
    ("content", "num_images", "expected"),
    [
        ("far?", 1, "{0}\nfar?"),
        ("<image>\nfar?", 1, "{0}\nfar?"),
        ("far? <image>", 1, "far? {0}"),
        ("far? <image>", 2, "{0}\nfar? {0}"),
        ("far?", 0, "far?"),
    ],
)
def test_images_that_are_not_mentioned_come_first(processor, content, num_images, expected):
    encoded = encode(processor, content, num_images=num_images)
    image = IMAGE_TOKEN * IMAGE_TOKENS
    assert spelled(processor, encoded.input_ids) == USER + expected.format(image) + ASSISTANT


def test_images_are_put_before_the_first_turn_of_a_long_conversation(processor):
    encoded = encode(processor, "a", "b", "c", num_images=1)
    image = IMAGE_TOKEN * IMAGE_TOKENS
    assert spelled(processor, encoded.input_ids) == f"{USER}{image}\na{ASSISTANT}b{END}{USER}c{ASSISTANT}"


def test_labels_are_the_assistants_words_and_nothing_else(processor):
    encoded = encode(processor, "<mask> one", "first", "two", "second", depth=(True,))
    kept = encoded.labels != IGNORED_LABEL
    assert spelled(processor, encoded.labels[kept]) == f"first{END}second{END}"
    assert torch.equal(encoded.labels[kept], encoded.input_ids[kept])


def test_the_question_ends_where_the_first_answer_begins(processor):
    prompt = encode(processor, "far <mask>?", depth=(True,))
    answered = encode(processor, "far <mask>?", "no", "why?", "so", depth=(True,))
    assert prompt.question_position == answered.question_position == len(prompt.input_ids) - 1
    assert torch.equal(answered.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert spelled(processor, answered.input_ids[: answered.question_position + 1]).endswith(ASSISTANT)
    assert (answered.labels[: answered.question_position + 1] == IGNORED_LABEL).all()
    assert answered.labels[answered.question_position + 1] != IGNORED_LABEL
    assert (prompt.labels == IGNORED_LABEL).all()


@pytest.mark.parametrize(  # T46
    ("content", "num_images", "depth", "message"),
    [
        ("<mask> <mask>", 1, (True,), r"val.json, record 3: found 2 '<mask>' in the text, expected 1"),
        ("<mask>", 1, (True, True), r"val.json, record 3: found 1 '<mask>' in the text, expected 2"),
        ("far?", 1, (False,), r"val.json, record 3: found 0 '<mask>' in the text, expected 1"),
        ("<image><image>", 1, (), r"val.json, record 3: found 2 '<image>' in the text, expected 1"),
        ("<image>", 0, (), r"val.json, record 3: found 1 '<image>' in the text, expected 0"),
        ("<mask><depth>", 1, (True,), r"val.json, record 3: the text holds '<depth>'"),
    ],
)
def test_mentions_and_things_that_differ_in_number_are_an_error(processor, content, num_images, depth, message):
    with pytest.raises(ValueError, match=message):
        encode(processor, content, "yes", num_images=num_images, depth=depth, where="val.json, record 3")


def test_a_chat_template_that_rewrites_earlier_turns_is_refused(toy):
    processor = toy.processor()
    rewriting = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    processor.tokenizer = type(toy.tokenizer)(
        tokenizer_object=toy.tokenizer.backend_tokenizer, chat_template=rewriting, pad_token="<pad>"
    )
    with pytest.raises(ValueError, match=r"record 7: the tokenizer's chat template rewrites earlier turns"):
        encode(processor, "a", "b", where="record 7")


def test_pictures_come_to_the_towers_size_without_a_crop(processor):
    image = np.zeros((24, 48, 3), dtype=np.uint8)
    image[:, 24:] = 200
    resized = processor.resize_image(image)
    assert resized.shape == (3, 32, 32)
    assert resized.dtype == torch.uint8
    assert (resized[:, :, 0] == 0).all()
    assert (resized[:, :, -1] == 200).all()


def test_depth_becomes_three_equal_channels_of_bytes(processor):
    depth = np.full((10, 20), 0.5, dtype=np.float32)
    depth[:, 10:] = 1.0
    resized = processor.resize_depth(depth)
    assert resized.shape == (3, 32, 32)
    assert (resized[0] == resized[1]).all()
    assert (resized[0] == resized[2]).all()
    assert resized[0, 5, 0] == 128  # 127.5, rounded to even
    assert resized[0, 5, -1] == 255


def test_masks_keep_their_share_of_the_picture(processor):
    masks = np.zeros((2, 24, 32), dtype=bool)
    masks[0, :12, :16] = True
    masks[1, 5, 7] = True
    grid, geometry = processor.encode_regions(masks, None)
    assert grid.shape == (2, 8, 8)
    torch.testing.assert_close(grid.mean((1, 2)), torch.tensor([0.25, 1 / (24 * 32)]))
    assert grid[1].max() > 0  # T44: a single pixel is not lost
    named = dict(zip(GEOMETRY_NAMES, geometry[0].tolist(), strict=True))
    assert named == pytest.approx(
        {"centre_x": 0.25, "centre_y": 0.25, "width": 0.5, "height": 0.5, "area": 0.25}
        | {"depth": 0.0, "sideways_x": 0.0, "sideways_y": 0.0}
    )


def test_the_depth_of_a_region_is_the_mean_under_its_mask_whatever_the_maps_size(processor):
    masks = np.zeros((1, 24, 32), dtype=bool)
    masks[0, :, 16:] = True
    depth = np.zeros((6, 8), dtype=np.float32)
    depth[:3, 4:], depth[3:, 4:] = 0.2, 0.6
    _, geometry = processor.encode_regions(masks, depth)
    assert geometry[0, GEOMETRY_NAMES.index("depth")].item() == pytest.approx(0.4)


def test_a_saved_processor_is_the_same_processor(toy, tmp_path):
    toy.processor(enable_depth=False, projector_downsample=3).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, SpatialRGPTProcessor)
    assert (loaded.image_size, loaded.region_grid, loaded.num_image_tokens) == ([32, 32], [8, 8], 4)
    assert loaded.enable_depth is False
    assert torch.equal(encode(loaded, "<image> far?").input_ids, encode(toy.processor(), "<image> far?").input_ids)
