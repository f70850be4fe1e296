"""What the deformable projector and its looks across two images add to PSALM, and what the tiny preset's own helps.

    uv run --no-sync python benchmarks/psalm_ablations.py --seeds 3 --jobs 2

Every run is a whole `psalm train` of the tiny preset on the small world; prints one Markdown table per question. With
the baseline projector the images of a pair meet in the language model alone, in neither direction. The preset's own
helps are places for masks, and the backbone's maps under regions.
"""

from ablations import PARAMETERS, STEP, Ablation, run

if __name__ == "__main__":
    run(
        Ablation(
            application="psalm",
            variants={
                "tiny preset": (),
                "swin_conv": ("--mm_projector_type", "swin_conv"),
                "without target to reference": ("--model.cross_image", "[reference_to_target]"),
                "without reference to target": ("--model.cross_image", "[target_to_reference]"),
                "without places for masks": ("--model.mask_places", "false"),
                "without the backbone's maps under regions": ("--model.region_levels", "false"),
            },
            measures={
                "panoptic/PQ": "PQ",
                "semantic/mIoU": "mIoU",
                "instance/AP50": "AP50",
                "referring/cIoU": "referring cIoU",
                "region/point/cIoU": "point cIoU",
                "region/box/cIoU": "box cIoU",
                "cross_image/cIoU": "cross-image cIoU",
                "score": "mean",
                STEP: STEP,
                PARAMETERS: PARAMETERS,
            },
            own="model",
        ),
        __doc__,
    )
