import pytest
import torch
from region_core.testing import run_forked_ranks


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)


@pytest.fixture
def run_ranks(tmp_path):
    return lambda function: run_forked_ranks(function, tmp_path)
