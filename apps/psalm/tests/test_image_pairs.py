"""Two images that look at each other: nothing at initialisation, the right image and the right regions afterwards."""

import pytest
import torch
from deformable_projector import DeformableProjector, DeformableProjectorConfig
from psalm.image_pairs import look_at_references, look_at_targets, pair_images

DIMS, WIDTH, BATCH = (4, 6), 8, 3
OWNERS = torch.tensor([0, 2])  # samples 0 and 2 have reference images: rows 3 and 4
IMAGES = torch.tensor([3, 1, 4, 4])  # a region of the first pair, one of sample 1's own image, two of the second pair

OWN = torch.tensor([0, 2, 2])  # samples of the regions on reference images


def make(*, trained: bool) -> DeformableProjector:
    torch.manual_seed(0)
    config = DeformableProjectorConfig(hidden_dim=8, num_heads=2, num_points=2)
    projector = DeformableProjector(DIMS, WIDTH, config, conv_dim=8).eval()
    if trained:  # fresh tags and a fresh last layer are zero and hide whatever is behind them
        for parameter in projector.align.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return projector


def inputs(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(5, dim, side, side, generator=generator) for dim, side in zip(DIMS, (8, 4), strict=True)]
    valid = [torch.ones(5, side, side, dtype=torch.bool) for side in (8, 4)]
    prompts = torch.zeros(4, 16, 16, dtype=torch.bool)
    for region in range(4):
        prompts[region, 2 * region : 2 * region + 4, :9] = True
    tokens, regions = torch.randn(BATCH, 4, WIDTH, generator=generator), torch.randn(4, WIDTH, generator=generator)
    return maps, valid, prompts, tokens, regions


@pytest.mark.parametrize("trained", [False, True])
def test_tokens_find_something_in_their_own_reference_image_only(trained):
    projector, (maps, valid, prompts, tokens, _) = make(trained=trained), inputs()
    pairs = pair_images(OWNERS, BATCH)
    seen = look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES)
    assert torch.equal(seen[1], tokens[1])  # no reference image
    assert torch.equal(seen, tokens) is not trained
    other = [level.clone() for level in maps]
    for level in other:
        level[4] += 1.0
    moved = look_at_references(projector, tokens, other, valid, pairs, prompts, IMAGES)
    assert torch.equal(moved[0], seen[0])
    assert torch.equal(moved[2], seen[2]) is not trained


def test_tokens_see_whether_a_place_was_prompted():
    projector, (maps, valid, prompts, tokens, _) = make(trained=True), inputs()
    pairs = pair_images(OWNERS, BATCH)
    seen = look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES)
    prompts[2] = ~prompts[2]
    moved = look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES)
    assert torch.equal(moved[:2], seen[:2])
    assert not torch.allclose(moved[2], seen[2])
    prompts[1] = ~prompts[1]  # a region of an image that nobody refers to
    assert torch.equal(look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES), moved)


def test_overlapping_prompts_count_once():
    projector, (maps, valid, prompts, tokens, _) = make(trained=True), inputs()
    pairs = pair_images(OWNERS, BATCH)
    once = look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES)
    doubled = torch.cat([prompts, prompts[2:]])
    twice = look_at_references(projector, tokens, maps, valid, pairs, doubled, torch.cat([IMAGES, IMAGES[2:]]))
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("trained", [False, True])
def test_regions_find_something_in_their_own_target_image_only(trained):
    projector, (maps, valid, _, _, regions) = make(trained=trained), inputs()
    found = look_at_targets(projector, regions[[0, 2, 3]], OWN, maps, valid, BATCH)
    assert found.rows.shape == (3, WIDTH)
    assert found.similarity is not None
    assert found.similarity.shape == (3, 4, 4)
    assert torch.equal(found.rows, regions[[0, 2, 3]]) is not trained
    for level in maps:
        level[2] += torch.randn_like(level[2])
    moved = look_at_targets(projector, regions[[0, 2, 3]], OWN, maps, valid, BATCH)
    torch.testing.assert_close(moved.rows[0], found.rows[0])
    assert moved.similarity is not None
    assert not torch.allclose(moved.similarity[1:], found.similarity[1:])
    assert torch.allclose(moved.rows[1:], found.rows[1:]) is not trained


def test_padding_of_an_image_is_not_looked_at():
    projector, (maps, valid, prompts, tokens, regions) = make(trained=True), inputs()
    pairs = pair_images(OWNERS, BATCH)
    for mask in valid:
        mask[:, :, mask.shape[2] // 2 :] = False
    found = look_at_targets(projector, regions[[0, 2, 3]], OWN, maps, valid, BATCH).rows
    seen = look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES)
    for level, mask in zip(maps, valid, strict=True):
        level[~mask[:, None].expand_as(level)] = 7.0
    torch.testing.assert_close(look_at_targets(projector, regions[[0, 2, 3]], OWN, maps, valid, BATCH).rows, found)
    torch.testing.assert_close(look_at_references(projector, tokens, maps, valid, pairs, prompts, IMAGES), seen)


def test_without_pairs_all_parameters_have_a_gradient_and_no_token_moves():
    projector, (maps, valid, prompts, tokens, regions) = make(trained=True), inputs()
    tokens.requires_grad_()
    pairs = pair_images(torch.zeros(0, dtype=torch.long), BATCH)
    assert pairs.num_dummy == 1
    images = torch.tensor([0, 1, 2, 2])
    seen = look_at_references(projector, tokens, maps, valid, pairs, prompts, images)
    found = look_at_targets(projector, regions[:0], OWN[:0], maps, valid, BATCH)
    assert torch.equal(seen, tokens)
    assert found.rows.shape == (0, WIDTH)
    (seen.sum() + found.rows.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in projector.align.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() == 0 for gradient in gradients.values())
