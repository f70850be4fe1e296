import pytest
import video_autoregressive


@pytest.mark.parametrize("name", video_autoregressive.__all__)
def test_every_public_name_exists(name):
    assert getattr(video_autoregressive, name) is not None


def test_the_names_that_other_code_relies_on():
    promised = {
        "MultiScaleVideoFrameLoader",
        "spatial_pool",
        "FrameLevelMaskGenerator",
        "FrameLayout",
        "AutoregressiveReconstructionModule",
        "create_autoregressive_reconstruction_module",
    }
    assert promised < set(video_autoregressive.__all__)
