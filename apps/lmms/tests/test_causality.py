"""The start-up test finds leaks, and nothing in a model without."""

import json
from dataclasses import replace

import pytest
import torch
from lmms.causality import check_batch, check_causality, check_samples
from lmms.config import DataSettings
from lmms.data import VideoDataset
from lmms.packing import PackedSample
from region_training.images import write_png
from torch.nn import functional as F


def test_every_family_is_causal(each):
    for frozen in (("vision_tower",), ()):
        model = each.model(frozen_parts=frozen)
        assert check_batch(model.train(), each.collator()(each.mixed()))
        assert model.training


def test_a_batch_without_two_frames_has_nothing_to_check(toy):
    assert not check_batch(toy.model(), toy.collator()([toy.sample(()), toy.sample((1,))]))


def test_a_language_model_that_looks_ahead_is_refused(toy):
    model = toy.model()

    def mix(module, args, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)
        return output

    model.lmm.model.language_model.register_forward_hook(mix)
    with pytest.raises(ValueError, match=r"hidden states of frame 0 .* the language model looks ahead"):
        check_batch(model, toy.collator()(toy.mixed()))


def test_a_tower_that_mixes_frames_is_refused(toy):
    model = toy.model(frozen_parts=())
    tower = model.autoregressive_module.teacher._tower

    def mix(module, args, output):
        states = output.hidden_states[-1]
        return replace_last(output, states + states.mean(0, keepdim=True))

    def replace_last(output, states):
        output.hidden_states = (*output.hidden_states[:-1], states)
        return output

    tower.register_forward_hook(mix)
    with pytest.raises(ValueError, match=r"targets of frame 0 .* the vision encoder mixes frames over time"):
        check_batch(model, toy.collator()(toy.mixed()))


def test_frames_that_are_not_read_at_their_tokens_are_refused(toy):
    batch = toy.collator()([toy.sample((3,))])
    frames = batch["frames"]
    batch["frames"] = replace(frames, tokens=F.pad(frames.tokens[:, :1] * 0, (0, 0)))  # all at the first token
    with pytest.raises(ValueError, match="are not read at their tokens"):
        check_batch(toy.model(), batch)


def test_packed_samples_must_not_see_each_other(toy):
    packed = toy.collator()([PackedSample((toy.sample((2,)), toy.sample((3,), seed=1)))])
    model = toy.model()
    assert check_batch(model, packed)
    packed["position_ids"] = torch.arange(packed["input_ids"].shape[1])[None]
    with pytest.raises(ValueError, match="samples that share a row see each other"):
        check_batch(model, packed)


def test_samples_of_another_data_set_are_looked_at(each):
    """Text and single frames say nothing; frames that are normalised already are inverted too."""
    samples = [each.sample(()), each.sample((1,), seed=1), each.sample((4,), seed=2)]
    assert check_samples(each.model(), samples, each.collator())
    assert not check_samples(each.model(), samples[:2], each.collator())
    bytes_of = {"llava_onevision": "video_frames"}.get(each.model_type, "pixel_values_videos")

    def collate(some):
        batch = each.collator()(some)
        visuals = {
            name: pixels.float() / 99 if name == bytes_of else pixels for name, pixels in batch["visuals"].items()
        }
        return batch | {"visuals": visuals}

    assert check_samples(each.model(), samples, collate)


def test_a_runs_own_data_is_looked_at(each, tmp_path):
    rows = []
    for number in range(3):
        folder = tmp_path / f"clip-{number}"
        for frame in range(3):
            write_png(folder / f"{frame}.png", each.image(seed=10 * number + frame))
        turns = [{"from": "human", "value": "<video>\nwhere?"}, {"from": "gpt", "value": "left"}]
        rows.append({"id": str(number), "video": f"clip-{number}", "conversations": turns})
    rows[0]["video"] = "not-there"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    family = each.family()
    for packing in (False, family.supports_packing):
        dataset = VideoDataset.open(DataSettings(root=str(tmp_path), packing=packing), ["train.json"], family)
        assert check_causality(each.model(), dataset)
    (tmp_path / "text.json").write_text(
        json.dumps([{"id": "0", "conversations": [{**turn, "value": "a"} for turn in turns]}])
    )
    assert not check_causality(each.model(), VideoDataset.open(DataSettings(root=str(tmp_path)), ["text.json"], family))
