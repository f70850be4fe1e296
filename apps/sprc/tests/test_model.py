"""The composed model: inputs, invariances, what is trained, the switches."""

import pytest
import torch
from sprc.losses import best_similarity
from transformers import Blip2VisionConfig, Blip2VisionModel


def test_output_has_the_promised_shapes(toy_model, model):
    output = model(**toy_model.batch())
    assert output.query_features.shape == output.prompt_features.shape == (3, 8)
    assert output.target_features.shape == (3, 3, 8)
    for features in (output.query_features, output.prompt_features, output.target_features):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))
    weights = {name: term.weight for name, term in output.losses.items() if term.weight}
    assert weights == {"itc": 1.0, "rtc": 0.4, "align": 0.4, "region": 0.5}
    assert output.loss.dtype == torch.float32


def test_loss_is_the_weighted_sum_and_monitors_are_only_for_the_log(toy_model, model):
    output = model(**toy_model.batch())
    means = output.losses.means()
    expected = means["itc"] + 0.4 * means["rtc"] + 0.4 * means["align"] + 0.5 * means["region"]
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert means["temperature"] == pytest.approx(0.07)
    assert means["region_pairs"] == 3
    assert {"region_positive_similarity", "region_recall_at_1"} <= set(means)


def test_what_was_dropped_is_logged_by_reason_and_trains_nothing(toy_model, model):
    batch = toy_model.batch()
    expected = model(**batch).loss
    output = model(**batch, dropped_regions=torch.tensor([[1, 0, 2, 0], [0, 0, 3, 0], [0, 1, 0, 0]]))
    means = output.losses.means()
    reasons = ("no_partner", "not_visible", "too_small", "over_cap")
    # Per triplet, so that the number does not depend on how a batch is split.
    expected_means = pytest.approx([1 / 3, 1 / 3, 5 / 3, 0.0])
    assert [means[f"region_dropped_{reason}"] for reason in reasons] == expected_means
    torch.testing.assert_close(output.loss, expected)


def test_region_items_are_counted_by_weight(toy_model, model):
    batch = toy_model.batch()
    assert float(model(**batch).losses["region"].count) == pytest.approx(batch["pair_weights"].sum().item())


def test_counts_of_the_step_scale_each_term(toy_model, model):
    counts = {"itc": 6.0, "rtc": 6.0, "align": 6.0, "region": 8.0, "unknown": 1.0}
    output = model(**toy_model.batch(), loss_counts=counts)
    sums = {name: term.total.item() for name, term in output.losses.items()}
    expected = (sums["itc"] + 0.4 * sums["rtc"] + 0.4 * sums["align"]) / 6 + 0.5 * sums["region"] / 8
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_forgotten_count_is_an_error(toy_model, model):
    with pytest.raises(ValueError, match="'itc'"):
        model(**toy_model.batch(), loss_counts={"rtc": 3, "align": 3, "region": 3})
    with pytest.raises(ValueError, match="'region'"):
        model(**toy_model.batch(), loss_counts={"itc": 3, "rtc": 3, "align": 3})


def test_without_targets_there_are_queries_only(toy_model, model):
    batch = toy_model.batch(owners=None)
    full = model(**batch)
    output = model(**{name: value for name, value in batch.items() if not name.startswith("target")})
    assert output.loss is None
    assert output.losses is None
    assert output.target_features is None
    torch.testing.assert_close(output.query_features, full.query_features)


def test_a_batch_gives_what_its_samples_give_alone(toy_model, model):
    batch = toy_model.batch(owners=None)
    with torch.no_grad():
        together = model(**batch)
        for row in range(3):
            alone = model(**{name: value[row : row + 1] for name, value in batch.items()})
            for name in ("query_features", "prompt_features", "target_features"):
                torch.testing.assert_close(alone[name][0], together[name][row], atol=1e-5, rtol=1e-5)


def test_inference_gives_the_features_of_training(toy_model, model):
    batch = toy_model.batch(owners=None)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        output = model(**batch)
        reference = model.image_tokens(batch["reference_images"])
        torch.testing.assert_close(model.compose(reference, ids, mask), output.query_features)
        torch.testing.assert_close(model.text_only(ids, mask), output.prompt_features)
        targets = model.encode_targets(model.image_tokens(batch["target_images"]))
        torch.testing.assert_close(targets, output.target_features)
        torch.testing.assert_close(model.image_only(reference).norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cached_tokens_give_the_loss_of_images(toy_model, model, dtype):
    batch = toy_model.batch()
    expected = model(**batch).losses.means()
    for side in ("reference", "target"):
        batch[f"{side}_tokens"] = model.image_tokens(batch.pop(f"{side}_images")).to(dtype)
    found = model(**batch).losses.means()
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_tokens_are_those_before_the_norm(toy_model, model):
    """`post_layernorm` must not be in them: the norm behind the tower is trained, and would be applied twice."""
    images = toy_model.batch()["reference_images"]
    whole = Blip2VisionModel._from_config(Blip2VisionConfig(**toy_model.vision)).eval()
    missing, unexpected = whole.load_state_dict(model.vision_tower.state_dict(), strict=False)
    assert (missing, unexpected) == (["post_layernorm.weight", "post_layernorm.bias"], [])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in model.config.normalisation)
    with torch.no_grad():
        output = whole((images / 255 - mean) / std, output_hidden_states=True)
    torch.testing.assert_close(model.image_tokens(images), output.hidden_states[-1])
    assert (model.image_tokens(images) - output.last_hidden_state).abs().max() > 0.1


def test_normalised_images_are_taken_as_they_are(toy_model, model):
    images = toy_model.batch()["reference_images"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in model.config.normalisation)
    torch.testing.assert_close(model.image_tokens((images / 255 - mean) / std), model.image_tokens(images))


def test_images_need_not_be_square(toy_model, model):
    batch = toy_model.batch(side=(8, 24))
    assert model.image_tokens(batch["reference_images"]).shape == (3, 13, 16)
    assert model(**batch).loss.isfinite()


def test_equal_targets_are_no_negatives_of_each_other(toy_model, model):
    batch = toy_model.batch(owners=None)
    for name in ("target_images", "target_ids"):
        batch[name][2] = batch[name][0]
    apart = {**batch, "target_ids": torch.tensor([1, 2, 3])}
    assert model(**batch).losses.means()["itc"] < model(**apart).losses.means()["itc"]


@pytest.mark.parametrize("sides", [("reference",), ("reference", "target")])
def test_images_and_tokens_exclude_each_other(toy_model, model, sides):
    batch = toy_model.batch()
    batch["reference_tokens"] = model.image_tokens(batch["reference_images"])
    with pytest.raises(ValueError, match="reference_images or reference_tokens, got both"):
        model(**batch)
    del batch["reference_tokens"], batch["reference_images"]
    with pytest.raises(ValueError, match="reference_images or reference_tokens, got neither"):
        model(**batch)


def test_tokens_of_another_grid_are_refused(toy_model, model):
    batch = toy_model.batch()
    batch.pop("reference_images")
    batch["reference_tokens"] = torch.zeros(3, 26, 16)
    with pytest.raises(ValueError, match="reference_tokens: got 26 tokens per image, expected 17"):
        model(**batch)


# What is trained ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["qformer", "tokens", "value"])
@pytest.mark.parametrize("owners", [(0, 0, 2), (), None], ids=["pairs", "no pairs", "no boxes"])
@pytest.mark.parametrize("switched_on", [True, False], ids=["on", "off"])
def test_every_trainable_parameter_has_a_gradient(toy_model, mode, owners, switched_on):
    """Also on a rank without regions, and with the region loss off: otherwise other ranks wait for it."""
    model = toy_model.model(region_mode=mode).train()
    model.use_region_loss = switched_on
    model(**toy_model.batch(owners=owners)).loss.backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert without == []
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_the_tower_is_frozen(toy_model):
    model = toy_model.model().train()
    assert not any(value.requires_grad for value in model.vision_tower.parameters())
    assert not any(module.training for module in model.vision_tower.modules())
    assert model.composer.training
    model(**toy_model.batch()).loss.backward()
    assert all(value.grad is None for value in model.vision_tower.parameters())
    assert model.ln_vision.weight.grad.abs().sum() > 0


def test_the_tower_may_have_another_dtype(toy_model):
    model = toy_model.model(vision_dtype="bfloat16")
    assert {value.dtype for value in model.vision_tower.parameters()} == {torch.bfloat16}
    assert model.ln_vision.weight.dtype == model.composer.vision_projection.weight.dtype == torch.float32
    batch = toy_model.batch()
    assert model.image_tokens(batch["reference_images"]).dtype == torch.bfloat16
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("mode", ["qformer", "tokens", "value"])
def test_bfloat16_stays_close_to_float32(toy_model, mode):
    model = toy_model.model(region_mode=mode)
    batch = toy_model.batch()
    expected = model(**batch).losses.means()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch).losses.means()
    assert {name: found[name] for name in ("itc", "rtc", "align", "region")} == pytest.approx(
        {name: expected[name] for name in ("itc", "rtc", "align", "region")}, abs=0.15
    )
    with torch.no_grad():
        assert model.bfloat16()(**batch).loss.isfinite()


def test_a_new_model_is_not_degenerate(toy_model, model):
    """transformers' own initial values make all tokens and all queries equal."""
    tokens = model.image_tokens(toy_model.batch()["reference_images"])
    assert (tokens[0] - tokens[1]).std() > 0.1
    assert tokens[0].std(dim=0).mean() > 0.1
    queries = model.composer.query_tokens.weight
    assert torch.pdist(queries).min() > 0.01
    with torch.no_grad():
        features = model.encode_targets(tokens)
    scores = best_similarity(features[:, 0], features)
    assert scores.std() > 1e-4


# The region loss's switches -------------------------------------------------------------------------------------------


def test_the_switch_works_at_run_time(toy_model):
    model = toy_model.model(use_region_loss=False)
    batch = toy_model.batch()
    assert set(model(**batch).losses) == {"itc", "rtc", "align", "temperature"}
    model.use_region_loss = True
    on = model(**batch).losses
    assert on.means()["region"] > 0
    model.region_weight = 0.0
    assert "region" not in model(**batch).losses


def test_the_region_weight_may_change(toy_model):
    model = toy_model.model()
    batch = toy_model.batch()
    full = model(**batch)
    model.region_weight = 0.25
    half = model(**batch)
    assert (full.loss - half.loss).item() == pytest.approx(0.25 * full.losses.means()["region"], rel=1e-4)


@pytest.mark.parametrize("owners", [(), None], ids=["no pairs", "no boxes"])
def test_without_pairs_the_region_term_does_not_apply(toy_model, model, owners):
    counts = {"itc": 3, "rtc": 3, "align": 3} | ({} if owners is None else {"region": 0.0})
    with_switch = model(**toy_model.batch(owners=owners), loss_counts=counts)
    assert float(with_switch.losses["region"].count) == 0
    assert "region" not in with_switch.losses.means()
    assert with_switch.losses["region"].total.requires_grad
    without = model(**toy_model.batch(owners=None)).losses.means()
    assert with_switch.loss.item() == pytest.approx(without["itc"] + 0.4 * without["rtc"] + 0.4 * without["align"])


def test_boxes_of_one_side_are_refused(toy_model, model):
    batch = toy_model.batch()
    del batch["target_boxes"]
    with pytest.raises(ValueError, match="got no target_boxes"):
        model(**batch)


def test_images_without_numbers_are_taken_to_differ(toy_model, model):
    batch = toy_model.batch()
    expected = model(**batch).losses.means()
    for name in ("reference_ids", "target_ids", "pair_weights"):
        del batch[name]
    found = model(**batch, record_ids=["a", "b", "c"]).losses.means()
    assert found["itc"] == pytest.approx(expected["itc"])
    assert found["region_positive_similarity"] == pytest.approx(expected["region_positive_similarity"])
