"""Where the weights of a model lie, and how parts are opened while ZeRO-3 is on."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from transformers.integrations import deepspeed as integration


def model_folder(folder: Path | str) -> Path:
    """The folder of the weights: the one given, or `model` in a run folder.

    Raises:
        ValueError: Neither holds a model.
    """
    path = Path(folder)
    for candidate in (path, path / "model"):
        if (candidate / "model.safetensors").is_file() or (candidate / "model.safetensors.index.json").is_file():
            return candidate
    raise ValueError(f"{str(path)!r}: no model.safetensors there or in its folder `model`; is the run finished?")


@contextmanager
def whole_weights() -> Generator[None]:
    """Open pretrained parts whole where ZeRO-3 would partition them at load.

    The engine partitions the composed model later, so each rank holds it whole in main memory once.
    """
    # transformers keeps the settings of the running engine in this weak reference and gives no public way to put the
    # same ones back.
    settings = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = settings
