"""The two launchers start CPU ranks of the real command, each as its own manual says; they give equal runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
SHORT = ("--training.max_steps", "2", "--training.micro_batch_size", "2", "--evaluation.generate_records", "0")


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _launchers():
    port = _free_port()
    return {
        "torchrun": (*(str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", port), "-m", "spatialrgpt"),
        "deepspeed": (
            *(str(BIN / "deepspeed"), "--no_local_rank", "--num_gpus", "2", "--master_port", port),
            *("--module", "spatialrgpt"),
        ),
    }


@pytest.fixture(scope="module")
def runs(small, tmp_path_factory) -> dict[str, Path]:
    """A run of two ranks by each launcher."""
    folder = tmp_path_factory.mktemp("launched")
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    # Else DeepSpeed picks CUDA where there is a GPU; one thread, since two ranks share what cores there are.
    environment = {**clean, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for name, launch in _launchers().items():
        done = subprocess.run(
            [*launch, *small.train(folder / name, *SHORT)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{name}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return {name: folder / name for name in _launchers()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_two_ranks_train_to_the_end(runs, name):
    run = runs[name]
    manifest = json.loads((run / "checkpoint-2" / "MANIFEST.json").read_text())
    assert manifest["conditions"]["world_size"] == 2
    assert manifest["conditions"]["zero_stage"] == 2
    assert {"heads", "question only"} <= set(json.loads((run / "results.json").read_text())["scores"])
    assert len((run / "answers.jsonl").read_text().splitlines()) == 8
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_both_launchers_give_the_same_weights(runs):
    one, two = (load_file(run / "model" / "model.safetensors") for run in runs.values())
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
