"""What the reconstruction loss adds to a video language model on the small world, over seeds, and what it costs.

    uv run --no-sync python benchmarks/lmms_ablations.py --seeds 3 --jobs 2

Every run is a whole `lmms train` of the tiny preset; prints one Markdown table per question. With weight 0 the module
is trained on what the language model happens to keep, and teaches it nothing. At horizon 0 the frame itself is
reconstructed: there is no copy to beat, so no skill.
"""

from ablations import MEMORY, PARAMETERS, STEP, Ablation, run

MODULE = "--model.autoregressive_config"

if __name__ == "__main__":
    run(
        Ablation(
            application="lmms",
            variants={
                "tiny preset": (),
                "weight 0": (f"{MODULE}.loss_weight", "0"),
                "weight 0.1": (f"{MODULE}.loss_weight", "0.1"),
                "horizon 0": (f"{MODULE}.horizon", "0"),
                "trained tower, snapshot teacher": ("--training.frozen_parts", "[]"),
            },
            measures={
                "score": "accuracy",
                "temporal": "temporal",
                "order/accuracy": "order",
                "direction/accuracy": "direction",
                "autoregressive_loss_raw": "reconstruction MSE",
                "ar_skill": "skill",
                STEP: STEP,
                MEMORY: MEMORY,
                PARAMETERS: PARAMETERS,
            },
            own="model",
        ),
        __doc__,
    )
