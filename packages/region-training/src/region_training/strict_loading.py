"""Opening a saved model without surprises: what is not in its files is an error, not a fresh random tensor."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, TypeVar, cast

from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


class LoadError(ValueError):
    """The weights in some files are not the model's; the message names the tensors."""


def load_strictly(
    from_pretrained: Callable[..., Model],
    source: str | PathLike[str],
    *args: Any,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    **kwargs: Any,
) -> tuple[Model, dict[str, Any]]:
    """Open a model with transformers' own loader and refuse a partial fit.

    Args:
        from_pretrained: The loader, of a model class or of an auto class.
        source: Folder or hub name.
        args: Further arguments of the loader.
        allow_missing: Names, or patterns such as "*pooler*", of tensors that the files may lack; they are initialised
            afresh.
        allow_unexpected: Names or patterns of tensors in the files that are left out.
        kwargs: Further arguments of the loader.

    Returns:
        The model, in evaluation mode, and transformers' report.

    Raises:
        LoadError: Tensors are missing, unexpected or of another shape; the message names them.
        OSError: There is no model.
    """
    # Misshapen tensors are "ignored" into the report, so that the error below can name them.
    opened = from_pretrained(source, *args, **{**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True})
    # With output_loading_info it returns a pair, which its annotation does not say.
    model, report = cast("tuple[Model, dict[str, Any]]", opened)
    found = {
        "missing from the files": _names(report["missing_keys"], allow_missing),
        "in the files but not in the model": _names(report["unexpected_keys"], allow_unexpected),
        "of another shape": sorted(map(_shapes, report["mismatched_keys"])),
        "unreadable": list(map(str, report["error_msgs"])),
    }
    problems = [f"{what}: {_first(names)}" for what, names in found.items() if names]
    if problems:
        raise LoadError(f"{source}: weights and configuration do not match; tensors {'; '.join(problems)}")
    return model, report


class StrictModel(PreTrainedModel):
    """A transformers model whose saved weights must be its own, all of them, and safetensors."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str],
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ):
        """Load a saved model; a missing, unexpected or misshapen weight is an error, never a random number.

        Only safetensors are read: what else a folder may hold are pickles.

        Raises:
            ValueError: The weights do not match the configuration; the message names them.
        """
        kwargs.setdefault("use_safetensors", True)
        model, report = load_strictly(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model.after_loading()
        return (model, report) if output_loading_info else model

    def after_loading(self) -> None:
        """Do again what the constructor did to parameters: loading makes new ones."""


def _names(names: Iterable[str], allowed: Sequence[str]) -> list[str]:
    return sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in allowed))


def _shapes(entry: tuple[str, Sequence[int], Sequence[int]]) -> str:
    name, found, expected = entry
    return f"{name} ({tuple(found)} in the files, {tuple(expected)} in the model)"


def _first(names: list[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
