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


@dataclass(frozen=True)
class Small:
    """A small world, and a configuration that trains on it in seconds.

    Attributes:
        root: Folder of the data.
        config: The configuration file.
    """

    root: Path
    config: Path

    def train(self, run: Path, *words: str) -> list[str]:
        """Command line of a training run; later words win."""
        return ["train", "--config", str(self.config), "--run_dir", str(run), "--data.root", str(self.root), *words]


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
