"""The three sources of region embeddings: what they read, and what their loss trains."""

import pytest
import torch
from region_core.losses import LossTerms
from roi_region_loss.contrastive import unit_rows
from sprc.reach import count_reached
from sprc.vision import value_tokens

MODES = ("qformer", "tokens", "value")


def images_of(toy_model, **options) -> torch.Tensor:
    return toy_model.batch(**options)["reference_images"]


@pytest.mark.parametrize("mode", MODES)
def test_the_count_by_name_is_what_the_gradient_reaches(toy_model, mode):
    model = toy_model.model(region_mode=mode)
    region = model(**toy_model.batch()).losses["region"].total
    trained = [value for value in model.parameters() if value.requires_grad]
    gradients = torch.autograd.grad(region, trained, allow_unused=True)
    reached = sum(value.numel() for value, grad in zip(trained, gradients, strict=True) if grad is not None)
    assert count_reached(model) == (reached, sum(value.numel() for value in trained))


def test_a_region_is_read_by_its_own_queries_alone(toy_model):
    model, whole = (toy_model.model(region_queries=number) for number in (2, 3))
    region = model(**toy_model.batch()).losses["region"].total
    (gradient,) = torch.autograd.grad(region, [model.composer.query_tokens.weight])
    assert gradient.abs().sum(dim=1).gt(0).tolist() == [True, True, False]
    assert count_reached(whole).num_reached - count_reached(model).num_reached == 16
    keys = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
    read = model.composer.project_image(keys, 2)
    torch.testing.assert_close(model.region_branch.embed(model.composer, keys), read.mean(dim=1))
    # Queries see each other, and retrieval is read by all of them.
    assert (read - model.composer.project_image(keys)[:, :2]).abs().max() > 1e-4
    assert model(**toy_model.batch()).target_features.shape == (3, 3, 8)


def test_the_match_on_the_contact_sheet_is_embedded_as_the_loss_does(toy_model):
    model = toy_model.model(region_queries=1)
    batch = toy_model.batch()
    seen = {}
    model.region_branch.loss.register_forward_pre_hook(lambda module, given: seen.update(features=given[0]))
    model(**batch)
    found = model.region_features(batch["reference_images"], batch["reference_boxes"], batch["pair_owner"])
    torch.testing.assert_close(found, unit_rows(seen["features"]), atol=1e-5, rtol=1e-5)


def test_only_the_qformer_mode_trains_what_retrieval_uses(toy_model):
    """Tokens of a frozen tower reach the norm behind it, a head of their own, and the scale of the loss."""
    reached = {mode: count_reached(toy_model.model(region_mode=mode)).num_reached for mode in MODES}
    width, shared = 16, 8
    assert reached["tokens"] == reached["value"] == 2 * width + (2 * width + width * shared + shared) + 1
    assert reached["qformer"] > 10 * reached["tokens"]
    assert str(count_reached(toy_model.model(region_mode="tokens"))).startswith("the region loss reaches 201 of ")


def test_a_frozen_part_does_not_count(toy_model):
    model = toy_model.model(region_mode="tokens")
    before = count_reached(model)
    model.ln_vision.requires_grad_(False)
    after = count_reached(model)
    assert (before.num_reached - after.num_reached, before.num_trainable - after.num_trainable) == (32, 32)


def test_the_qformer_reads_the_whole_image_as_its_patches(toy_model):
    """A region that is the image, with a key per patch, is the image without its class token."""
    model = toy_model.model(region_output_size=4)
    tokens = model.ln_vision(model.image_tokens(images_of(toy_model)))
    expected = model.composer.project_image(tokens[:, 1:]).mean(dim=1)
    seen = {}
    branch = model.region_branch
    branch.loss.register_forward_pre_hook(lambda module, given: seen.update(features=given[0]))
    batch = toy_model.batch(owners=(0, 1, 2))
    for side in ("reference", "target"):
        batch[f"{side}_boxes"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    model(**batch)
    torch.testing.assert_close(seen["features"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_dummy_region_stands_in_where_there_is_none(toy_model, mode):
    model = toy_model.model(region_mode=mode)
    keys = torch.zeros(0, 4, 16) if mode == "qformer" else torch.zeros(0, 16)
    embedded = model.region_branch.embed(model.composer, keys)
    assert embedded.shape == (0, 8)
    embedded.sum().backward()
    used = model.composer.query_tokens if mode == "qformer" else model.region_branch.head[1]
    assert torch.equal(used.weight.grad, torch.zeros_like(used.weight))


@pytest.mark.parametrize("mode", MODES)
def test_order_of_pairs_does_not_matter(toy_model, mode):
    model = toy_model.model(region_mode=mode)
    batch = toy_model.batch()
    order = torch.tensor([2, 0, 1])
    other = {**batch}
    for name in ("reference_boxes", "target_boxes", "pair_owner", "pair_weights"):
        other[name] = batch[name][order]
    assert model(**other).losses.means() == pytest.approx(model(**batch).losses.means(), rel=1e-4)


def test_equal_regions_find_each_other(toy_model):
    model = toy_model.model(region_mode="tokens")
    batch = toy_model.batch(owners=(0, 1, 2))
    batch["target_images"] = batch["reference_images"]
    batch["target_boxes"] = batch["reference_boxes"]
    means = model(**batch).losses.means()
    assert means["region_positive_similarity"] == pytest.approx(1.0)
    assert means["region_recall_at_1"] == 1.0


# The value path -------------------------------------------------------------------------------------------------------


def test_no_token_looks_at_another_on_the_value_path(toy_model):
    model = toy_model.model(vision_config={**toy_model.vision, "num_hidden_layers": 1})
    images = images_of(toy_model)[:1]
    changed = images.clone()
    changed[:, :, 4:8, 8:12] = 255 - changed[:, :, 4:8, 8:12]  # row 1, column 2 of the grid
    (attended, values), (other_attended, other_values) = (
        value_tokens(model.vision_tower, pixels, normalisation=model.config.normalisation)
        for pixels in (images, changed)
    )
    moved = (values - other_values).abs().amax(dim=-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [1 + 1 * 4 + 2]
    assert ((attended - other_attended).abs().amax(dim=-1) > 1e-7).all()


def test_the_value_path_equals_the_block_where_all_tokens_are_equal(toy_model):
    """Attention over equal values is their mean, the value itself."""
    model = toy_model.model(vision_config={**toy_model.vision, "num_hidden_layers": 1})
    tower = model.vision_tower
    with torch.no_grad():
        tower.embeddings.position_embedding.zero_()
        tower.embeddings.class_embedding.copy_(tower.embeddings.patch_embedding.bias)
        tower.embeddings.patch_embedding.weight.zero_()
    tokens, values = value_tokens(tower, images_of(toy_model), normalisation=model.config.normalisation)
    torch.testing.assert_close(values, tokens)


def test_the_value_path_needs_images(toy_model):
    model = toy_model.model(region_mode="value")
    batch = toy_model.batch()
    batch["reference_tokens"] = model.image_tokens(batch.pop("reference_images"))
    with pytest.raises(ValueError, match="'value' needs reference_images, got reference_tokens"):
        model(**batch)
    model.use_region_loss = False
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("mode", MODES)
def test_grids_need_not_be_square(toy_model, mode):
    model = toy_model.model(region_mode=mode)
    losses: LossTerms = model(**toy_model.batch(side=(8, 24))).losses
    assert losses.means()["region"] > 0
