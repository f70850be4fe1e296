"""Embeddings of regions: order, empty things, the enhancer's start, and what depth may and may not change."""

import pytest
import torch
from region_core.geometry import GEOMETRY_DIM
from spatialrgpt.region_encoder import ImageProjector

CHANNELS, GRID, FINE = 16, 4, 8


def given(*, images: int, region_images: tuple[int, ...], depth_images: tuple[int, ...] = (), seed: int = 0) -> dict:
    """Random arguments of `RegionEncoder.forward`; a depth map is always there, nobody's if no image has one."""
    torch.manual_seed(seed)
    regions = len(region_images)
    return {
        "image_map": torch.randn(images, CHANNELS, GRID, GRID),
        "refined_map": torch.randn(images, CHANNELS, FINE, FINE),
        "depth_map": torch.randn(max(len(depth_images), 1), CHANNELS, GRID, GRID),
        "depth_images": torch.tensor(depth_images, dtype=torch.long),
        "region_masks": torch.rand(regions, FINE, FINE),
        "region_images": torch.tensor(region_images, dtype=torch.long),
        "geometry": torch.rand(regions, GEOMETRY_DIM),
    }


def only_image(inputs: dict, image: int) -> dict:
    """The same arguments for one image of the batch alone."""
    mine = inputs["region_images"] == image
    depth = (inputs["depth_images"] == image).nonzero().flatten()
    return {
        "image_map": inputs["image_map"][image : image + 1],
        "refined_map": inputs["refined_map"][image : image + 1],
        "depth_map": inputs["depth_map"][depth] if len(depth) else torch.randn(1, CHANNELS, GRID, GRID),
        "depth_images": torch.zeros(len(depth), dtype=torch.long),
        "region_masks": inputs["region_masks"][mine],
        "region_images": torch.zeros(int(mine.sum()), dtype=torch.long),
        "geometry": inputs["geometry"][mine],
    }


def test_rows_come_in_the_order_of_mention_whatever_the_order_of_the_images(model):
    inputs = given(images=3, region_images=(2, 0, 2, 1, 0), depth_images=(2, 0))
    together = model.region_encoder(**inputs)
    assert together.rgb.shape == together.depth.shape == (5, 32)
    has_depth = torch.isin(inputs["region_images"], inputs["depth_images"])
    for image in range(3):
        alone = model.region_encoder(**only_image(inputs, image))
        mine = inputs["region_images"] == image
        torch.testing.assert_close(together.rgb[mine], alone.rgb, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.depth[mine & has_depth], alone.depth[has_depth[mine]], atol=1e-5, rtol=1e-4)


def test_reordering_the_mentions_reorders_the_rows(model):
    inputs = given(images=2, region_images=(1, 0, 1, 0), depth_images=(1,))
    order = torch.tensor([3, 1, 0, 2])
    moved = inputs | {key: inputs[key][order] for key in ("region_masks", "region_images", "geometry")}
    torch.testing.assert_close(
        model.region_encoder(**moved).rgb, model.region_encoder(**inputs).rgb[order], atol=1e-5, rtol=1e-4
    )


def test_a_depth_map_that_is_nobodys_changes_nothing(model):
    inputs = given(images=2, region_images=(0, 1))
    other = inputs | {"depth_map": torch.randn(1, CHANNELS, GRID, GRID) * 9}
    torch.testing.assert_close(model.region_encoder(**inputs).rgb, model.region_encoder(**other).rgb)


def test_without_depth_maps_the_rgb_rows_are_those_of_a_model_without_depth(toy, model):  # T28
    inputs = given(images=2, region_images=(0, 1, 1))
    plain = toy.model(enable_depth=False).region_encoder
    plain.load_state_dict({key: model.region_encoder.state_dict()[key] for key in plain.state_dict()})
    expected = plain(**inputs | {"depth_map": None}).rgb
    torch.testing.assert_close(model.region_encoder(**inputs).rgb, expected)


def test_depth_reaches_the_rgb_rows_of_its_own_image_alone(model):
    inputs = given(images=2, region_images=(0, 1), depth_images=(1,))
    other = inputs | {"depth_map": inputs["depth_map"].flip(-1)}
    first, second = model.region_encoder(**inputs).rgb, model.region_encoder(**other).rgb
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 1e-4


def test_the_enhancer_is_exactly_the_identity_at_the_start(toy):  # T29
    inputs = given(images=2, region_images=(0, 1, 1), depth_images=(0, 1))
    fresh = toy.model(open_gates=False).region_encoder
    without = toy.model(enable_region_enhancer=False).region_encoder
    without.load_state_dict({key: value for key, value in fresh.state_dict().items() if "enhancer" not in key})
    for given_row, row in zip(without(**inputs), fresh(**inputs), strict=True):
        assert torch.equal(given_row, row)


def test_an_open_enhancer_lets_the_regions_of_an_image_see_each_other_and_no_others(model):
    inputs = given(images=2, region_images=(0, 0, 1))
    masks = inputs["region_masks"].clone()
    masks[1] = torch.rand(FINE, FINE) ** 4
    first, second = model.region_encoder(**inputs).rgb, model.region_encoder(**inputs | {"region_masks": masks}).rgb
    assert (first[0] - second[0]).abs().max() > 1e-6
    torch.testing.assert_close(first[2], second[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_empty_mask_is_finite_forward_and_backward(toy, dtype):  # T43
    encoder = toy.model().region_encoder.to(dtype)
    inputs = given(images=1, region_images=(0, 0), depth_images=(0,))
    inputs["region_masks"][1] = 0
    maps = {key: inputs[key].to(dtype) for key in ("image_map", "refined_map", "depth_map")}
    rows = encoder(**inputs | maps)
    assert rows.rgb.isfinite().all()
    assert rows.depth.isfinite().all()
    (rows.rgb.float().square().mean() + rows.depth.float().square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters() if parameter.grad is not None)


def test_no_regions_give_no_rows(model):
    rows = model.region_encoder(**given(images=2, region_images=()))
    assert rows.rgb.shape == rows.depth.shape == (0, 32)


def test_without_depth_there_is_no_row_of_depth(toy):
    encoder = toy.model(enable_depth=False).region_encoder
    rows = encoder(**given(images=1, region_images=(0,)) | {"depth_map": None})
    assert rows.depth is None
    assert rows.rgb.shape == (1, 32)


def test_a_refinement_of_its_own_brings_depth_to_the_fine_grid(toy):
    plain, refined = toy.model().region_encoder, toy.model(refine_depth=True).region_encoder
    assert plain.depth_refinement is None
    inputs = given(images=1, region_images=(0,), depth_images=(0,))
    rows = refined(**inputs)
    rows.depth.sum().backward()
    assert all(parameter.grad is not None for parameter in refined.depth_refinement.parameters())


def test_geometry_tells_two_regions_with_the_same_mask_apart(toy):
    inputs = given(images=1, region_images=(0, 0))
    inputs["region_masks"][1] = inputs["region_masks"][0]
    told = toy.model(enable_region_enhancer=False).region_encoder(**inputs).rgb
    untold = toy.model(enable_region_enhancer=False, region_geometry=False).region_encoder(**inputs).rgb
    torch.testing.assert_close(untold[0], untold[1])
    assert (told[0] - told[1]).abs().max() > 1e-3


def test_the_projector_folds_squares_row_by_row_and_pads_what_is_left():
    projector = ImageProjector(2, 8, downsample=2)
    feature_map = torch.randn(1, 2, 3, 5)
    tokens = projector(feature_map)
    assert tokens.shape == (1, 2 * 3, 8)
    padded = torch.zeros(2, 4, 6)
    padded[:, :3, :5] = feature_map[0]
    for token, (row, column) in enumerate((row, column) for row in range(2) for column in range(3)):
        square = padded[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(tokens[0, token], projector.layers(square.flatten()))
