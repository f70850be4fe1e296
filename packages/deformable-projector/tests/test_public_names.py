import deformable_projector
import pytest


@pytest.mark.parametrize("name", deformable_projector.__all__)
def test_every_public_name_exists(name):
    assert getattr(deformable_projector, name) is not None


def test_the_names_that_other_code_relies_on():
    promised = {
        "multi_scale_deformable_attention",
        "MultiScaleDeformableCrossAttentionAlignment",
        "SwinConvProjector",
        "DeformableProjector",
        "adapt_projector_weights",
    }
    assert promised < set(deformable_projector.__all__)
