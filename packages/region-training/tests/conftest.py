"""Fixtures of the engine's tests; the toy model is imported on first use, since the other tests need no torch."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _toy_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_training", Path(__file__).with_name("toy_training.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy():
    """Model, data, job and settings of the engine's tests."""
    return _toy_module().Toy()
