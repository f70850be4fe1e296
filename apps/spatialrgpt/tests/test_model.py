"""The composed model: every combination of inputs, padding, gradients, switches, other towers and language models."""

from dataclasses import replace

import pytest
import torch
from region_heads.decoding import decode
from region_heads.tasks import TaskType
from spatialrgpt.config import BackboneSettings
from torch import nn

COMBINATIONS = {
    "one image with depth": [((0, 0), (True,)), ((0,), (True,))],
    "no depth": [((0, 0), (False,)), ((0,), (False,))],
    "no regions": [((), (True,)), ((), (False,))],
    "image-free": [((), ()), ((), ())],
    "several images": [((1, 0, 1), (True, False)), ((0, 2), (False, True, True))],
    "mixed": [((0, 0), (True,)), ((1, 0, 0), (False, True)), ((), (True,)), ((), ()), ((0,), (False,))],
}
TASKS = [TaskType.COUNTING, TaskType.DISTANCE, TaskType.LEFT_RIGHT, TaskType.MULTIPLE_CHOICE, None]


def samples_of(toy, name: str, **options: object) -> list:
    return [
        toy.sample(
            regions, depths=depths, seed=seed, task=TASKS[seed], words="how far" if seed % 2 else "near", **options
        )
        for seed, (regions, depths) in enumerate(COMBINATIONS[name])
    ]


def answers(output) -> list:
    return [None if answer is None else answer.value for answer in decode(output.regions)]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_runs(toy, model, name):
    samples = samples_of(toy, name)
    batch = toy.batch(samples)
    output = model(**batch)
    assert output.logits.shape == (*batch["input_ids"].shape, 300)
    assert output.logits.isfinite().all()
    assert output.loss.isfinite()
    assert output.losses["lm"].count > 0
    assert output.loss.item() == pytest.approx(sum(output.losses.means().values()), rel=1e-5)
    assert [answer is None for answer in answers(output)] == [sample.task_type < 0 for sample in samples]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_batch_gives_what_its_samples_give_alone(toy, model, name, side):
    samples = samples_of(toy, name)
    batch = toy.batch(samples, side=side)
    with torch.no_grad():
        together = model(**batch)
        for row, sample in enumerate(samples):
            alone = model(**toy.batch([sample]))
            true = batch["attention_mask"][row].bool()
            torch.testing.assert_close(together.logits[row][true], alone.logits[0], atol=1e-4, rtol=1e-4)
            for name_of_task, output in alone.regions.outputs.items():
                position = together.regions.rows[name_of_task].tolist().index(row)
                found = head_values(together.regions.outputs[name_of_task])[position]
                regions = len(sample.region_masks)
                expected = head_values(output)[0]
                torch.testing.assert_close(found[: max(regions, 1)], expected[: max(regions, 1)], atol=1e-4, rtol=1e-4)


def head_values(output) -> torch.Tensor:
    """One row of numbers per question: metres, or a score per side, region or count."""
    values = {name: value for name, value in vars(output).items() if torch.is_tensor(value)}
    for name in ("distance_m", "logits", "log_probabilities"):
        if name in values:
            return values[name].reshape(values[name].shape[0], -1)
    raise AssertionError(f"no values in {list(values)}")


@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.parametrize("switches", [{}, {"vision_feature_layer": -1, "refine_depth": True}], ids=["plain", "refined"])
def test_every_parameter_has_a_gradient(toy, name, switches):  # T38
    model = toy.model(**switches)
    model.train()(**toy.batch(samples_of(toy, name))).loss.backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_gradients_reach_what_a_region_is_made_of(toy):
    model = toy.model()
    model(**toy.batch(samples_of(toy, "mixed"))).loss.backward()
    for part in ("vision_tower", "projector", "region_encoder", "language_model", "region_heads", "head_geometry"):
        moved = [p.grad.abs().max() for key, p in model.named_parameters() if key.startswith(f"{part}.")]
        assert max(moved) > 0, part


@torch.no_grad()
def test_the_heads_read_the_states_of_regions_and_of_the_words_of_the_question(toy):  # T18, T19
    model = toy.model()
    samples, seen = samples_of(toy, "mixed"), {}

    def note_states(module, args, output) -> None:
        seen["hidden"] = output.last_hidden_state

    def note_heads(module, args, kwargs) -> None:
        seen.update(kwargs, features=args[0])

    model.language_model.base_model.register_forward_hook(note_states)
    model.region_heads.register_forward_pre_hook(note_heads, with_kwargs=True)
    batch = toy.batch(samples, side="left")
    model(**batch)
    placeholders = [model.config.image_token_id, model.config.mask_token_id, model.config.depth_token_id]
    _, mask_id, depth_id = placeholders
    geometry = iter(model.head_geometry(batch["region_geometry"]))
    for row, ids in enumerate(batch["input_ids"].tolist()):
        states, expected = seen["hidden"][row], []
        for position, token in enumerate(ids):
            if token == mask_id:
                at_depth = states[position + 1] if ids[position + 1] == depth_id else 0
                expected.append(states[position] + at_depth + next(geometry))
        count = len(samples[row].region_masks)
        assert seen["region_mask"][row].tolist() == [True] * count + [False] * (len(seen["region_mask"][row]) - count)
        for region, feature in enumerate(expected):
            torch.testing.assert_close(seen["features"][row, region], feature)
        end = int(batch["question_positions"][row])
        start = ids.index(next(token for token in ids if token != toy.tokenizer.pad_token_id))
        words = [states[place] for place in range(start, end + 1) if ids[place] not in placeholders]
        torch.testing.assert_close(seen["question"][row], states[end] + torch.stack(words).mean(0))


def test_labels_and_targets_are_each_enough_alone(toy, model):  # T11
    batch = toy.batch(samples_of(toy, "mixed"))
    words = model(**{key: value for key, value in batch.items() if key != "region_targets"})
    assert list(words.losses.means()) == ["lm"]
    typed = model(**{key: value for key, value in batch.items() if key != "labels"})
    assert "lm" not in typed.losses
    assert {"counting", "distance"} <= set(typed.losses.means())
    both = model(**batch)
    torch.testing.assert_close(both.loss, words.loss + typed.loss)
    nothing = toy.model(enable_region_heads=False)(**prompt_of(batch))
    assert nothing.loss is None
    assert nothing.losses is None


def prompt_of(batch: dict) -> dict:
    return {key: value for key, value in batch.items() if key not in ("labels", "region_targets")}


def test_the_weight_of_the_language_models_loss_counts(toy):
    batch = toy.batch(samples_of(toy, "one image with depth"), heads=False)
    losses = [toy.model(lm_loss_weight=weight, enable_region_heads=False)(**batch).loss for weight in (1.0, 0.25)]
    torch.testing.assert_close(losses[1], losses[0] / 4)


def test_counts_of_the_whole_step_take_the_place_of_the_batchs_own(toy, model):
    batch = toy.batch(samples_of(toy, "mixed"))
    output = model(**batch)
    doubled = {name: 2.0 * int(term.count) for name, term in output.losses.items()}
    torch.testing.assert_close(model(**batch, loss_counts=doubled).loss, output.loss / 2)


@pytest.mark.parametrize(
    "switches",
    [
        {"enable_region": False},
        {"enable_depth": False},
        {"enable_region_enhancer": False},
        {"enable_region_heads": False},
        {"region_geometry": False},
        {"enable_region": False, "enable_depth": False, "enable_region_heads": False},
    ],
    ids=lambda switches: "+".join(switches),
)
def test_each_switch_takes_its_part_away_and_the_rest_works(toy, switches):
    model, processor = toy.model(**switches), toy.processor(**switches)
    assert (model.region_encoder is None) == ("enable_region" in switches)
    assert (model.region_heads is None) == ("enable_region_heads" in switches)
    keys = model.state_dict()
    if "enable_depth" in switches:
        assert not [key for key in keys if "depth" in key]
    if "enable_region_enhancer" in switches:
        assert not [key for key in keys if "enhancer" in key]
    if "region_geometry" in switches:
        assert not [key for key in keys if "geometry" in key]
    for name in ("mixed", "image-free"):
        output = model(**toy.batch(samples_of(toy, name, processor=processor)))
        assert output.loss.isfinite()
        assert (output.regions is None) == ("enable_region_heads" in switches)
    output.loss.backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_depth_and_regions_change_what_is_said(toy, model):
    batch = toy.batch([toy.sample((0, 0))])
    logits = model(**batch).logits
    for key in ("depth_values", "region_masks", "region_geometry", "pixel_values"):
        other = batch | {key: torch.flip(batch[key], dims=[-1])}
        assert (model(**other).logits - logits).abs().max() > 1e-5, key


def test_a_mention_too_many_is_an_error_that_says_where(toy, model):  # T46
    batch = toy.batch(samples_of(toy, "one image with depth"))
    for key in ("region_masks", "region_images", "region_geometry"):
        batch[key] = batch[key][:-1]
    with pytest.raises(ValueError, match=r"<mask>: found 3 in the batch, expected 2"):
        model(**batch)
    batch = toy.batch(samples_of(toy, "one image with depth"))
    batch["input_ids"][0, 0] = model.config.image_token_id
    with pytest.raises(ValueError, match=r"<image>: found 9 in the batch, expected 8"):
        model(**batch)


def test_pixels_may_come_as_bytes_or_normalised(toy, model):
    batch = toy.batch([toy.sample((0,))])
    normalised = {key: (batch[key].float() / 255 - 0.5) / 0.5 for key in ("pixel_values", "depth_values")}
    torch.testing.assert_close(model(**batch | normalised).logits, model(**batch).logits)


def test_recomputing_activations_gives_the_same_gradients(toy):
    gradients = []
    for recompute in (False, True):
        model = toy.model().train()
        if recompute:
            # Renamed between the oldest and the newest supported transformers.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        assert model.region_encoder.enhancer.gradient_checkpointing is recompute
        model(**toy.batch(samples_of(toy, "mixed"))).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], msg=key)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_with_an_empty_mask(toy, dtype):  # T37, T43
    model = toy.model().to(dtype)
    batch = toy.batch(samples_of(toy, "mixed"))
    batch["region_masks"][0] = 0
    output = model(**batch)
    assert output.logits.dtype == dtype
    assert output.logits.isfinite().all()
    assert output.loss.dtype == torch.float32
    assert output.loss.isfinite()


def test_autocast_is_near_full_precision(toy, model):
    batch = toy.batch(samples_of(toy, "mixed"))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch).loss
    assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.05)


VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS = {
    "clip": {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 8} | VISION,
    "vit, not square": {"model_type": "vit", "image_size": [16, 32], "patch_size": 8} | VISION,
    "dinov2 with registers": {"model_type": "dinov2_with_registers", "image_size": 32, "patch_size": 8}
    | {key: value for key, value in VISION.items() if key != "intermediate_size"},
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
LANGUAGE_MODELS = {
    "qwen2, tied": {
        "model_type": "qwen2",
        "intermediate_size": 48,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    }
    | SIZES,
    "gpt-neox": {"model_type": "gpt_neox", "intermediate_size": 48} | SIZES,
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
}


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS.keys())
def test_other_towers_compose(toy, config):
    settings = {"vision": BackboneSettings(config=config)}
    model, processor = toy.model(**settings), toy.processor(**settings)
    samples = samples_of(toy, "mixed", processor=processor)
    output = model(**toy.batch(samples))
    output.loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None and "mask_token" not in key] == []
    assert samples[0].region_masks.shape[1:] == model.config.region_grid


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", LANGUAGE_MODELS.values(), ids=LANGUAGE_MODELS.keys())
def test_other_language_models_compose_and_do_not_see_the_padding(toy, config, side):
    model = toy.model(text=BackboneSettings(config=config))
    samples = samples_of(toy, "mixed")
    batch = toy.batch(samples, side=side)
    with torch.no_grad():
        together = model(**batch)
        assert together.loss.isfinite()
        for row, sample in enumerate(samples[:3]):
            true = batch["attention_mask"][row].bool()
            alone = model(**toy.batch([sample])).logits[0]
            torch.testing.assert_close(together.logits[row][true], alone, atol=1e-4, rtol=1e-4)


def test_heads_can_be_disabled_one_by_one(toy):
    heads = replace(
        toy.settings().region_heads_cfg, counting=replace(toy.settings().region_heads_cfg.counting, enabled=False)
    )
    model = toy.model(region_heads_cfg=heads)
    output = model(**toy.batch(samples_of(toy, "one image with depth")))
    assert "counting" not in output.losses
    assert output.regions.ignored["disabled_task"] == 1


def test_the_bricks_start_as_their_constructors_make_them(toy):
    model = toy.model(open_gates=False)
    assert (model.region_encoder.enhancer.gate.gate == 0).all()
    norms = [module for module in model.region_encoder.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    assert all((norm.weight == 1).all() for norm in norms)
