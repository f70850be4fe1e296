import pytest
import torch
from deformable_projector.values import PyramidValues

DIMS = (4, 6, 8, 10)


def points(batch=2, queries=3, heads=2, levels=4, per_level=3, dtype=torch.float32):
    """Locations up to 0.2 outside the maps, and weights that sum to 1 over levels and points."""
    locations = torch.rand(batch, queries, heads, levels, per_level, 2, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, levels * per_level, dtype=dtype).softmax(-1)
    return locations, weights.unflatten(3, (levels, per_level))


def both_orders(wake, dtype=torch.float32):
    first = wake(PyramidValues(DIMS, 8, 2, sample_first=True)).to(dtype)
    second = PyramidValues(DIMS, 8, 2, sample_first=False).to(dtype)
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tagged", [False, True])
def test_both_orders_give_the_same_numbers_and_gradients(pyramid, valid_masks, wake, masked, tagged):
    """Trap: the bias, the level's and the regions' tags count by the share of a point that lies on the image."""
    options = {
        "valid_masks": valid_masks([(1, 1), (0.5, 0.6)]) if masked else None,
        "region_maps": torch.rand(2, 16, 20) if tagged else None,
    }
    results = []
    maps, (locations, weights) = pyramid(), points()
    for values in both_orders(wake):
        inputs = [tensor.clone().requires_grad_() for tensor in (*maps, locations, weights)]
        result = values(inputs[:4], *inputs[4:], **options)
        result.sin().sum().backward()
        parameters = [parameter.grad for _, parameter in sorted(values.named_parameters())]
        results.append([result, *(tensor.grad for tensor in inputs), *parameters])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_in_float64_both_orders_agree_to_rounding(pyramid, wake):
    first, second = both_orders(wake, torch.float64)
    maps, (locations, weights) = pyramid(dtype=torch.float64), points(dtype=torch.float64)
    one, other = (values(maps, locations, weights) for values in (first, second))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_sampling_first_never_makes_a_value_per_position(pyramid, wake):
    """A linear layer that is called on positions would leave their values in the graph."""
    rows = []
    values = PyramidValues(DIMS, 8, 2)
    for projection in values.level_proj:
        projection.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[1]))
    values(pyramid(), *points(queries=3))
    assert rows == [3, 3, 3, 3]
    rows.clear()
    values(pyramid(), *points(queries=40))  # 40 queries x 2 heads x 3 points are more than 127 positions
    assert rows == [96, 24, 6, 1]


def test_padding_has_no_value_whatever_its_features_are(pyramid, valid_masks, wake):
    masks = valid_masks([(1, 1), (0.5, 0.5)])
    maps, (locations, weights) = pyramid(), points()
    spoilt = [
        feature_map.masked_fill(~mask[:, None], float("nan")) for feature_map, mask in zip(maps, masks, strict=True)
    ]
    for values in both_orders(wake):
        expected = values(maps, locations, weights, valid_masks=masks)
        assert torch.equal(values(spoilt, locations, weights, valid_masks=masks), expected)
        outside = torch.full_like(locations, 0.9)
        assert not values(maps, outside, weights, valid_masks=[mask & False for mask in masks]).any()


def test_tags_say_inside_or_outside(pyramid, wake):
    maps = [torch.zeros_like(feature_map) for feature_map in pyramid()]
    locations, weights = points()
    locations = torch.full_like(locations, 0.25)
    left = torch.zeros(2, 8, 8)
    left[:, :, :4] = 1.0
    for values in both_orders(wake):
        with torch.no_grad():
            values.level_embed.zero_()
            for projection in values.level_proj:
                projection.bias.zero_()
            # The two coarsest levels have cells half inside: leave them out.
            weights[:, :, :, 2:] = 0.0
            weights = weights / weights.sum(dim=(3, 4), keepdim=True)
        inside = values(maps, locations, weights, region_maps=left)
        torch.testing.assert_close(inside, values.region_embed[0].expand(2, 3, 8))
        outside = values(maps, 1 - locations, weights, region_maps=left)
        torch.testing.assert_close(outside, values.region_embed[1].expand(2, 3, 8))


def test_every_parameter_takes_part_without_regions(pyramid):
    values = PyramidValues(DIMS, 8, 2)
    values(pyramid(), *points()).sum().backward()
    assert all(parameter.grad is not None for parameter in values.parameters())
    assert not values.region_embed.grad.any()


def test_tags_of_regions_start_at_zero(pyramid):
    values = PyramidValues(DIMS, 8, 2)
    maps, (locations, weights) = pyramid(), points()
    plain, tagged = (values(maps, locations, weights, region_maps=maps_) for maps_ in (None, torch.rand(2, 5, 5)))
    assert torch.equal(plain, tagged)
