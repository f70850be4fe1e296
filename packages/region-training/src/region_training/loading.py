"""Opening a saved model without surprises: what is not in the folder is an error, not a fresh random tensor."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

from transformers import PreTrainedModel
from transformers.integrations import deepspeed as integration

Model = TypeVar("Model", bound=PreTrainedModel)


class LoadError(ValueError):
    """A folder's weights are not the model's; the message names the tensors."""


def load_pretrained(model_class: type[Model], path: str | Path, *, allow_missing: Collection[str] = ()) -> Model:
    """Open a model from a local folder and refuse a partial fit.

    Args:
        model_class: Class of the model.
        path: Folder written by `save_pretrained`.
        allow_missing: Names, or prefixes that end at a dot, of tensors that the folder may lack; they are initialised
            afresh.

    Returns:
        The model, in evaluation mode.

    Raises:
        LoadError: The folder does not exist, lacks tensors, has others, or has them in other shapes.
    """
    if not (Path(path) / "config.json").is_file():
        raise LoadError(f"{path} is no saved model: expected a local folder with config.json and *.safetensors")
    # With output_loading_info it returns a pair, which its annotation does not say.
    opened = model_class.from_pretrained(path, output_loading_info=True, local_files_only=True)
    model, report = cast("tuple[Model, dict[str, set]]", opened)
    missing = [name for name in sorted(report["missing_keys"]) if not _allowed(name, allow_missing)]
    problems = [
        f"{what}: {_first(names)}"
        for what, names in (
            ("missing from the folder", missing),
            ("in the folder but not in the model", sorted(report["unexpected_keys"])),
            ("of another shape", sorted(map(str, report["mismatched_keys"]))),
        )
        if names
    ]
    if problems:
        raise LoadError(f"{path} does not fit {model_class.__name__}; tensors {'; '.join(problems)}")
    return model


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


def _allowed(name: str, allowed: Collection[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry.removesuffix('.')}.") for entry in allowed)


def _first(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
