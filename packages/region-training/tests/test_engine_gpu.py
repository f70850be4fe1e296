"""The same engine on CUDA, in a process of its own: ranks cannot be forked from one that has used CUDA."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import importlib.util, pathlib, sys

spec = importlib.util.spec_from_file_location("toy_training", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)

from region_training.engine import train

toy = module.Toy()
folder = pathlib.Path(sys.argv[2])
for stage, precision in ((0, "fp32"), (0, "auto"), (1, "auto"), (2, "auto"), (2, "fp32"), (3, "auto")):
    run_dir = folder / f"{stage}-{precision}"
    for max_steps in (2, 4):  # the second call continues the first
        settings = toy.settings(
            device="cuda", zero_stage=stage, precision=precision, max_steps=max_steps, scheduler="constant"
        )
        result = train(toy.job(), settings, run_dir)
        assert result.global_step == max_steps, result
    assert str(next(result.model.parameters()).device) == "cuda:0"
"""


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_stage_trains_and_continues_on_cuda(tmp_path):
    toy_training = str(Path(__file__).with_name("toy_training.py"))
    subprocess.run([sys.executable, "-c", SCRIPT, toy_training, str(tmp_path)], check=True)
    for run_dir in tmp_path.iterdir():
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert all(line["loss/total"] > 0 and line["grad_norm"] > 0 for line in lines), run_dir
