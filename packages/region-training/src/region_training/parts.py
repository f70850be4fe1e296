"""The parts of a model: what is trained, how fast, and the proof of it in one table.

Every parameter belongs to exactly one part. A frozen part has no gradient, is in no optimizer group and stays in
evaluation mode, so its dropout is off and its batch statistics stand still. Weight decay applies to matrices only:
norms, biases, gates and other vectors have none.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import nn

from region_training.settings import ConfigError, TrainingSettings


@dataclass(frozen=True)
class Part:
    """One row of the parts table.

    Attributes:
        name: Name of the part.
        trainable: Whether it is trained.
        learning_rate: Peak learning rate; 0 when frozen.
        num_parameters: Elements of all its tensors.
        num_trained: Elements that receive gradients: all of a trained part but what the model itself keeps fixed.
        num_tensors: Its parameter tensors.
        num_decayed: Elements with weight decay; 0 when frozen or without weight decay.
    """

    name: str
    trainable: bool
    learning_rate: float
    num_parameters: int
    num_trained: int
    num_tensors: int
    num_decayed: int


class ModelParts:
    """Divides a model into parts, freezes some, and makes the optimizer groups of the others.

    Args:
        model: The model; parameters of frozen parts lose their `requires_grad`.
        prefixes: Part name -> prefixes of parameter names. A prefix ends at a dot: "head" takes "head.weight" and
            "head", not "header.weight"; "" takes everything.
        settings: Frozen parts, learning rates and weight decay.

    Raises:
        ConfigError: A parameter belongs to no part or to several, a part is empty, the settings name an unknown part,
            or nothing is left to train in a part that is not frozen.
    """

    def __init__(
        self, model: nn.Module, *, prefixes: Mapping[str, tuple[str, ...]], settings: TrainingSettings
    ) -> None:
        _check_names(prefixes, settings)
        self._settings = settings
        self._parameters = _assign(model, prefixes)
        if set(settings.frozen_parts) == set(prefixes):
            raise ConfigError(f"training.frozen_parts: got every part {sorted(prefixes)}, expected one that is trained")
        frozen: set[int] = set()
        for part, parameters in self._parameters.items():
            if part in settings.frozen_parts:
                frozen.update(id(parameter.requires_grad_(False)) for _, parameter in parameters)
            elif not any(parameter.requires_grad for _, parameter in parameters):
                raise ConfigError(
                    f"the model itself keeps all {len(parameters)} tensors of the part {part!r} fixed; expected one to "
                    f"train, or {part!r} among training.frozen_parts"
                )
        frozen_prefixes = tuple(prefix for part in settings.frozen_parts for prefix in prefixes[part])
        self._frozen_modules = _frozen_modules(model, frozen, frozen_prefixes)

    def rows(self) -> list[Part]:
        """Return the table, in the order of the parts."""
        return [self._row(name) for name in self._parameters]

    def hold_frozen(self) -> None:
        """Put the frozen modules in evaluation mode; called after every `model.train()`."""
        for module in self._frozen_modules:
            module.eval()

    def optimizer_groups(self) -> list[dict[str, object]]:
        """Return AdamW's parameter groups: one with and one without weight decay for every trained part."""
        groups: list[dict[str, object]] = []
        for part, parameters in self._parameters.items():
            if part in self._settings.frozen_parts:
                continue
            for decays in (True, False):
                members = [
                    parameter
                    for name, parameter in parameters
                    if parameter.requires_grad and _decays(name, parameter) == decays
                ]
                if members:
                    groups.append(
                        {
                            "params": members,
                            "part": part,
                            "lr": self._learning_rate(part),
                            "weight_decay": self._settings.weight_decay if decays else 0.0,
                        }
                    )
        return groups

    def _learning_rate(self, part: str) -> float:
        return self._settings.part_learning_rates.get(part, self._settings.learning_rate)

    def _row(self, part: str) -> Part:
        parameters = self._parameters[part]
        trainable = part not in self._settings.frozen_parts
        trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
        return Part(
            name=part,
            trainable=trainable,
            learning_rate=self._learning_rate(part) if trainable else 0.0,
            num_parameters=sum(_numel(parameter) for _, parameter in parameters),
            num_trained=sum(_numel(parameter) for _, parameter in trained),
            num_tensors=len(parameters),
            num_decayed=sum(map(_numel, decayed)) if self._settings.weight_decay > 0 else 0,
        )


def parts_table(rows: list[Part]) -> Table:
    """Return the parts as a table for the terminal."""
    table = Table(title="Parts", title_justify="left")
    for column in ("part", "state"):
        table.add_column(column)
    for column in ("learning rate", "parameters", "trained", "tensors", "with weight decay"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            "trained" if row.trainable else "frozen",
            f"{row.learning_rate:.2g}" if row.trainable else "-",
            f"{row.num_parameters:,}",
            f"{row.num_trained:,}",
            f"{row.num_tensors:,}",
            f"{row.num_decayed:,}" if row.trainable else "-",
        )
    num_trained, total = sum(row.num_trained for row in rows), sum(row.num_parameters for row in rows)
    table.caption = f"{num_trained:,} of {total:,} parameters are trained"
    return table


def write_parts(rows: list[Part], path: Path) -> None:
    """Write the parts as a JSON array of objects."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def _check_names(prefixes: Mapping[str, tuple[str, ...]], settings: TrainingSettings) -> None:
    for setting, names in (
        ("frozen_parts", settings.frozen_parts),
        ("part_learning_rates", list(settings.part_learning_rates)),
    ):
        unknown = sorted(set(names) - set(prefixes))
        if unknown:
            raise ConfigError(f"training.{setting}: got {unknown}, expected names among {sorted(prefixes)}")


def _assign(model: nn.Module, prefixes: Mapping[str, tuple[str, ...]]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Give every parameter to its part."""
    parameters: dict[str, list[tuple[str, nn.Parameter]]] = {part: [] for part in prefixes}
    stray: list[str] = []
    for name, parameter in model.named_parameters():
        owners = [part for part, heads in prefixes.items() if any(_is_under(name, head) for head in heads)]
        if len(owners) > 1:
            raise ConfigError(f"parameter {name!r} belongs to the parts {owners}, expected exactly one")
        if owners:
            parameters[owners[0]].append((name, parameter))
        else:
            stray.append(name)
    if stray:
        raise ConfigError(
            f"parameters without a part: {len(stray)}, the first are {stray[:5]}; expected each below one of "
            f"{dict(prefixes)}"
        )
    empty = [part for part, members in parameters.items() if not members]
    if empty:
        raise ConfigError(f"the parts {empty} have no parameter in {type(model).__name__}; expected at least one each")
    return parameters


def _is_under(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies below it."""
    head = prefix.removesuffix(".")
    return head == "" or name == head or name.startswith(f"{head}.")


def _frozen_modules(model: nn.Module, frozen: set[int], prefixes: tuple[str, ...]) -> list[nn.Module]:
    """Return the modules that train nothing: all their parameters are frozen, or they lie below a frozen prefix."""
    modules: list[nn.Module] = []
    for name, module in model.named_modules():
        # By identity: a tied weight has one name and stands in two modules.
        own = [id(parameter) in frozen for parameter in module.parameters()]
        holds_frozen_only = bool(own) and all(own)
        if holds_frozen_only or (name and any(_is_under(name, prefix) for prefix in prefixes)):
            modules.append(module)
    return modules


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, and not to biases of any shape."""
    return len(_shape(parameter)) >= 2 and not name.endswith("bias")


def _shape(parameter: nn.Parameter) -> torch.Size:
    # ZeRO-3 leaves an empty tensor in the model and keeps the true shape and size beside it.
    return getattr(parameter, "ds_shape", parameter.shape)


def _numel(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())
