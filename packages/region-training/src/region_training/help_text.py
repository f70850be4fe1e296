"""The help texts: every option of a verb by section, with its type, default and line from the docstring."""

import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence

from region_training.config_tree import (
    Option,
    container_of,
    is_switch,
    nested_dataclass,
    options_of,
    summary_of,
    type_text,
)


def application_help(name: str, description: str, verbs: Mapping[str, str]) -> str:
    """The help of the command itself.

    Args:
        name: The command.
        description: What the application is.
        verbs: One line of help per verb.
    """
    lines = [f"usage: {name} VERB [options]", "", *_wrap(description, ""), "", "verbs:"]
    lines += [line for verb, text in verbs.items() for line in _entry(verb, text)]
    lines += ["", f"`{name} VERB --help` lists the options of a verb.", ""]
    return "\n".join(lines)


def verb_help(
    name: str,
    text: str,
    settings: type,
    *,
    positional: Sequence[str],
    presets: Sequence[str] | None,
    default_preset: str,
) -> str:
    """The help of one verb.

    Args:
        name: Command and verb.
        text: What the verb does.
        settings: Its settings.
        positional: Those that may be bare words.
        presets: Names of the presets; None where the verb takes none.
        default_preset: The preset used without `--preset` and `--config`.
    """
    options = options_of(settings)
    words = "".join(f" {_word(options[key])}" for key in positional)
    lines = [f"usage: {name}{words} [options]", "", *_wrap(text, "")]
    if presets is not None:
        known = ", ".join(f"{preset} (default)" if preset == default_preset else preset for preset in presets)
        lines += ["", "configuration:"]
        lines += _entry("--preset NAME", f"one of: {known or 'none'}")
        lines += _entry("--config FILE", "a YAML file over the preset; may be repeated, later files win")
    for title, section in _sections(settings, options).items():
        lines += ["", f"{title}:"]
        lines += [
            line for option in section for line in _entry(_left(option), _right(option, option.key in positional))
        ]
    lines += ["", "always:"]
    lines += _entry("--help", "this text")
    lines += _entry("--traceback", "show where an error comes from")
    return "\n".join([*lines, ""])


def _sections(settings: type, options: Mapping[str, Option]) -> dict[str, list[Option]]:
    titles = _titles(settings, "")
    sections: dict[str, list[Option]] = {}
    for option in options.values():
        prefix = option.key.rpartition(".")[0]
        sections.setdefault(titles[prefix], []).append(option)
    return sections


def _titles(settings: type, prefix: str) -> dict[str, str]:
    """The heading of every section by its key: the key and the first sentence of its dataclass's docstring."""
    summary = summary_of(settings).split(". ")[0].rstrip(".")
    titles = {prefix: f"{prefix} - {summary}" if prefix else "options"}
    for name, annotation in typing.get_type_hints(settings).items():
        nested = nested_dataclass(annotation)
        if nested is not None:
            titles |= _titles(nested, f"{prefix}.{name}" if prefix else name)
    return titles


def _left(option: Option) -> str:
    return f"--{option.key}" if is_switch(option.annotation) else f"--{option.key} {_value_word(option)}"


def _word(option: Option) -> str:
    more = " ..." if container_of(option.annotation) in (list, tuple) else ""
    word = f"{option.key.upper()}{more}"
    return word if option.required else f"[{word}]"


def _value_word(option: Option) -> str:
    if option.section:
        return "null"
    return {"int": "INT", "float": "NUMBER", "str": "TEXT"}.get(type_text(option.annotation), "VALUE")


def _right(option: Option, positional: bool) -> str:
    kind = "null switches this section off" if option.section else type_text(option.annotation)
    notes = "required" if option.required else f"default: {_default_text(option)}"
    bare = "; may be a bare word" if positional else ""
    return f"{option.help} [{kind}; {notes}{bare}]".strip()


def _default_text(option: Option) -> str:
    if option.section:
        return "off" if option.default is None else "on"
    if option.default in (None, ""):
        return "none"
    return str(option.default).lower() if is_switch(option.annotation) else str(option.default)


def _entry(left: str, right: str) -> list[str]:
    indent = " " * 30
    lines = _wrap(right, indent)
    if len(left) <= 26:
        return [f"  {left:<28}{lines[0].lstrip()}" if lines else f"  {left}", *lines[1:]]
    return [f"  {left}", *lines]


def _wrap(text: str, indent: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.wrap(text, max(width, 60), initial_indent=indent, subsequent_indent=indent)
