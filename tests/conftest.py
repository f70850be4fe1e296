"""Fixtures across packages: a small world, a configuration of toy size, and the command run as a user runs it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
WORLD = {"train_scenes": 6, "eval_scenes": 3, "questions": 1, "seed": 0}
SMALL = {
    "model": {
        "vision": {
            "config": {
                "model_type": "siglip_vision_model",
                "image_size": 32,
                "patch_size": 8,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vision_use_head": False,
            }
        },
        "text": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "tie_word_embeddings": False,
            }
        },
        "vision_feature_layer": -1,
        "refinement_stages": 1,
        "enable_region_heads": True,
        "tune_region_heads": True,
        "region_enhancer_cfg": {"num_heads": 2, "num_transformer_layers": 1, "dropout": 0.1},
        "region_heads_cfg": {"hidden_dim": 32},
    },
    "training": {
        "device": "cpu",
        "max_steps": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup": 0.0,
        "log_every": 1,
        "save_every": 2,
        "keep_checkpoints": 3,
        "communication_timeout_s": 60.0,
    },
    "evaluation": {
        "batch_size": 8,
        "max_records": 8,
        "generate_records": 4,
        "max_new_tokens": 6,
        "num_pictures": 1,
    },
}
SPRC_WORLD = {"train_scenes": 6, "eval_scenes": 6, "edits": 3, "image_size": 48, "seed": 0}
SPRC_SMALL = {
    "model": {
        "vision": {
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        # With dropout, so that a resumed run needs its random numbers back.
        "qformer": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "cross_attention_frequency": 2,
            "max_position_embeddings": 18,
        },
        "vocabulary_size": 128,
        "num_query_tokens": 2,
        "region_queries": 2,
        "image_text_hidden_size": 8,
        "max_caption_tokens": 16,
        "use_region_loss": True,
        # An epoch has 5 micro-batches of 4, the last one short: the loss sets in between steps 2 and 3.
        "region_loss": {"start_epoch": 0.3},
    },
    "training": {
        "device": "cpu",
        "max_steps": 4,
        "micro_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup": 0.0,
        "log_every": 1,
        "save_every": 2,
        "keep_checkpoints": 3,
        "communication_timeout_s": 60.0,
    },
    "evaluation": {"batch_size": 8, "num_cases": 4, "top_k": 3},
}

PSALM_WORLD = {"train_scenes": 6, "eval_scenes": 4, "image_size": 64, "seed": 0}
PSALM_SMALL = {
    "model": {
        "swin": {
            "image_size": 64,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "mlp_ratio": 1.0,
            "drop_path_rate": 0.1,
        },
        # With dropout, so that a resumed run needs its random numbers back.
        "language": {
            "model_type": "phi",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 512,
            "resid_pdrop": 0.1,
        },
        "mask_decoder": {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 32,
            "dim_feedforward": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
        },
        "projector": {"hidden_dim": 16, "num_heads": 2, "num_points": 2},
        "projector_conv_dim": 16,
        "vocabulary_size": 400,
        "num_mask_queries": 8,
        "region_geometry": True,
        "mask_places": True,
        "max_length": 512,
        "criterion": {"num_points": 64},
    },
    "training": {
        "device": "cpu",
        "max_steps": 4,
        "micro_batch_size": 6,
        "learning_rate": 1e-3,
        "warmup": 0.0,
        "log_every": 1,
        "save_every": 2,
        "keep_checkpoints": 3,
        "communication_timeout_s": 60.0,
    },
    "evaluation": {"batch_size": 4, "num_pictures": 1},
}


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


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    from spatialrgpt.config import SyntheticSettings
    from spatialrgpt.synthetic import write_world

    folder = tmp_path_factory.mktemp("small")
    write_world(folder / "world", SyntheticSettings(**WORLD))
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    return Small(folder / "world", config)


@pytest.fixture(scope="session")
def spatialrgpt_command() -> Callable[[Sequence[str], Path], tuple[int, str]]:
    """Run the real `main` in a process of its own that nobody launched: exit code, and everything it wrote."""
    from region_training.testing import start_ranks

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
    from region_training.testing import start_ranks

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


@pytest.fixture(scope="session")
def sprc_small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small world of triplets with region pairs, in CIRR's layout."""
    from sprc.config import SyntheticSettings
    from sprc.synthetic import write_world

    folder = tmp_path_factory.mktemp("sprc-small")
    write_world(folder / "world", SyntheticSettings(**SPRC_WORLD))
    config = folder / "small.yaml"
    data = {"dataset": "CIRR", "box_file": str(folder / "world" / "boxes" / "pairs.{split}.json")}
    config.write_text(yaml.safe_dump({**SPRC_SMALL, "data": data}))
    return Small(folder / "world", config)


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
    folder = tmp_path_factory.mktemp("sprc-trained")
    ((code, output),) = sprc_commands([sprc_small.train(folder / "run")], folder / "ranks")
    assert code == 0, output
    return folder / "run"


@pytest.fixture(scope="session")
def psalm_small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A small world of panoptic scenes with sentences, prompts and image pairs, in the real formats."""
    from psalm.config import SyntheticSettings
    from psalm.synthetic import paths_of, write_world

    folder = tmp_path_factory.mktemp("psalm-small")
    write_world(folder / "world", SyntheticSettings(**PSALM_WORLD))
    config = folder / "small.yaml"
    data = {name: str(path) for name, path in paths_of(folder / "world").items()}
    config.write_text(yaml.safe_dump({**PSALM_SMALL, "data": {**data, "image_size": 64}}))
    return Small(folder / "world", config, names_root=False)


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
    folder = tmp_path_factory.mktemp("psalm-trained")
    ((code, output),) = psalm_commands([psalm_small.train(folder / "run")], folder / "ranks")
    assert code == 0, output
    return folder / "run"
