import lmms
import pytest


@pytest.mark.parametrize("name", lmms.__all__)
def test_every_public_name_exists(name):
    assert getattr(lmms, name) is not None


def test_the_names_that_other_code_relies_on():
    assert {"AutoregressiveTrainer", "VideoLMM", "VideoLMMConfig", "VideoDataset", "VideoCollator"} < set(lmms.__all__)
    assert lmms.AutoregressiveTrainer.__name__ == "AutoregressiveTrainer"
