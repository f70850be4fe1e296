"""`VideoLMM`: mixed batches, padding, losses, gradients, generation, and what the reconstruction module may change."""

import pytest
import torch
from lmms.building import parts_of
from video_autoregressive.config import AutoregressiveConfig


def batch_of(toy, **options: object) -> dict:
    return toy.batch(toy.mixed(), **options)


def test_a_mixed_batch_runs(each):
    model = each.model()
    output = model(**batch_of(each))
    assert output.loss.isfinite()
    assert list(output.losses) == ["main", "autoregressive", "autoregressive_copy"]
    assert output.logits is None
    config = model.config.autoregressive
    frames = batch_of(each)["frames"]
    assert output.autoregressive.num_targets == frames.num_targets(config) > 0
    expected = output.losses.mean("main") + config.loss_weight * output.losses.mean("autoregressive")
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_its_samples_give_alone(each, side):
    model, samples = each.model(), each.mixed()
    batch = each.batch(samples, side=side)
    together = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "visuals")}).logits
    losses, count = 0.0, 0
    for row, sample in enumerate(samples):
        alone = each.batch([sample])
        logits = model(**{key: alone[key] for key in ("input_ids", "attention_mask", "visuals")}).logits[0]
        true = batch["attention_mask"][row].bool()
        torch.testing.assert_close(together[row][true], logits, rtol=1e-4, atol=1e-4)
        terms = model(**alone).losses
        losses, count = losses + terms["autoregressive"].total, count + terms["autoregressive"].count
    terms = model(**batch).losses
    torch.testing.assert_close(terms["autoregressive"].total, losses, rtol=1e-4, atol=1e-4)
    assert terms["autoregressive"].count == count


@pytest.mark.parametrize("kind", ["mixed", "text", "images", "one frame"])
def test_every_trained_parameter_has_a_gradient(each, kind):
    model = each.model(frozen_parts=())
    samples = {
        "mixed": each.mixed,
        "text": lambda: [each.sample(()), each.sample((), seed=1)],
        "images": lambda: [each.sample((), images=1), each.sample((), images=2)],
        "one frame": lambda: [each.sample((1,))],
    }[kind]()
    output = model.train()(**each.batch(samples))
    output.loss.backward()
    assert [name for name, entry in model.named_parameters() if entry.grad is None] == []
    assert all(entry.grad.isfinite().all() for entry in model.parameters())
    if kind != "mixed":
        assert output.autoregressive.num_targets == 0
        assert output.losses.means().keys() == {"main"}
        assert all(not p.grad.any() for p in model.autoregressive_module.parameters())


def test_gradients_reach_every_part(each):
    model = each.model(frozen_parts=())
    model.train()(**batch_of(each)).loss.backward()
    for part, prefixes in parts_of(model.config).items():
        moved = [entry.grad.abs().max() for name, entry in model.named_parameters() if name.startswith(prefixes)]
        assert max(moved) > 0, part


def test_labels_of_nothing_keep_the_word_head_in_the_graph(toy):
    model, batch = toy.model(), toy.batch([toy.sample()])
    batch["labels"].fill_(-100)
    output = model(**batch)
    output.loss.backward()
    assert output.losses["main"].count == 0
    assert model.lmm.lm_head.weight.grad is not None


@pytest.mark.parametrize("how", ["weight 0", "off"])
def test_without_its_weight_the_main_gradients_are_bit_identical(each, how):
    batch = batch_of(each)
    with_module, without = each.model(), each.model(enable_autoregressive=False)
    without.load_state_dict({key: value for key, value in with_module.state_dict().items() if key.startswith("lmm.")})
    without.train()(**batch).loss.backward()
    weight = 0.0 if how == "weight 0" else 0.1
    output = with_module.train()(**batch, autoregressive_weight=weight)
    (output.loss if how == "weight 0" else output.losses["main"].total / output.losses["main"].count).backward()
    expected = dict(without.named_parameters())
    for name, entry in with_module.named_parameters():
        if name in expected and entry.requires_grad:
            assert torch.equal(entry.grad, expected[name].grad), name


def test_no_teacher_tensor_is_anywhere(each):
    for frozen, kind in ((("vision_tower",), "shared"), ((), "snapshot")):
        model = each.model(frozen_parts=frozen)
        plain = each.model(enable_autoregressive=False, frozen_parts=frozen)
        own = {name for name in model.state_dict() if not name.startswith("lmm.")}
        assert model.config.teacher["kind"] == model.autoregressive_module.teacher.kind == kind
        assert {name for name in model.state_dict() if name.startswith("lmm.")} == set(plain.state_dict())
        assert own == {f"autoregressive_module.{name}" for name in model.autoregressive_module.state_dict()}
        assert all(name.startswith("autoregressive_module.predictor.") for name in own)
        assert len(list(model.parameters())) == len(dict(model.named_parameters()))
        assert not any("teacher" in name for name, _ in model.named_modules())


def test_a_snapshot_equals_the_shared_tower_and_stays_as_it_was(each):
    shared, snapshot = each.model(), each.model(frozen_parts=())
    batch = batch_of(each)
    torch.testing.assert_close(snapshot(**batch).loss, shared(**batch).loss)
    before = snapshot.encode_frames(batch["visuals"])
    torch.testing.assert_close(before.rows, shared.encode_frames(batch["visuals"]).rows)
    for parameter in snapshot.backbone.tower(snapshot.lmm).parameters():
        parameter.data.add_(0.1)
    assert torch.equal(snapshot.encode_frames(batch["visuals"]).rows, before.rows)


def test_a_trained_tower_is_not_its_own_teacher(toy):
    model = toy.model()
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="the teacher is the model's own tower, which is trained"):
        model.train()(**batch_of(toy))


@torch.no_grad()
def test_generation_answers_a_mixed_batch_as_each_alone(each):
    model = each.model()
    samples = [
        each.sample(videos, images=images, seed=seed, answer=None)
        for seed, (videos, images) in enumerate([((3,), 0), ((), 2), ((), 0), ((2,), 1)])
    ]
    batch = each.batch(samples, side="left")
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": each.tokenizer.pad_token_id,
        "eos_token_id": None,
    }
    together = model.generate(batch["input_ids"], batch["attention_mask"], visuals=batch["visuals"], **options)
    assert together.shape == (4, 4)
    for row, sample in enumerate(samples):
        alone = each.batch([sample])
        found = model.generate(alone["input_ids"], alone["attention_mask"], visuals=alone["visuals"], **options)
        assert torch.equal(found[0], together[row])
        ids = alone["input_ids"]
        for token in found[0]:  # without a cache
            mask = torch.ones_like(ids)
            logits = model(ids, mask, visuals=alone["visuals"]).logits[0, -1]
            assert logits.argmax() == token
            ids = torch.cat([ids, token.view(1, 1)], dim=1)


@torch.no_grad()
def test_the_layer_that_is_read_can_be_chosen(each):
    batch = batch_of(each)
    last = each.model()
    for layer in (2, -1):
        other = each.model(autoregressive_config=each.autoregressive(hidden_layer=layer))
        torch.testing.assert_close(other(**batch).loss, last(**batch).loss)
    middle = each.model(autoregressive_config=each.autoregressive(hidden_layer=1))
    reading = middle.backbone.read(middle.lmm, batch["input_ids"], batch["attention_mask"], None, batch["visuals"])
    assert not torch.equal(reading.layer, reading.hidden)
    assert middle(**batch).loss != last(**batch).loss
    wrong = each.model(autoregressive_config=each.autoregressive(hidden_layer=3))
    with pytest.raises(ValueError, match="hidden_layer: got 3, expected 1 to 2"):
        wrong(**batch)


def test_unknown_visuals_are_refused(toy):
    batch = toy.batch([toy.sample()])
    with pytest.raises(ValueError, match="visuals: got pixel_values, llava_onevision knows video_frames"):
        toy.model()(batch["input_ids"], visuals={"pixel_values": torch.zeros(1)})


def test_the_frames_must_be_those_of_the_visuals(toy):
    batch = toy.batch([toy.sample((3,))])
    other = toy.batch([toy.sample((4,))])["frames"]
    with pytest.raises(ValueError, match="layout"):
        toy.model()(**{**batch, "frames": other})


def test_the_guides_attributes_are_there(toy):
    model = toy.model()
    assert hasattr(model, "autoregressive_module")
    assert model.autoregressive_module.loss_weight == AutoregressiveConfig().loss_weight
    assert not model.autoregressive_module.enable_multiscale_pooling


def test_bf16_weights_train(each):  # what DeepSpeed's bf16 makes of a model
    model = each.model(frozen_parts=()).to(torch.bfloat16)
    output = model.train()(**batch_of(each))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(entry.grad.isfinite().all() for entry in model.parameters())


def test_activation_checkpointing_changes_nothing(each):
    batch = batch_of(each)
    gradients = []
    for checkpointing in (False, True):
        model = each.model(autoregressive_config=each.autoregressive(hidden_layer=1)).train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model(**batch).loss.backward()
        gradients.append({name: entry.grad for name, entry in model.named_parameters() if entry.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)
