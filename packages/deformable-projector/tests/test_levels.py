import pytest
import torch
from deformable_projector.levels import check_levels, region_maps_to_level, valid_ratios


def test_a_pyramid_tells_its_shapes(pyramid):
    assert check_levels(pyramid(), (4, 6, 8, 10), None, 2) == [(8, 12), (4, 6), (2, 3), (1, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda maps: maps[:3], "expected 4 feature maps, finest first, got 3"),
        (lambda maps: maps[::-1], r"level 0: expected \(2, 4, height, width\), got \(2, 10, 1, 1\)"),
        (lambda maps: [*maps[:3], maps[3][:1]], r"level 3: expected \(2, 10"),
        (lambda maps: [*maps[:3], maps[3][..., :0]], r"level 3: .* got \(2, 10, 1, 0\)"),
    ],
)
def test_another_pyramid_is_refused(pyramid, change, message):
    with pytest.raises(ValueError, match=message):
        check_levels(change(pyramid()), (4, 6, 8, 10), None, 2)


def test_masks_of_other_sizes_are_refused(pyramid, valid_masks):
    masks = valid_masks([(1, 1), (1, 1)])
    with pytest.raises(ValueError, match="got 3 for 4 levels"):
        check_levels(pyramid(), (4, 6, 8, 10), masks[:3], 2)
    with pytest.raises(ValueError, match=r"mask of level 0: expected \(2, 8, 12\), got \(2, 4, 6\)"):
        check_levels(pyramid(), (4, 6, 8, 10), [masks[1], *masks[1:]], 2)


def test_valid_ratios_are_x_then_y(valid_masks):
    masks = valid_masks([(0.5, 0.25), (1, 1)], shapes=[(8, 12), (4, 4)])
    expected = torch.tensor([[[0.25, 0.5], [0.25, 0.5]], [[1.0, 1.0], [1.0, 1.0]]])
    assert torch.equal(valid_ratios(masks), expected)


def test_an_image_without_valid_cells_has_ratio_zero():
    assert torch.equal(valid_ratios([torch.zeros(1, 2, 3, dtype=torch.bool)]), torch.zeros(1, 1, 2))


def test_regions_come_to_a_level_by_area():
    regions = torch.zeros(1, 4, 4)
    regions[0, 0, 0] = 1.0
    assert torch.equal(region_maps_to_level(regions, (2, 2)), torch.tensor([[[0.25, 0.0], [0.0, 0.0]]]))
    assert region_maps_to_level(regions, (3, 5)).shape == (1, 3, 5)
