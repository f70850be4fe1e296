"""One command line for every application: verbs, presets, configuration files, dotted overrides, the guides' flags.

A setting's value comes from, in rising order: the dataclass's default, the preset, each `--config` file, the options.
Nothing here imports torch: help, `show-config` and configuration errors answer at once. Exit codes: 0 done, 1 the
verb failed, 2 the command line or the configuration is wrong, 130 interrupted.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from region_training.arguments import Arguments, Grammar, read_arguments, take_local_rank, take_switch
from region_training.config_tree import (
    build_settings,
    default_tree,
    flatten,
    merge_layer,
    options_of,
    section_keys,
    to_plain,
)
from region_training.help_text import application_help, verb_help
from region_training.presets import Translate, did_you_mean, parse_config, preset_layers, preset_names, read_config
from region_training.settings import ConfigError

DEFAULT_PRESET = "tiny"
TRACEBACK_VARIABLE = "REGION_TRAINING_TRACEBACK"
_BRICKS = (
    "region_core",
    "region_heads",
    "region_training",
    "deformable_projector",
    "roi_region_loss",
    "video_autoregressive",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verb:
    """One thing an application does.

    Attributes:
        run: Called with the settings; imports what is heavy inside. May return an exit code; None is 0.
        settings: The dataclass of its settings; the `Attributes:` of its docstring are the help texts.
        help: One line for the list of verbs.
        presets: Whether it takes `--preset` and `--config`. Without either, the preset `tiny` is used; with
            `--config` alone the dataclass's defaults stand below the file, unless it names a `preset:` itself.
        positional: Settings that may be given as bare words, in order; a last one of type list takes the rest.
        run_key: The setting that holds the run folder; filled with `runs/<application>-<preset>` (or the name of the
            last configuration file) where it is left empty.
    """

    run: Callable[..., int | None]
    settings: type
    help: str
    presets: bool = False
    positional: tuple[str, ...] = ()
    run_key: str | None = None


@dataclass(frozen=True)
class Application:
    """A command and its verbs. `show-config` and `env` are added to what it declares.

    Attributes:
        name: The command.
        description: One or two sentences for the help.
        verbs: Verbs by name.
        presets_package: The package that holds the presets, e.g. `"spatialrgpt.configs"`.
        legacy_flags: A guide's flag to the dotted key it sets, to `key=value` (a switch that sets that value), or to
            None: known, without effect here, warned of by name.
        translate_config: Reads configuration files that hold a list at their top, for a guide that has such; given the
            list and the file's name it returns settings as in our own files.
    """

    name: str
    description: str
    verbs: Mapping[str, Verb]
    presets_package: str
    legacy_flags: Mapping[str, str | None] = field(default_factory=dict)
    translate_config: Translate | None = None


@dataclass(frozen=True)
class EnvironmentSettings:
    """Settings of `env`: none."""


def main(application: Application, argv: Sequence[str] | None = None) -> int:
    """Run an application's command line.

    Args:
        application: What it can do.
        argv: The words after the command's name; those of the process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words, with_traceback = take_switch(words, "--traceback")
    with_traceback = with_traceback or bool(os.environ.get(TRACEBACK_VARIABLE))
    try:
        return _dispatch(application, words)
    except KeyboardInterrupt:
        sys.stderr.write(f"{application.name}: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of a pipe (`show-config | head`) has left; what Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _UsageError as error:
        if with_traceback:
            raise
        sys.stderr.write(f"{application.name}: {error}\n")
        return 2
    except (ValueError, OSError) as error:
        if with_traceback:
            raise
        sys.stderr.write(f"{application.name}: {error}\n(--traceback shows where)\n")
        return 1


def resolve_settings(application: Application, verb: str, words: Sequence[str]) -> object:
    """The settings that a verb would run with, without running it.

    Args:
        application: The application.
        verb: One of its verbs.
        words: The words after the verb.

    Raises:
        ConfigError: An option, a file or a value is wrong.
    """
    chosen = application.verbs[verb]
    return _settings_of(application, chosen, read_arguments(words, _grammar(application, chosen)))


def setup_logging(package: str) -> None:
    """Set up logging once: INFO of our packages on rank 0 through rich, warnings elsewhere and of other libraries."""
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=160)
        handler: logging.Handler = RichHandler(console=console, show_path=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"[rank {rank}] %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [known for known in root.handlers if known.get_name() == "command line"]:
        root.removeHandler(old)
    handler.set_name("command line")
    root.addHandler(handler)
    for name in (*_BRICKS, package):
        logging.getLogger(name).setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _UsageError(Exception):
    """The command line or the configuration is wrong: exit code 2."""


def _dispatch(application: Application, words: list[str]) -> int:
    try:
        words, local_rank = take_local_rank(words)
        if local_rank is not None:
            os.environ.setdefault("LOCAL_RANK", local_rank)
        if not words or words[0] in ("-h", "--help"):
            text = application_help(application.name, application.description, _verb_lines(application))
            (sys.stdout if words else sys.stderr).write(text)
            return 0 if words else 2
        name, rest = _take_verb(application, words)
        if name == "show-config" and name not in application.verbs:
            return _show_config(application, rest)
        verb = application.verbs.get(name, _ENV)
        read = read_arguments(rest, _grammar(application, verb))
        if read.help:
            sys.stdout.write(_verb_help(application, name, verb))
            return 0
        settings = _settings_of(application, verb, read)
    except ConfigError as error:
        raise _UsageError(str(error)) from error
    setup_logging(application.presets_package.partition(".")[0])
    for flag in read.ignored:
        logger.warning("%s is known from the guide and has no effect here", flag)
    return verb.run(settings) or 0


def _take_verb(application: Application, words: list[str]) -> tuple[str, list[str]]:
    name = words[0]
    known = list(_verb_lines(application))
    if name not in known:
        if name.startswith("-"):
            raise ConfigError(f"got the option {name!r} first, expected a verb: {', '.join(known)}")
        raise ConfigError(f"no verb {name!r}{did_you_mean(name, known)}; verbs: {', '.join(known)}")
    return name, words[1:]


def _verb_lines(application: Application) -> dict[str, str]:
    added = {"show-config": "print a verb's resolved configuration as YAML", "env": _ENV.help}
    return {**{name: verb.help for name, verb in application.verbs.items()}, **added}


def _grammar(application: Application, verb: Verb) -> Grammar:
    legacy = application.legacy_flags if verb.presets else {}
    return Grammar(options_of(verb.settings), verb.positional, verb.presets, legacy, section_keys(verb.settings))


def _settings_of(application: Application, verb: Verb, read: Arguments) -> object:
    tree, sources = default_tree(verb.settings), {}
    sections = section_keys(verb.settings)
    for source, layer in _layers(application, verb, read):
        merge_layer(verb.settings, tree, layer, source, sources)
    for override in read.overrides:
        value: object = override.value
        if override.append:
            so_far = flatten(tree).get(override.key)
            value = [*so_far, override.value] if isinstance(so_far, list) else [override.value]
        elif override.key in sections and override.value != "null":
            value = parse_config(override.value, override.source)
        merge_layer(verb.settings, tree, _nest(override.key, value), override.source, sources)
    if verb.run_key is not None and not flatten(tree).get(verb.run_key):
        base = Path(read.configs[-1]).stem if read.configs else read.preset or DEFAULT_PRESET
        merge_layer(verb.settings, tree, _nest(verb.run_key, f"runs/{application.name}-{base}"), "the default", sources)
    return build_settings(verb.settings, tree, sources)


def _layers(application: Application, verb: Verb, read: Arguments) -> list[tuple[str, dict[str, object]]]:
    """Presets and files in rising order; a file that names a `preset:` has that one below it."""
    package = application.presets_package
    layers: list[tuple[str, dict[str, object]]] = []
    preset = read.preset
    if preset is None and verb.presets and not read.configs:
        preset = DEFAULT_PRESET
    if preset is not None:
        layers.extend((f"preset {name}", layer) for name, layer in preset_layers(package, preset))
    for config in read.configs:
        layer = read_config(config, translate=application.translate_config)
        named = layer.pop("preset", None)
        if named is not None:
            layers.extend((f"preset {name} of {config}", layer) for name, layer in preset_layers(package, str(named)))
        layers.append((config, layer))
    return layers


def _nest(key: str, value: object) -> dict[str, object]:
    first, _, below = key.partition(".")
    return {first: _nest(below, value) if below else value}


def _show_config(application: Application, words: list[str]) -> int:
    configurable = [name for name, verb in application.verbs.items() if verb.presets]
    if not configurable:
        raise ConfigError("show-config: no verb of this application takes a configuration")
    name, rest = (words[0], words[1:]) if words and words[0] in configurable else (configurable[0], words)
    verb = application.verbs[name]
    read = read_arguments(rest, _grammar(application, verb))
    if read.help:
        sys.stdout.write(_verb_help(application, f"show-config {name}", verb))
    else:
        plain = to_plain(_settings_of(application, verb, read))
        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    return 0


def _show_environment(settings: EnvironmentSettings) -> None:
    del settings
    from region_training.environment import collect_environment, describe_environment

    sys.stdout.write(describe_environment(collect_environment()))


def _verb_help(application: Application, name: str, verb: Verb) -> str:
    return verb_help(
        f"{application.name} {name}",
        verb.help,
        verb.settings,
        positional=verb.positional,
        presets=preset_names(application.presets_package) if verb.presets else None,
        default_preset=DEFAULT_PRESET,
    )


_ENV = Verb(_show_environment, EnvironmentSettings, "print versions, devices and memory, for a bug report")
