"""Places: what is added, where the anchors lie, and what it is good for: telling equal things apart."""

import pytest
import torch
from psalm.pixel_decoder import PixelFeatures
from psalm.places import LEVEL_SPREAD, PLACE_DIM, SPREAD, PlaceEmbedder, anchor_waves, grid_waves
from transformers import Mask2FormerConfig

CPU = torch.device("cpu")


def make(width: int = 32) -> PlaceEmbedder:
    torch.manual_seed(0)
    return PlaceEmbedder(Mask2FormerConfig(hidden_dim=width, feature_size=width, mask_feature_size=width))


def nothing(width: int = 32) -> tuple[torch.Tensor, PixelFeatures]:
    """Queries and features that say nothing, so that what comes out is what is added."""
    levels = tuple(torch.zeros(2, width, side, side + 1) for side in (2, 4, 8))
    return torch.zeros(2, 6, width), PixelFeatures(torch.zeros(2, width, 16, 18), levels)


def test_waves_are_sines_and_cosines_of_the_cells_centres():
    waves = grid_waves(2, 4, CPU)
    assert waves.shape == (2, 4, PLACE_DIM)
    # The cell in the second row and the last column: its centre is 3/4 down and 7/8 across.
    angles = torch.pi * torch.tensor([0.75, 1.5, 3.0, 6.0, 0.875, 1.75, 3.5, 7.0])
    torch.testing.assert_close(waves[1, 3], torch.cat([angles.sin(), angles.cos()]))


def test_a_place_has_the_same_waves_on_every_grid():
    torch.testing.assert_close(grid_waves(3, 3, CPU)[1, 1], grid_waves(9, 5, CPU)[4, 2])


@pytest.mark.parametrize(("number", "rows", "columns"), [(1, 1, 1), (6, 2, 3), (16, 4, 4), (7, 2, 4), (100, 10, 10)])
def test_anchors_lie_on_the_squarest_grid_that_holds_them(number, rows, columns):
    assert torch.equal(anchor_waves(number, CPU), grid_waves(rows, columns, CPU).flatten(0, 1)[:number])


def test_shapes_stay_and_every_sample_has_the_same_places():
    queries, features = nothing()
    placed, found = make()(queries, features)
    assert placed.shape == queries.shape
    assert found.mask_features.shape == features.mask_features.shape
    assert [level.shape for level in found.levels] == [level.shape for level in features.levels]
    for value in (placed, found.mask_features, *found.levels):
        assert torch.equal(value[0], value[1])


def test_what_was_there_stays_and_places_are_added():
    embedder, (queries, features) = make(), nothing()
    added, places = embedder(queries, features)
    torch.manual_seed(1)
    said = torch.randn_like(queries)
    shown = PixelFeatures(torch.randn_like(features.mask_features), tuple(map(torch.randn_like, features.levels)))
    placed, found = embedder(said, shown)
    torch.testing.assert_close(placed, said + added)
    torch.testing.assert_close(found.mask_features, shown.mask_features + places.mask_features)
    for level, own, place in zip(found.levels, shown.levels, places.levels, strict=True):
        torch.testing.assert_close(level, own + place)


def test_a_new_model_adds_so_much():
    added, found = make(256)(*nothing(256))
    assert added.square().mean().sqrt().item() == pytest.approx(SPREAD, rel=0.1)
    assert found.mask_features.square().mean().sqrt().item() == pytest.approx(SPREAD, rel=0.1)
    for level in found.levels:
        assert level.square().mean().sqrt().item() == pytest.approx(LEVEL_SPREAD, rel=0.1)


def test_equal_pixels_in_two_places_can_have_different_masks():
    _, features = nothing()
    _, found = make()(*nothing())
    left, right = found.mask_features[0, :, 4, 3], found.mask_features[0, :, 4, 14]
    assert torch.equal(features.mask_features[0, :, 4, 3], features.mask_features[0, :, 4, 14])
    query = left - right
    assert (query @ left - query @ right).item() > 1


def test_bf16_weights_give_float32():
    placed, found = make().bfloat16()(*nothing())
    assert {value.dtype for value in (placed, found.mask_features, *found.levels)} == {torch.float32}
