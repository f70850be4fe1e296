"""Whole training runs with and without a module, over seeds, as Markdown tables; what the `*_ablations.py` share.

Finished runs are kept and not repeated, so a command can be continued. The world, the number of steps and everything
else are the preset's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

STEP, MEMORY, PARAMETERS = "step s", "peak GiB", "trained parameters"
"""Columns that tell what a variant costs: a step's median time, most memory, and how many numbers are trained."""

Scores = dict[str, dict[str, float]]
"""Who answered -> measure -> number, as a run's `results.json` has them."""


@dataclass(frozen=True)
class Ablation:
    """What is compared.

    Attributes:
        application: Module of the application.
        variants: Name -> words behind `train`; the first one is the preset itself.
        measures: Key in the scores -> title of its column.
        own: Who answers in the table of variants. Beside its measures it has `STEP`, `MEMORY` and `PARAMETERS`.
    """

    application: str
    variants: Mapping[str, tuple[str, ...]]
    measures: Mapping[str, str]
    own: str


def run(ablation: Ablation, description: str | None) -> None:
    """Read the command line, run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations") / ablation.application)
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args()
    cells = [(variant, seed) for variant in ablation.variants for seed in range(options.seeds)]
    if not options.print_only:
        threads = max(1, (os.cpu_count() or 1) // options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda cell: train(ablation, *cell, options.runs, threads), cells))
    results = {cell: read_scores(folder_of(*cell, options.runs), ablation.own) for cell in cells}
    print_tables(ablation, {cell: scores for cell, scores in results.items() if scores is not None})


def folder_of(variant: str, seed: int, runs: Path) -> Path:
    """Where a run lies."""
    return runs / f"{variant.replace(' ', '-')}-{seed}"


def train(ablation: Ablation, variant: str, seed: int, runs: Path, threads: int) -> None:
    """Train one variant; its output goes to a file beside the run."""
    folder = folder_of(variant, seed, runs)
    if (folder / "results.json").is_file():
        return
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", ablation.application, "train", "--run_dir", str(folder)]
    words = ["--training.seed", str(seed), *ablation.variants[variant]]
    # No with_suffix: the name of a variant may have a point.
    with folder.with_name(f"{folder.name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        print(f"training {variant}, seed {seed}", flush=True)
        subprocess.run([*command, *words], env=environment, stdout=log, stderr=log, check=True)


def read_scores(folder: Path, own: str) -> Scores | None:
    """Scores of a run by who answered, with its costs beside those of `own`; None if it is not finished."""
    results = folder / "results.json"
    if not results.is_file():
        return None
    scores = json.loads(results.read_text())["scores"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts = json.loads((folder / "parts.json").read_text())
    scores[own][STEP] = statistics.median(line["time/step_s"] for line in lines if "time/step_s" in line)
    scores[own][MEMORY] = max(line["memory/peak_gib"] for line in lines if "memory/peak_gib" in line)
    scores[own][PARAMETERS] = sum(part["num_trained"] for part in parts)
    return scores


def print_tables(ablation: Ablation, results: Mapping[tuple[str, int], Scores]) -> None:
    """One table of all variants and one of the first variant's baselines: mean over seeds (lowest to highest)."""
    by_variant = {
        variant: [scores[ablation.own] for (name, _), scores in results.items() if name == variant]
        for variant in ablation.variants
    }
    print_table(ablation, ablation.own, {name: rows for name, rows in by_variant.items() if rows})
    first = next(iter(ablation.variants))
    base = [scores for (name, _), scores in results.items() if name == first]
    answerers = list(base[0]) if base else []
    print_table(ablation, f"{first}, who answers", {name: [scores[name] for scores in base] for name in answerers})


def print_table(ablation: Ablation, title: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print one Markdown table."""
    print(f"\n| {title} | seeds | " + " | ".join(ablation.measures.values()) + " |")
    print("|---|---" + "|---:" * len(ablation.measures) + "|")
    for name, runs in rows.items():
        cells = [spread([run[key] for run in runs if key in run]) for key in ablation.measures]
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")


def spread(values: list[float]) -> str:
    """Mean, lowest and highest."""
    if not values:
        return "-"
    if all(float(value).is_integer() and value >= 1000 for value in values):
        return f"{statistics.mean(values):,.0f}"
    digits = 3 if max(values) < 10 else 1
    mean, lowest, highest = statistics.mean(values), min(values), max(values)
    return f"{mean:.{digits}f} ({lowest:.{digits}f} to {highest:.{digits}f})"
