"""The folder of one run: configuration, environment, metrics, samples, model, report.

Running the same command again continues the run or says that it is finished; another configuration is refused with
the settings that differ. Every rank may call everything here: only rank 0 writes, and files appear whole. Values of
settings that hold secrets are never written.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

from region_training.config_tree import flatten, plain_tree, settings_from_plain, to_plain
from region_training.presets import read_config
from region_training.records import parse_records
from region_training.settings import ConfigError

# Settings that change neither what is learned nor in which order.
HARMLESS_KEYS = frozenset(
    f"training.{name}"
    for name in ("resume", "num_workers", "keep_checkpoints", "save_every", "report_to", "communication_timeout_s")
)
EVALUATIONS = "evaluations"
_SECRET = re.compile(
    r"(^|[_.-])(api_?key|passw(or)?d|secret|credentials?|(hub|hf|access|auth|api)_token)$|^token$", re.I
)

Settings = TypeVar("Settings")


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; it need not exist until `begin`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.environment_path = self.path / "environment.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.results_path = self.path / "results.json"
        self.bad_records_path = self.path / "bad_records.jsonl"
        self.samples_path = self.path / "samples"
        self.model_path = self.path / "model"
        self.report_path = self.path / "report.html"

    @classmethod
    def open(cls, path: Path | str) -> "RunFolder":
        """The folder of a run that was begun.

        Raises:
            ConfigError: There is no run at `path`; the message names runs nearby.
        """
        run = cls(path)
        if run.config_path.is_file():
            return run
        near = sorted(str(found.parent) for found in Path("runs").glob("*/config.yaml"))
        hint = f"; runs here: {', '.join(near)}" if near else ""
        raise ConfigError(f"no run at {str(path)!r}: expected a folder with config.yaml{hint}")

    def begin(
        self,
        settings: object,
        *,
        environment: Mapping[str, object] | None = None,
        may_differ: Collection[str] = HARMLESS_KEYS,
    ) -> Literal["new", "resumed", "finished"]:
        """Create the folder, or enter it again with the same configuration.

        Args:
            settings: The run's settings, a dataclass.
            environment: What `collect_environment` gave; written beside the configuration.
            may_differ: Dotted keys that may change between the parts of one run.

        Returns:
            `"finished"` where `finish` was called before, `"resumed"` where there is a checkpoint, else `"new"`.

        Raises:
            ConfigError: The folder holds something else, or a run with another configuration.
        """
        config = _without_secrets(plain_tree(settings))
        if self.config_path.is_file():
            self._expect_same(config, may_differ)
        elif _is_main_process() and self.path.exists():
            if not self.path.is_dir():
                raise ConfigError(f"the run folder {str(self.path)!r} is a file, expected a folder or nothing")
            if any(self.path.iterdir()):
                raise ConfigError(
                    f"the folder {str(self.path)!r} holds files but no run (no config.yaml); expected an empty one, "
                    "or a new name"
                )
        if self.is_finished:
            return "finished"
        if _is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config_path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
            if environment is not None:
                plain = _without_secrets({key: to_plain(value) for key, value in environment.items()})
                write_atomically(self.environment_path, json.dumps(plain, indent=2) + "\n")
        return "resumed" if any(self.path.glob("checkpoint-*")) else "new"

    def begin_evaluation(self, settings: object, *names: str) -> "RunFolder":
        """A new folder for other questions than the run's own, whose results stay: `evaluations/NAME`.

        Args:
            settings: The run's settings as this evaluation has them: a dataclass with `run_dir`, which becomes this
                folder.
            names: What was evaluated, in a few words. An earlier evaluation of the same name is deleted: call this when
                the new results are there.
        """
        name = "-".join(name.strip("/").replace("/", "_").replace("*", "all") for name in names)
        folder = RunFolder(self.path / EVALUATIONS / name)
        if _is_main_process() and folder.path.exists():
            shutil.rmtree(folder.path)
        folder.begin(replace(cast("Any", settings), run_dir=str(folder.path)))
        return folder

    def finish(self, results: Mapping[str, object]) -> None:
        """Note the final results, which marks the run as finished."""
        if _is_main_process():
            write_atomically(self.results_path, json.dumps(to_plain(results), indent=2, allow_nan=False) + "\n")

    @property
    def is_finished(self) -> bool:
        """Whether `finish` was called."""
        return self.results_path.is_file()

    def read_config(self) -> dict[str, object]:
        """The resolved configuration as nested dicts."""
        return read_config(self.config_path)

    def load_settings(self, settings: type[Settings]) -> Settings:
        """The resolved configuration as the dataclass it was made from.

        Raises:
            ConfigError: The file does not fit the dataclass (it was written by another application or version).
        """
        return settings_from_plain(settings, self.read_config(), str(self.config_path))

    def read_environment(self) -> dict[str, object]:
        """What `environment.json` holds; empty where there is none."""
        return json.loads(self.environment_path.read_text(encoding="utf-8")) if self.environment_path.is_file() else {}

    def read_results(self) -> dict[str, object]:
        """What `finish` wrote; empty before."""
        return json.loads(self.results_path.read_text(encoding="utf-8")) if self.is_finished else {}

    def read_metrics(self) -> list[dict[str, object]]:
        """The lines of `metrics.jsonl`, one dict per logged step; empty where nothing is logged yet."""
        if not self.metrics_path.is_file():
            return []
        # A process killed while it wrote leaves a last line without its end.
        whole_lines = self.metrics_path.read_text(encoding="utf-8").rpartition("\n")[0]
        return parse_records(whole_lines, str(self.metrics_path))

    def samples(self) -> list[Path]:
        """Pictures in `samples/`, by name."""
        return sorted(self.samples_path.glob("*.png"))

    def _expect_same(self, config: dict[str, object], may_differ: Collection[str]) -> None:
        old, new = flatten(self.read_config()), flatten(config)
        lines = [
            f"  {key}: {_shown(old, key)} -> {_shown(new, key)}"
            for key in sorted({*old, *new})
            if _shown(old, key) != _shown(new, key) and not _covers(may_differ, key)
        ]
        if lines:
            raise ConfigError(
                f"{str(self.path)!r} holds a run with another configuration (there -> now):\n"
                + "\n".join(lines)
                + "\nGive this run a folder of its own, or delete that one."
            )


def name_of_other(root: str, own: str) -> tuple[str, ...]:
    """What a folder of data is called in the name of an evaluation; nothing where it is the run's own."""
    return () if root == own else (Path(root).resolve().name,)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files for the owner alone; runs are shared like any other file.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_folder_once(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder that is whole or absent; one that is there stays as it is.

    Args:
        folder: The folder.
        write: Writes the files into a folder that it makes, which then takes the name in one step.
    """
    if folder.exists():
        return
    staged = folder.with_name(f".{folder.name}.part")
    # Of a process that was killed.
    shutil.rmtree(staged, ignore_errors=True)
    write(staged)
    staged.rename(folder)


def hide_secrets(words: Sequence[str]) -> list[str]:
    """A command line with the values of secret options replaced by `***`."""
    hidden: list[str] = []
    after_secret = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = word.startswith("--") and _SECRET.search(name.lstrip("-").replace("-", "_")) is not None
        if after_secret and not word.startswith("--"):
            hidden.append("***")
        else:
            hidden.append(f"{name}=***" if is_secret and equals else word)
        after_secret = is_secret and not equals
    return hidden


def _without_secrets(tree: Mapping[str, object]) -> dict[str, object]:
    """The tree without the settings that hold secrets; reading it back gives their defaults."""
    clean: dict[str, object] = {}
    for key, item in tree.items():
        if isinstance(item, Mapping):
            clean[key] = _without_secrets(item)
        elif isinstance(item, list):
            clean[key] = [_without_secrets(entry) if isinstance(entry, dict) else entry for entry in item]
        elif not _SECRET.search(key):
            clean[key] = item
    return clean


def _shown(leaves: Mapping[str, object], key: str) -> str:
    return repr(leaves[key]) if key in leaves else "absent"


def _covers(may_differ: Collection[str], key: str) -> bool:
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in may_differ)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
