"""Every benchmark runs: its `main` with `--quick` prints a table. What the times are is nobody's business here."""

import importlib
import io
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch.distributed as dist
from region_training.testing import run_ranks
from video_autoregressive.backends import available_backends

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMPARED = {"video_decoding": ("torchcodec", "decord")}
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def printed(rank: int, name: str) -> str:
    """What a benchmark prints in a process that nobody launched."""
    dist.destroy_process_group()
    for variable in LAUNCHER:
        os.environ.pop(variable, None)
    sys.path.insert(0, str(BENCHMARKS))
    output = io.StringIO()
    with redirect_stdout(output):
        importlib.import_module(name).main(["--quick"])
    return output.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("mask_pooling", ["| 4² | 1 |", "| 4² | 3 |"]),
        ("step_time", ["| data |", "| vision tower |", "| language model |", "| backward |", "| whole step |"]),
        ("engine_overhead", ["| 1 |", "| median |"]),
        ("sprc_retrieval", ["| scoring |", "| metrics |", "| training, kept for backward |"]),
        ("token_cache", ["| 15 |"]),
        ("roi_features", ["| 1 | 1² |", "| 3 | 7² |"]),
        ("deformable_attention", ["| 1 x 3 |", "| 2 x 40 |"]),
        ("deformable_alignment", ["| frozen | sample first |", "| trained | transformers' module |"]),
        ("prompt_rasterising", ["| point |", "| scribble |"]),
        ("psalm_vision_passes", ["| 1 |", "| 2 |"]),
        ("spatial_pooling", ["| bilinear | 1 x 3² |", "| max | 2 x 5² |"]),
        ("frame_predictor", ["| 2 x 4 | attention |", "| 4 x 4 | predictor |"]),
        ("video_loading", ["| pyav | 0 |", "| pyav | 1 |"]),
        ("video_decoding", ["| H.264, 64 x 48, 1 s, key frame every 1 s | 2 |"]),
    ],
)
def test_benchmark_prints_its_table(tmp_path, name, rows):
    missing = {decoder: reason for decoder in COMPARED.get(name, ()) if (reason := available_backends()[decoder])}
    if missing:
        pytest.skip(f"compares decoders of which some are not here: {missing}")
    lines = run_ranks(printed, 1, tmp_path, name)[0].splitlines()
    header = next(line for line in lines if line.startswith("| "))
    for row in rows:
        (line,) = [line for line in lines if line.startswith(row)]
        assert line.count("|") == header.count("|")
