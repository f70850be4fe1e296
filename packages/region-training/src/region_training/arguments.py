"""The words after a verb: options with dots, positionals, the guides' own flags and what launchers add.

Three spellings are one: `--training.learning_rate 1e-4`, `--training.learning-rate=1e-4` and, where an application's
table says so, the guide's `--learning_rate 1e-4`. Lists take `--key+ value` to append. A bare switch means true. A
whole section takes a mapping, `--model.heads '{"counting": {"enabled": false}}'`, whose keys are laid over it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from region_training.config_tree import Option, container_of, is_switch
from region_training.presets import did_you_mean
from region_training.settings import ConfigError

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True)
class Override:
    """One setting given on the command line.

    Attributes:
        key: Dotted key.
        value: Its text.
        append: Whether it is added to a list.
        source: The word as written, for errors.
    """

    key: str
    value: str
    append: bool
    source: str


@dataclass
class Arguments:
    """What stood after a verb.

    Attributes:
        preset: The preset asked for.
        configs: Configuration files in order.
        overrides: Settings in order.
        ignored: Legacy flags that have no effect here, by the name written.
        help: Whether help was asked for.
    """

    preset: str | None = None
    configs: list[str] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    help: bool = False


@dataclass(frozen=True)
class Grammar:
    """What a verb understands.

    Attributes:
        options: Its settings by dotted key.
        positional: Keys that are filled by words without dashes, in order; a last one of type list takes the rest.
        takes_presets: Whether `--preset` and `--config` are accepted.
        legacy_flags: A guide's flag to a dotted key, to `key=value` (a switch that sets that value) or to None
            (known, without effect).
        sections: Dotted keys of whole sections, which take a mapping.
    """

    options: Mapping[str, Option]
    positional: Sequence[str] = ()
    takes_presets: bool = False
    legacy_flags: Mapping[str, str | None] = field(default_factory=dict)
    sections: Collection[str] = ()


def take_switch(words: Sequence[str], name: str) -> tuple[list[str], bool]:
    """Remove a switch wherever it stands; also say whether it was there."""
    return [word for word in words if word != name], name in words


def take_local_rank(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Remove `--local_rank N` in any spelling, which launchers put before or after the verb; also give N."""
    rest: list[str] = []
    rank: str | None = None
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.partition("=")
        if _same_flag(name, "--local_rank"):
            if not equals and not remaining:
                raise ConfigError(f"{word} needs a value, the rank's number on this machine")
            rank = value if equals else remaining.pop(0)
            if not rank.lstrip("-").isdigit():
                raise ConfigError(f"{name} is {rank!r}, expected a number")
        else:
            rest.append(word)
    return rest, rank


def read_arguments(words: Sequence[str], grammar: Grammar) -> Arguments:
    """Sort the words after a verb.

    Raises:
        ConfigError: An unknown option (with the nearest known one), a missing value, or a word too many.
    """
    read = Arguments()
    remaining = list(words)
    positionals: list[str] = []
    while remaining:
        word = remaining.pop(0)
        if word in ("-h", "--help"):
            read.help = True
        elif not word.startswith("--"):
            positionals.append(word)
        else:
            _read_option(word, remaining, grammar, read)
    read.overrides += _fill_positionals(positionals, grammar)
    return read


def _read_option(word: str, remaining: list[str], grammar: Grammar, read: Arguments) -> None:
    name, equals, value = word.partition("=")
    given = value if equals else None
    if grammar.takes_presets and name == "--preset":
        if read.preset is not None:
            raise ConfigError(f"--preset is given twice: {read.preset!r} and another; expected one")
        read.preset = _value_of(name, given, remaining)
    elif grammar.takes_presets and name == "--config":
        read.configs.append(_value_of(name, given, remaining))
    else:
        legacy = _find_legacy(name, grammar.legacy_flags)
        if legacy is None:
            _read_setting(name, given, remaining, grammar, read)
        else:
            _read_legacy(name, grammar.legacy_flags[legacy], given, remaining, grammar, read)


def _read_setting(name: str, given: str | None, remaining: list[str], grammar: Grammar, read: Arguments) -> None:
    append = name.endswith("+")
    key = _known_key(name.removeprefix("--").removesuffix("+"), grammar)
    if key is None:
        known = [f"--{option}" for option in (*grammar.options, *grammar.sections)]
        known += ["--preset", "--config"] if grammar.takes_presets else []
        raise ConfigError(f"unknown option {name!r}{did_you_mean(name, known)}")
    option = grammar.options.get(key)
    if append and (option is None or container_of(option.annotation) not in (list, tuple)):
        raise ConfigError(f"{name} appends to a list, which {key!r} is not")
    value = _read_value(name, given, remaining, option is not None and is_switch(option.annotation), grammar)
    read.overrides.append(Override(key, value, append, name))


def _read_legacy(
    name: str, target: str | None, given: str | None, remaining: list[str], grammar: Grammar, read: Arguments
) -> None:
    if target is None:
        if given is None and remaining and not remaining[0].startswith("--"):
            remaining.pop(0)
        read.ignored.append(name)
        return
    key, equals, fixed = target.partition("=")
    if _known_key(key, grammar) is None:
        raise ConfigError(f"{name} sets {key!r}, which this verb does not have")
    if not equals:
        option = grammar.options.get(key)
        value = _read_value(name, given, remaining, option is not None and is_switch(option.annotation), grammar)
        if option is not None and container_of(option.annotation) is list:
            value = _as_list(value)
        read.overrides.append(Override(key, value, False, name))
    elif _truth(name, _read_value(name, given, remaining, True, grammar)):
        read.overrides.append(Override(key, fixed, False, name))


def _as_list(value: str) -> str:
    """A guide's single word where the setting is a list; its "none" is an empty one."""
    if value.startswith("["):
        return value
    return "[]" if value == "none" else f"[{value}]"


def _read_value(name: str, given: str | None, remaining: list[str], switch: bool, grammar: Grammar) -> str:
    if switch and given is None:
        following = remaining[0] if remaining else "--"
        # Where a verb takes bare words, one that is no truth value is not the switch's.
        is_bare = following.startswith("--") or bool(grammar.positional)
        if is_bare and following.lower() not in TRUE_WORDS | FALSE_WORDS:
            return "true"
    value = _value_of(name, given, remaining)
    return str(_truth(name, value)).lower() if switch and value != "null" else value


def _value_of(name: str, given: str | None, remaining: list[str]) -> str:
    if given is not None:
        return given
    if not remaining or remaining[0].startswith("--"):
        raise ConfigError(f"{name} needs a value")
    return remaining.pop(0)


def _truth(name: str, value: str) -> bool:
    if value.lower() in TRUE_WORDS:
        return True
    if value.lower() in FALSE_WORDS:
        return False
    raise ConfigError(f"{name} is {value!r}, expected true | false")


def _known_key(written: str, grammar: Grammar) -> str | None:
    """The dotted key of an option or section as written, or None; below a dict any word is a key."""
    for key in (written, written.replace("-", "_")):
        if key in grammar.options or key in grammar.sections:
            return key
    section, _, entry = written.rpartition(".")
    option = grammar.options.get(section.replace("-", "_"))
    if option is None or not entry or container_of(option.annotation) is not dict:
        return None
    return f"{option.key}.{entry}"


def _find_legacy(name: str, flags: Mapping[str, str | None]) -> str | None:
    return next((flag for flag in flags if _same_flag(flag, name)), None)


def _same_flag(flag: str, name: str) -> bool:
    return flag.replace("_", "-") == name.replace("_", "-")


def _fill_positionals(words: list[str], grammar: Grammar) -> list[Override]:
    overrides: list[Override] = []
    names = list(grammar.positional)
    for index, word in enumerate(words):
        is_last = bool(names) and index >= len(names) - 1
        if is_last and container_of(grammar.options[names[-1]].annotation) in (list, tuple):
            overrides.append(Override(names[-1], word, True, names[-1].upper()))
        elif index < len(names):
            overrides.append(Override(names[index], word, False, names[index].upper()))
        else:
            expected = " ".join(name.upper() for name in names) or "options only"
            raise ConfigError(f"unexpected word {word!r}, expected {expected}")
    return overrides
