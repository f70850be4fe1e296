"""What the region loss adds to SPRC on the small world, and what it costs: with and without it, over seeds.

    uv run --no-sync python benchmarks/sprc_ablations.py --seeds 3 --jobs 2

Every run is a whole `sprc train` of the tiny preset; prints one Markdown table per question.
"""

from ablations import Ablation, run

if __name__ == "__main__":
    run(
        Ablation(
            application="sprc",
            variants={
                "tiny preset": (),
                "with region loss": ("--use-region-loss",),
            },
            measures={
                "R@1": "R@1",
                "R@5": "R@5",
                "R@10": "R@10",
                "Rsub@1": "Rsub@1",
                "Avg": "Avg",
            },
            own="model",
        ),
        __doc__,
    )
