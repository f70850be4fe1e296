import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tensors here are tiny: more threads only wait for each other, badly so on a busy machine.
    torch.set_num_threads(1)
