"""What a package says it offers, it offers; and importing a package costs nothing."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = (
    *("region_core", "region_heads", "region_training", "deformable_projector", "roi_region_loss"),
    *("video_autoregressive", "spatialrgpt", "psalm", "sprc", "lmms"),
)


def _stub_names(package):
    stub = Path(importlib.import_module(package).__file__).with_suffix(".pyi")
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [alias.asname for node in imports for alias in node.names]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_the_stub_resolves_and_is_listed(package):
    module = importlib.import_module(package)
    names = _stub_names(package)
    assert names
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name) is not None
        assert name in dir(module)
    assert set(names) == set(module.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package):
    code = f"import sys, {package}; print(sorted({{'torch', 'transformers', 'numpy', 'deepspeed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr
