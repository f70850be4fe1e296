"""What each module of SpatialRGPT adds on the small world: the tiny preset with and without it, over seeds.

    uv run --no-sync python benchmarks/spatialrgpt_ablations.py --seeds 3 --jobs 2

Every run is a whole `spatialrgpt train`; prints one Markdown table per question.
"""

from ablations import Ablation, run

NO_TEXT = ("--evaluation.generate_records", "0")  # the text is compared with the heads in the full preset alone

if __name__ == "__main__":
    run(
        Ablation(
            application="spatialrgpt",
            variants={
                "tiny preset": (),
                "without region enhancer": ("--model.enable_region_enhancer", "false", *NO_TEXT),
                "without depth": ("--model.enable_depth", "false", *NO_TEXT),
            },
            measures={
                "left_right/accuracy": "left_right",
                "multiple_choice/accuracy": "multiple_choice",
                "counting/accuracy": "counting",
                "distance/success_10": "distance ±10 %",
                "distance/mae_m": "distance MAE (m)",
                "score": "mean of four",
            },
            own="heads",
        ),
        __doc__,
    )
