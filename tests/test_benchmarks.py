"""Every benchmark runs: its `main` with `--quick` prints a table. What the times are is nobody's business here."""

import importlib
import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def printed(name: str) -> str:
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
    ],
)
def test_benchmark_prints_its_table(alone, tmp_path, name, rows):
    lines = alone(printed, tmp_path, name).splitlines()
    header = next(line for line in lines if line.startswith("| "))
    for row in rows:
        (line,) = [line for line in lines if line.startswith(row)]
        assert line.count("|") == header.count("|")
