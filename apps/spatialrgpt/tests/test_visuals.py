"""What stands in for the pictures and regions that a batch has none of."""

import pytest
import torch
from spatialrgpt.visuals import complete_visuals

NOTHING = {
    "pixel_values": None,
    "depth_values": None,
    "depth_images": None,
    "region_masks": None,
    "region_images": None,
    "region_geometry": None,
}
CPU = torch.device("cpu")


def test_what_is_missing_is_empty_and_nobodys(model):
    visuals = complete_visuals(model.config, CPU, **NOTHING)
    assert visuals.pixel_values.shape == (1, 3, 32, 32)
    assert visuals.num_images == 0
    assert visuals.depth_values.shape == (1, 3, 32, 32)
    assert visuals.depth_images.tolist() == []
    assert visuals.region_masks.shape == (0, 8, 8)
    assert visuals.region_geometry.shape == (0, 8)
    assert visuals.region_has_depth.tolist() == []


def test_what_is_given_stays(toy, model):
    batch = toy.batch([toy.sample((0,)), toy.sample((1, 0), depths=(False, True), seed=1)])
    given = {key: batch[key] for key in NOTHING}
    visuals = complete_visuals(model.config, CPU, **given)
    assert visuals.num_images == 3
    assert visuals.pixel_values is given["pixel_values"]
    assert visuals.depth_values is given["depth_values"]
    assert visuals.region_masks is given["region_masks"]
    assert visuals.region_has_depth.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"depth_values": torch.zeros(1, 3, 32, 32)},
            "go together, depth_images is missing",
        ),
        (
            {"region_masks": torch.zeros(1, 8, 8), "region_images": torch.zeros(1, dtype=torch.long)},
            "region_masks, .* go together, region_geometry is missing",
        ),
    ],
)
def test_halves_are_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        complete_visuals(model.config, CPU, **NOTHING | given)
