"""What each module of SpatialRGPT adds on the small world: the tiny preset with and without it, over seeds.

    uv run --no-sync python benchmarks/spatialrgpt_ablations.py --seeds 3 --jobs 2

Every run is a whole `spatialrgpt train`; finished runs are kept and not repeated, so the command can be continued. The
world, the number of steps and everything else are the preset's. Prints one Markdown table per question.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

NO_TEXT = ("--evaluation.generate_records", "0")  # the text is compared with the heads in the full preset alone
VARIANTS: dict[str, tuple[str, ...]] = {
    "tiny preset": (),
    "without region enhancer": ("--model.enable_region_enhancer", "false", *NO_TEXT),
    "without depth": ("--model.enable_depth", "false", *NO_TEXT),
}
MEASURES = {
    "left_right/accuracy": "left_right",
    "multiple_choice/accuracy": "multiple_choice",
    "counting/accuracy": "counting",
    "distance/success_10": "distance ±10 %",
    "distance/mae_m": "distance MAE (m)",
    "score": "mean of four",
}


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args()
    cells = [(variant, seed) for variant in VARIANTS for seed in range(options.seeds)]
    if not options.print_only:
        threads = max(1, (os.cpu_count() or 1) // options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda cell: train(*cell, options.runs, threads), cells))
    results = {cell: read_scores(folder_of(*cell, options.runs)) for cell in cells}
    print_tables({cell: scores for cell, scores in results.items() if scores is not None})


def folder_of(variant: str, seed: int, runs: Path) -> Path:
    """Where a run lies."""
    return runs / f"{variant.replace(' ', '-')}-{seed}"


def train(variant: str, seed: int, runs: Path, threads: int) -> None:
    """Train one variant; its output goes to a file beside the run."""
    folder = folder_of(variant, seed, runs)
    if (folder / "results.json").is_file():
        return
    runs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "spatialrgpt", "train", "--run_dir", str(folder), "--training.seed", str(seed)]
    with folder.with_suffix(".log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        print(f"training {variant}, seed {seed}", flush=True)
        subprocess.run([*command, *VARIANTS[variant]], env=environment, stdout=log, stderr=log, check=True)


def read_scores(folder: Path) -> dict[str, dict[str, float]] | None:
    """Scores of a run by who answered; None if it is not finished."""
    results = folder / "results.json"
    return json.loads(results.read_text())["scores"] if results.is_file() else None


def print_tables(results: dict[tuple[str, int], dict[str, dict[str, float]]]) -> None:
    """One table of all variants and one of heads against text and baselines: mean over seeds (lowest-highest)."""
    by_variant = {
        variant: [scores["heads"] for (name, _), scores in results.items() if name == variant] for variant in VARIANTS
    }
    print_table("typed heads", {name: rows for name, rows in by_variant.items() if rows})
    base = [scores for (name, _), scores in results.items() if name == "tiny preset"]
    answerers = list(base[0]) if base else []
    print_table("tiny preset, who answers", {name: [scores[name] for scores in base] for name in answerers})


def print_table(title: str, rows: dict[str, list[dict[str, float]]]) -> None:
    """Print one Markdown table."""
    print(f"\n| {title} | seeds | " + " | ".join(MEASURES.values()) + " |")
    print("|---|---" + "|---:" * len(MEASURES) + "|")
    for name, runs in rows.items():
        cells = [spread([run[key] for run in runs if key in run]) for key in MEASURES]
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")


def spread(values: list[float]) -> str:
    """Mean, lowest and highest."""
    return "-" if not values else f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
