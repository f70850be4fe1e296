import pytest
from roi_region_loss import region_weight


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0.0, 0.0), (19.99, 0.0), (20.0, 0.0), (21.0, 0.125), (22.0, 0.25), (24.0, 0.5), (50.0, 0.5)],
)
def test_two_stages_with_a_ramp(epoch, expected):
    assert region_weight(epoch, weight=0.5, start_epoch=20.0, ramp_epochs=4.0) == expected


def test_without_a_ramp_the_weight_is_full_at_once():
    weights = [region_weight(epoch, weight=0.5, start_epoch=20.0) for epoch in (0.0, 19.999, 20.0, 20.5)]
    assert weights == [0.0, 0.0, 0.5, 0.5]
    assert region_weight(0.0) == 1.0


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match="ramp_epochs must be a finite number of at least 0, got -1"):
        region_weight(1.0, ramp_epochs=-1.0)
    with pytest.raises(ValueError, match="epoch must be a finite number of at least 0, got nan"):
        region_weight(float("nan"))
