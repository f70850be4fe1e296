"""Fixtures across packages: a small world, a configuration of toy size, and the command run as a user runs it."""

import importlib
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from region_training.testing import RankOutcome, start_ranks
from safetensors.torch import load_file
from transformers import TrainerCallback

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
CONFIGURATIONS = Path(__file__).parent / "small"
WORLD = {"train_scenes": 6, "eval_scenes": 3, "questions": 1, "seed": 0}
SPRC_WORLD = {"train_scenes": 6, "eval_scenes": 6, "edits": 3, "image_size": 48, "seed": 0}
PSALM_WORLD = {"train_scenes": 6, "eval_scenes": 4, "image_size": 64, "seed": 0}
# One clip has a variable rate and one is cut; beside the clips there are a picture and a record of words alone.
LMMS_WORLD = {"train_clips": 9, "eval_clips": 6, "image_size": 32, "seed": 0}
ZERO3 = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
VOLATILE = ("time/", "throughput/", "memory/", "frames_per_s", "decode_ms")


@dataclass(frozen=True)
class Small:
    """A small world, and a configuration that trains on it in seconds.

    Attributes:
        root: Folder of the data.
        config: The configuration file.
        names_root: Whether the command line names the data's folder, rather than the configuration file.
    """

    root: Path
    config: Path
    names_root: bool = True

    def train(self, run: Path, *words: str) -> list[str]:
        """Command line of a training run; later words win."""
        data = ["--data.root", str(self.root)] if self.names_root else []
        return ["train", "--config", str(self.config), "--run_dir", str(run), *data, *words]


def _configure(application: str, folder: Path, data: Mapping[str, object]) -> Path:
    """The configuration of toy size of an application, with these settings of its data added."""
    content = yaml.safe_load((CONFIGURATIONS / f"{application}.yaml").read_text())
    content["data"] = {**content.get("data", {}), **data}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    from spatialrgpt.config import SyntheticSettings
    from spatialrgpt.synthetic import write_world

    folder = tmp_path_factory.mktemp("small")
    write_world(folder / "world", SyntheticSettings(**WORLD))
    return Small(folder / "world", _configure("spatialrgpt", folder, {}))


@pytest.fixture(scope="session")
def spatialrgpt_command() -> Callable[[Sequence[str], Path], tuple[int, str]]:
    """Run the real `main` in a process of its own that nobody launched: exit code, and everything it wrote."""

    def call(words: Sequence[str], folder: Path) -> tuple[int, str]:
        def run(rank: int) -> int:
            import torch.distributed as dist
            from spatialrgpt.cli import main

            dist.destroy_process_group()
            for name in LAUNCHER:
                os.environ.pop(name, None)
            return main(list(words))

        outcome = start_ranks(run, 1, folder).wait(180.0)[0]
        assert outcome.exit_code == 0, f"{outcome.error}\n{outcome.output}"
        return int(str(outcome.result)), outcome.output

    return call


@pytest.fixture(scope="session")
def trained(small, spatialrgpt_command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: four steps of ZeRO-2 in one process."""
    folder = tmp_path_factory.mktemp("trained")
    code, output = spatialrgpt_command(small.train(folder / "run"), folder / "ranks")
    assert code == 0, output
    return folder / "run"


def _commands(main: Callable[[Sequence[str]], int]) -> Callable[[Sequence[Sequence[str]], Path], list[tuple[int, str]]]:
    """A function that runs command lines one after the other in a forked process."""
    mark = "=== end of a command"

    def call(commands: Sequence[Sequence[str]], folder: Path) -> list[tuple[int, str]]:
        def run(rank: int) -> list[int]:
            codes = []
            for words in commands:
                codes.append(main(words))
                print(mark, flush=True)  # noqa: T201 - between the outputs
            return codes

        outcome = start_ranks(run, 1, folder).wait(300.0)[0]
        assert outcome.exit_code == 0, f"{outcome.error}\n{outcome.output}"
        codes = outcome.result
        assert isinstance(codes, list)
        return list(zip(codes, outcome.output.split(mark)[: len(codes)], strict=True))

    return call


def _train(small: Small, commands: Callable, folder: Path) -> Path:
    """Train on a small world; the folder of the finished run."""
    ((code, output),) = commands([small.train(folder / "run")], folder / "ranks")
    assert code == 0, output
    return folder / "run"


@pytest.fixture(scope="session")
def sprc_small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small world of triplets with region pairs, in CIRR's layout."""
    from sprc.config import SyntheticSettings
    from sprc.synthetic import write_world

    folder = tmp_path_factory.mktemp("sprc-small")
    write_world(folder / "world", SyntheticSettings(**SPRC_WORLD))
    data = {"dataset": "CIRR", "box_file": str(folder / "world" / "boxes" / "pairs.{split}.json")}
    return Small(folder / "world", _configure("sprc", folder, data))


@pytest.fixture(scope="session")
def sprc_commands() -> Callable[[Sequence[Sequence[str]], Path], list[tuple[int, str]]]:
    """Run the real `main` several times in one forked process: exit code and output of each."""
    # Here once, and not in every fork.
    import sprc.train  # noqa: F401
    from sprc.cli import main

    return _commands(main)


@pytest.fixture(scope="session")
def sprc_trained(sprc_small, sprc_commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `sprc train`: two steps without the region loss, two with it."""
    return _train(sprc_small, sprc_commands, tmp_path_factory.mktemp("sprc-trained"))


@pytest.fixture(scope="session")
def psalm_small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small world of panoptic scenes with sentences, prompts and image pairs, in the real formats."""
    from psalm.config import SyntheticSettings
    from psalm.synthetic import paths_of, write_world

    folder = tmp_path_factory.mktemp("psalm-small")
    write_world(folder / "world", SyntheticSettings(**PSALM_WORLD))
    data = {name: str(path) for name, path in paths_of(folder / "world").items()}
    return Small(folder / "world", _configure("psalm", folder, data), names_root=False)


@pytest.fixture(scope="session")
def psalm_commands() -> Callable[[Sequence[Sequence[str]], Path], list[tuple[int, str]]]:
    """Run the real `main` several times in one forked process: exit code and output of each."""
    # Here once, and not in every fork.
    import psalm.train  # noqa: F401
    from psalm.cli import main

    return _commands(main)


@pytest.fixture(scope="session")
def psalm_trained(psalm_small, psalm_commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `psalm train`: four steps of all six modes."""
    return _train(psalm_small, psalm_commands, tmp_path_factory.mktemp("psalm-trained"))


@pytest.fixture(scope="session")
def lmms_small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small world of clips of moving shapes with questions, a picture and words alone, in the guide's format."""
    from lmms.config import SyntheticSettings
    from lmms.synthetic import write_world

    folder = tmp_path_factory.mktemp("lmms-small")
    write_world(folder / "world", SyntheticSettings(**LMMS_WORLD))
    return Small(folder / "world", _configure("lmms", folder, {}))


@pytest.fixture(scope="session")
def lmms_commands() -> Callable[[Sequence[Sequence[str]], Path], list[tuple[int, str]]]:
    """Run the real `main` several times in one forked process: exit code and output of each."""
    # Here once, and not in every fork.
    import lmms.train  # noqa: F401
    from lmms.cli import main

    return _commands(main)


@pytest.fixture(scope="session")
def lmms_trained(lmms_small, lmms_commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `lmms train`: four steps, more than an epoch, with a snapshot for a teacher."""
    return _train(lmms_small, lmms_commands, tmp_path_factory.mktemp("lmms-trained"))


@pytest.fixture(scope="session")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DeepSpeed file of ZeRO-3 that partitions even the small tensors of a toy."""
    path = tmp_path_factory.mktemp("zero3") / "zero3.json"
    path.write_text(json.dumps(ZERO3))
    return path


class _SignalAt(TrainerCallback):
    """Sends this process a signal when a step has ended."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._step, self._number = step, number

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self._step:
            os.kill(os.getpid(), self._number)


@pytest.fixture(scope="session")
def train_ranks() -> Callable[..., list[RankOutcome]]:
    """Run an application's command on forked ranks: how each ended.

    `at` is the step that ends with a signal, and the signal.
    """

    def call(
        application: str,
        words: Sequence[str],
        folder: Path,
        *,
        world_size: int = 1,
        at: tuple[int, signal.Signals] | None = None,
    ) -> list[RankOutcome]:
        train, cli = (importlib.import_module(f"{application}.{name}") for name in ("train", "cli"))

        def run(rank: int) -> int:
            plain = train.run_training

            def with_signal(job, settings, run_dir):
                job.callbacks = [*job.callbacks, *([] if at is None else [_SignalAt(*at)])]
                return plain(job, settings, run_dir)

            train.run_training = with_signal  # in this fork alone
            return cli.main(words)

        return start_ranks(run, world_size, folder).wait(180.0)

    return call


def _log_of(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(VOLATILE)} for line in lines]


@pytest.fixture(scope="session")
def log_of() -> Callable[[Path], list[dict[str, object]]]:
    """The lines of a run's metrics.jsonl, without what depends on the machine's mood."""
    return _log_of


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[..., None]:
    """Compare two runs: all weights to the bit, the log, and further files word for word."""

    def compare(first: Path, second: Path, *names: str) -> None:
        files = sorted(path.relative_to(first) for path in (first / "model").rglob("*.safetensors"))
        assert files
        assert files == sorted(path.relative_to(second) for path in (second / "model").rglob("*.safetensors"))
        for file in files:
            mine, other = (load_file(run / file) for run in (first, second))
            assert mine.keys() == other.keys()
            for name, value in mine.items():
                assert torch.equal(value, other[name]), f"{file}: {name}"
        assert _log_of(first) == _log_of(second)
        for name in names:
            assert (first / name).read_text() == (second / name).read_text(), name

    return compare
