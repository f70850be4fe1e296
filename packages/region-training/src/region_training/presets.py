"""Configuration files: YAML that is read strictly, and the presets that an application ships as package data.

Only plain YAML is read: tags are refused, and so is a key that stands twice (PyYAML would keep the last in silence).
"""

import difflib
from collections.abc import Callable, Collection
from importlib import resources
from pathlib import Path

import yaml
from yaml.constructor import ConstructorError

from region_training.settings import ConfigError

Translate = Callable[[list[object], str], dict[str, object]]
"""From a configuration in a guide's form (a list) and the name of its file to a mapping of settings."""


def read_config(path: Path | str, *, translate: Translate | None = None) -> dict[str, object]:
    """Read one YAML configuration file.

    Args:
        path: The file.
        translate: Makes a mapping of a file that holds a list at its top; without it such a file is an error.

    Raises:
        ConfigError: The file is absent, is no YAML, holds a tag or a key twice, or is not a mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}") from error
    return parse_config(text, str(path), translate=translate)


def parse_config(text: str, source: str, *, translate: Translate | None = None) -> dict[str, object]:
    """Parse the text of a YAML configuration; `source` names it in errors.

    Raises:
        ConfigError: The text is no YAML, holds a tag or a key twice, or is not a mapping.
    """
    try:
        loader = _StrictLoader(text)
        try:
            tree = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not a plain YAML configuration: {error}") from error
    if tree is None:
        return {}
    if isinstance(tree, list) and translate is not None:
        tree = translate(tree, source)
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{source}: got {type(tree).__name__}, expected a mapping of setting names")
    return tree


def preset_names(package: str) -> list[str]:
    """Names of the presets in an application's package of YAML files, e.g. `"spatialrgpt.configs"`."""
    files = (entry.name for entry in resources.files(package).iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_preset(package: str, name: str) -> dict[str, object]:
    """Read a preset's own file by its name; if it builds on another one, `preset` names that.

    Raises:
        ConfigError: There is no such preset; the message lists those there are.
    """
    names = preset_names(package)
    if name not in names:
        raise ConfigError(f"no preset {name!r}{did_you_mean(name, names)}; available: {', '.join(names) or 'none'}")
    return parse_config(resources.files(package).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"preset {name}")


def preset_layers(package: str, name: str) -> list[tuple[str, dict[str, object]]]:
    """A preset and those that it builds on (`preset: NAME` at its top), by their names, the lowest first.

    Raises:
        ConfigError: One of them is missing, or a preset builds on itself.
    """
    layers: list[tuple[str, dict[str, object]]] = []
    below: object = name
    while below is not None:
        if below in (known := [above for above, _ in layers]):
            raise ConfigError(f"a preset builds on itself: {' -> '.join([*known, str(below)])}")
        layer = load_preset(package, str(below))
        layers.append((str(below), layer))
        below = layer.pop("preset", None)
    return layers[::-1]


def did_you_mean(word: str, known: Collection[str]) -> str:
    """A question that offers the nearest known word, or nothing: `" (did you mean 'training.seed'?)"`.

    A dotted key is also compared by its last word, so that `seed` finds `training.seed`.
    """
    last = word.rpartition(".")[2]
    same_ending = [key for key in known if key.rpartition(".")[2] == last]
    by_ending = {key.rpartition(".")[2]: key for key in known}
    close_endings = [by_ending[ending] for ending in difflib.get_close_matches(last, by_ending, n=1)]
    found = [*difflib.get_close_matches(word, known, n=1, cutoff=0.8), *same_ending, *close_endings]
    return f" (did you mean {found[0]!r}?)" if found else ""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:merge" and isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    problem = f"the key {key_node.value!r} stands twice"
                    raise ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
