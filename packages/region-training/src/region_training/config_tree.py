"""Nested settings dataclasses as one tree of dotted keys: defaults, help texts, strict merging, plain data.

A configuration is built from layers (a preset, files, command-line options), each a nested dict. `merge_layer` lays
one over the tree so far and refuses keys that no dataclass declares, with the key's full path; `build_settings` then
lets jsonargparse check and convert the values. Defaults stand in the dataclasses alone.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, TypeVar

from region_training.presets import did_you_mean
from region_training.settings import ConfigError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Option:
    """One setting: a leaf of the tree, or an optional section that may be null.

    Attributes:
        key: Dotted path, e.g. `training.learning_rate`.
        annotation: The field's type.
        required: Whether it has no default.
        default: The default as plain data; None where required.
        help: The field's line in its dataclass's docstring.
        section: Whether it stands for an optional nested dataclass.
    """

    key: str
    annotation: object
    required: bool
    default: object
    help: str
    section: bool = False


def options_of(settings: type, prefix: str = "") -> dict[str, Option]:
    """Every setting below a dataclass by its dotted key, in the order of declaration."""
    options: dict[str, Option] = {}
    hints = typing.get_type_hints(settings)
    helps = field_helps(settings)
    for field in _fields(settings):
        key = f"{prefix}{field.name}"
        required, default = _default_of(field)
        nested = nested_dataclass(hints[field.name])
        if nested is None or accepts_none(hints[field.name]):
            plain = to_plain(default)
            help_text = helps.get(field.name, "")
            options[key] = Option(key, hints[field.name], required, plain, help_text, nested is not None)
        if nested is not None:
            options |= options_of(nested, f"{key}.")
    return options


def section_keys(settings: type, prefix: str = "") -> list[str]:
    """Dotted keys of the dataclasses inside a dataclass, in the order of declaration."""
    keys: list[str] = []
    for name, annotation in typing.get_type_hints(settings).items():
        nested = nested_dataclass(annotation)
        if nested is not None:
            keys += [f"{prefix}{name}", *section_keys(nested, f"{prefix}{name}.")]
    return keys


def default_tree(settings: type) -> dict[str, object]:
    """The defaults of a dataclass as a nested dict; required fields are absent."""
    tree: dict[str, object] = {}
    hints = typing.get_type_hints(settings)
    for field in _fields(settings):
        required, default = _default_of(field)
        nested = nested_dataclass(hints[field.name])
        if not required:
            tree[field.name] = to_plain(default)
        elif nested is not None:
            tree[field.name] = default_tree(nested)
    return tree


def merge_layer(
    settings: type, tree: dict[str, object], layer: Mapping[str, object], source: str, sources: dict[str, str]
) -> None:
    """Lay one layer over the tree, in place, and note for every key where its value came from.

    Sections and dicts merge key by key; anything else replaces what stood there.

    Raises:
        ConfigError: The layer has a key that no dataclass declares, or a section that is not a mapping.
    """
    known = [*options_of(settings), *section_keys(settings)]
    _merge(settings, tree, layer, "", source, sources, known)


def build_settings(settings: type[Settings], tree: Mapping[str, object], sources: Mapping[str, str]) -> Settings:
    """Check the values of a merged tree and make the dataclass of them.

    Args:
        settings: The dataclass.
        tree: Its values, nested; texts are converted to the declared types (`"1e-4"` to a number).
        sources: Where each value came from, for errors; may be empty.

    Raises:
        ConfigError: A value is missing, has the wrong type (the message has key, value, source and expected type),
            or is refused by the dataclass itself.
    """
    options = options_of(settings)
    missing = [key for key, option in options.items() if option.required and _lookup(tree, key) is _Lookup.ABSENT]
    if missing:
        raise ConfigError(f"nothing given for {', '.join(repr(key) for key in missing)}, expected a value")
    given = {key: _lookup(tree, key) for key, option in options.items() if not option.section}
    given = {key: value for key, value in given.items() if not isinstance(value, _Lookup)}
    values = _convert({key: options[key] for key in given}, given, sources)
    try:
        return _construct(settings, tree, values, "")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def settings_from_plain(settings: type[Settings], values: Mapping[str, object], source: str) -> Settings:
    """Make a settings dataclass from a nested dict, such as a run folder's `config.yaml`, strictly.

    Raises:
        ConfigError: An unknown key, a missing value, or a value that does not fit; the message names `source`.
    """
    tree, sources = default_tree(settings), {}
    merge_layer(settings, tree, values, source, sources)
    return build_settings(settings, tree, sources)


def to_plain(value: object) -> object:
    """Dataclasses, paths, enums, tuples and sets as the dicts, lists, texts and numbers that YAML and JSON hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_plain(item) for item in value), key=str)
    return value


def plain_tree(settings: object) -> dict[str, object]:
    """A settings dataclass as the nested dict that a configuration file holds."""
    plain = to_plain(settings)
    if not isinstance(plain, dict):
        raise TypeError(f"got {type(settings).__name__}, expected a dataclass of settings")
    return plain


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """The leaves of a nested dict by dotted key; an empty dict is a leaf."""
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def nested_dataclass(annotation: object) -> type | None:
    """The dataclass behind a section's type (`Heads` or `Heads | None`); None for a leaf."""
    members = [member for member in _members(annotation) if member is not types.NoneType]
    is_section = len(members) == 1 and isinstance(members[0], type) and dataclasses.is_dataclass(members[0])
    return members[0] if is_section else None


def accepts_none(annotation: object) -> bool:
    """Whether a type includes None."""
    return annotation is object or types.NoneType in _members(annotation)


def is_switch(annotation: object) -> bool:
    """Whether a type is bool, so that the bare option means true."""
    return [member for member in _members(annotation) if member is not types.NoneType] == [bool]


def container_of(annotation: object) -> type | None:
    """`list`, `dict` or `tuple` where a type is one (or one or None); None for anything else."""
    members = [member for member in _members(annotation) if member is not types.NoneType]
    origin = (typing.get_origin(members[0]) or members[0]) if len(members) == 1 else None
    return next((container for container in (list, dict, tuple) if origin is container), None)


def type_text(annotation: object) -> str:
    """A type in words for help and errors: `int`, `auto | bf16 | fp32`, `list[str]`, `float | null`."""
    if annotation is types.NoneType:
        return "null"
    if typing.get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in typing.get_args(annotation))
    members = _members(annotation)
    if len(members) > 1:
        return " | ".join(type_text(member) for member in members)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(member.name for member in annotation)
    if annotation is bool:
        return "true | false"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is not None and arguments:
        name = origin.__name__
        return f"{name}[{', '.join('...' if item is ... else type_text(item) for item in arguments)}]"
    if isinstance(annotation, type):
        return "path" if issubclass(annotation, Path) else annotation.__name__
    return str(annotation)


def summary_of(settings: type) -> str:
    """The first paragraph of a dataclass's docstring, on one line."""
    docstring = settings.__doc__ or ""
    generated = docstring.startswith(f"{settings.__name__}(")  # what @dataclass writes where there is none
    return "" if generated else " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())


def field_helps(settings: type) -> dict[str, str]:
    """Help texts by field name, from the `Attributes:` or `Args:` section of a Google docstring and its bases'."""
    helps: dict[str, str] = {}
    for base in reversed(settings.__mro__):
        if dataclasses.is_dataclass(base):
            helps |= _docstring_fields(inspect.cleandoc(base.__doc__ or ""))
    return helps


def _docstring_fields(docstring: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name, inside = "", False
    for line in docstring.splitlines():
        if re.fullmatch(r"\S.*", line):
            inside = line in ("Attributes:", "Args:")
        elif inside and (match := re.fullmatch(r"    (\w+)(?: \(.*?\))?: (.*)", line)):
            name = match[1]
            fields[name] = match[2].strip()
        elif inside and name and line.startswith("     "):
            fields[name] += f" {line.strip()}"
    return fields


class _Lookup(Enum):
    ABSENT = "absent"
    OFF = "below a section that is null"


def _fields(settings: type) -> tuple[dataclasses.Field, ...]:
    if not dataclasses.is_dataclass(settings):
        raise TypeError(f"got {settings.__name__}, expected a dataclass of settings")
    return dataclasses.fields(settings)


def _default_of(field: dataclasses.Field) -> tuple[bool, object]:
    if field.default is not dataclasses.MISSING:
        return False, field.default
    if field.default_factory is not dataclasses.MISSING:
        return False, field.default_factory()
    return True, None


def _members(annotation: object) -> tuple[object, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _merge(
    settings: type,
    tree: dict[str, object],
    layer: Mapping[str, object],
    prefix: str,
    source: str,
    sources: dict[str, str],
    known: Collection[str],
) -> None:
    hints = typing.get_type_hints(settings)
    fields = {field.name for field in _fields(settings)}
    for name, value in layer.items():
        key = f"{prefix}{name}"
        if name not in fields:
            raise ConfigError(f"{source}: unknown setting {key!r}{did_you_mean(key, known)}")
        nested = nested_dataclass(hints[name])
        if nested is not None and isinstance(value, Mapping):
            below = tree.get(name)
            section = below if isinstance(below, dict) else default_tree(nested)
            tree[name] = section
            sources[key] = source
            _merge(nested, section, value, f"{key}.", source, sources, known)
        elif nested is not None and not (accepts_none(hints[name]) and value in (None, "null")):
            raise ConfigError(f"{source}: {key} is {value!r}, expected a section with the keys {_names(nested)}")
        else:
            old = tree.get(name)
            merges = isinstance(old, dict) and isinstance(value, Mapping) and nested is None
            tree[name] = {**old, **value} if merges else (None if nested is not None else value)
            sources[key] = source


def _names(settings: type) -> str:
    return ", ".join(field.name for field in _fields(settings))


def _convert(
    options: Mapping[str, Option], values: Mapping[str, object], sources: Mapping[str, str]
) -> dict[str, object]:
    """Check and convert the leaves with jsonargparse, all in one go."""
    # Imported here: a quarter of a second that `--help` need not wait for.
    from jsonargparse import ArgumentError, ArgumentParser

    # Numbered names: no key of ours can meet a word that jsonargparse keeps for itself.
    numbered = {f"value_{number}": key for number, key in enumerate(values)}
    parser = ArgumentParser(prog="settings", exit_on_error=False)
    for name, key in numbered.items():
        parser.add_argument(f"--{name}", type=options[key].annotation)
    try:
        parsed = parser.instantiate(parser.parse_object({name: values[key] for name, key in numbered.items()}))
    except ArgumentError as error:
        name = re.search(r'"(value_\d+)', str(error))
        if name is None:
            raise ConfigError(str(error)) from error
        raise ConfigError(_mismatch(options[numbered[name[1]]], values, sources)) from error
    converted = {key: parsed[name] for name, key in numbered.items()}
    for key, value in converted.items():
        # jsonargparse lets null stand for every type; a list that is None fails much later.
        if value is None and not accepts_none(options[key].annotation):
            raise ConfigError(_mismatch(options[key], values, sources))
    return converted


def _construct(settings: type[Settings], tree: Mapping[str, object], values: Mapping[str, object], at: str) -> Settings:
    """Make a dataclass and those inside it of converted leaves; `tree` says which sections are off."""
    hints = typing.get_type_hints(settings)
    arguments: dict[str, object] = {}
    for field in _fields(settings):
        nested = nested_dataclass(hints[field.name])
        section = tree.get(field.name)
        if nested is None:
            arguments[field.name] = values[f"{at}{field.name}"]
        else:
            is_on = isinstance(section, dict)
            arguments[field.name] = _construct(nested, section, values, f"{at}{field.name}.") if is_on else None
    return settings(**arguments)


def _lookup(tree: object, key: str) -> object:
    for name in key.split("."):
        if tree is None:
            return _Lookup.OFF
        if not isinstance(tree, Mapping) or name not in tree:
            return _Lookup.ABSENT
        tree = tree[name]
    return tree


def _mismatch(option: Option, values: Mapping[str, object], sources: Mapping[str, str]) -> str:
    origin = f" (from {sources[option.key]})" if option.key in sources else ""
    return f"{option.key} is {values[option.key]!r}{origin}, expected {type_text(option.annotation)}"
