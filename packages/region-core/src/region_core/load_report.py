"""Strict loading of weights: every name that does not fit is listed, and refused unless it was allowed.

A silent mismatch trains from random weights. The report says what was loaded, what is missing in the file, what the
module has no place for, and what has another shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn


@dataclass(frozen=True)
class WrongShape:
    """A tensor whose shape differs between module (`expected`) and weights (`found`)."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What happened to every name of a module and of the weights given to it.

    Attributes:
        loaded: Names copied into the module.
        missing: Names of the module that the weights lack.
        unexpected: Names of the weights that the module lacks.
        wrong_shape: Names in both whose shapes differ; nothing was copied.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[WrongShape, ...]

    def table(self) -> str:
        """Return one line per name that was not loaded, as aligned text."""
        lines = [("missing", name, "") for name in self.missing]
        lines += [("unexpected", name, "") for name in self.unexpected]
        lines += [
            ("wrong shape", wrong.name, f"module {list(wrong.expected)}, weights {list(wrong.found)}")
            for wrong in self.wrong_shape
        ]
        width = max((len(name) for _, name, _ in lines), default=0)
        return "\n".join(f"{kind:<11}  {name:<{width}}  {detail}".rstrip() for kind, name, detail in lines)


def match_weights(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> LoadReport:
    """Copy weights into a module, refusing whatever does not fit.

    Nothing is copied before all names have been checked.

    Args:
        module: The module to fill, in memory as a whole (before ZeRO-3 partitions it).
        state_dict: Weights by name.
        allow_missing: Names, or patterns such as "heads.*", that the weights may lack.
        allow_unexpected: Names or patterns, as the weights spell them after renaming, that are left out.
        rename: From a prefix in the weights to the prefix in the module; of several that fit the longest counts.

    Returns:
        The report, in which allowed names are listed too.

    Raises:
        ValueError: Names are missing or unexpected without being allowed, a shape differs, or two names become one.
    """
    weights = _rename(state_dict, rename or {})
    targets = module.state_dict()
    wrong = tuple(
        WrongShape(name, tuple(target.shape), tuple(weights[name].shape))
        for name, target in targets.items()
        if name in weights and weights[name].shape != target.shape
    )
    unfit = {entry.name for entry in wrong}
    report = LoadReport(
        loaded=tuple(name for name in targets if name in weights and name not in unfit),
        missing=tuple(name for name in targets if name not in weights),
        unexpected=tuple(name for name in weights if name not in targets),
        wrong_shape=wrong,
    )
    refused = LoadReport(
        loaded=(),
        missing=tuple(name for name in report.missing if not _allowed(name, allow_missing)),
        unexpected=tuple(name for name in report.unexpected if not _allowed(name, allow_unexpected)),
        wrong_shape=wrong,
    )
    if refused.missing or refused.unexpected or refused.wrong_shape:
        raise ValueError(
            f"weights do not fit {type(module).__name__}: {len(refused.missing)} missing, "
            f"{len(refused.unexpected)} unexpected, {len(wrong)} of another shape "
            f"({len(report.loaded)} of {len(targets)} fit)\n{refused.table()}"
        )
    module.load_state_dict({name: weights[name] for name in report.loaded}, strict=False)
    return report


def _rename(state_dict: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    longest_first = sorted(prefixes, key=len, reverse=True)
    renamed: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        prefix = next((prefix for prefix in longest_first if name.startswith(prefix)), "")
        new_name = prefixes.get(prefix, "") + name[len(prefix) :]
        if new_name in renamed:
            raise ValueError(f"two weights become {new_name!r} by renaming; one of them was {name!r}")
        renamed[new_name] = tensor
    return renamed


def _allowed(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
