import subprocess
import sys

import pytest
import roi_region_loss


@pytest.mark.parametrize("name", roi_region_loss.__all__)
def test_every_public_name_exists(name):
    assert getattr(roi_region_loss, name) is not None


def test_the_data_side_does_not_import_torch():
    names = "BoxFile, RegionLossConfig, RegionPairs, filter_pairs, import_coco, region_weight"
    code = f"from roi_region_loss import {names}; import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
