"""The command `psalm`: verbs, and the guide's own flags."""

import sys
from collections.abc import Sequence

from region_training.command_line import Application, Verb
from region_training.command_line import main as run_command_line

from psalm import config, verbs


def _train(settings: config.Settings) -> None:
    from psalm.train import train

    train(settings)


def _evaluate(settings: verbs.EvaluateSettings) -> None:
    from psalm.evaluate_run import evaluate_run

    evaluate_run(settings)


def _predict(settings: verbs.PredictSettings) -> None:
    from psalm.predict import predict

    predict(settings)


def _report(settings: verbs.ReportSettings) -> None:
    from pathlib import Path

    from region_training.run_folder import RunFolder

    from psalm.report import write_page

    sys.stdout.write(f"{write_page(RunFolder.open(Path(settings.run)))}\n")


def _make_data(settings: verbs.MakeDataSettings) -> None:
    from pathlib import Path

    from psalm.synthetic import write_world

    write_world(Path(settings.root), settings.world)


def _check_data(settings: verbs.CheckDataSettings) -> int:
    from psalm.check_data import check_data

    return check_data(settings)


def _convert(settings: verbs.ConvertSettings) -> None:
    from psalm.convert import convert

    convert(settings)


def _adapt_projector(settings: verbs.AdaptProjectorSettings) -> None:
    from psalm.adapt_projector import adapt_projector

    adapt_projector(settings)


APPLICATION = Application(
    name="psalm",
    description="Segmentation by class names, sentences, prompted regions and image pairs, with one language model.",
    verbs={
        "train": Verb(_train, config.Settings, "train, evaluate and report", presets=True, run_key="run_dir"),
        "evaluate": Verb(_evaluate, verbs.EvaluateSettings, "evaluate a run's model", positional=("run",)),
        "predict": Verb(_predict, verbs.PredictSettings, "segment an image", positional=("model", "image")),
        "report": Verb(_report, verbs.ReportSettings, "write a run's report page again", positional=("run",)),
        "make-data": Verb(_make_data, verbs.MakeDataSettings, "write a synthetic world", positional=("root",)),
        "check-data": Verb(_check_data, verbs.CheckDataSettings, "read data sets end to end"),
        "convert": Verb(_convert, verbs.ConvertSettings, "read published weights", positional=("source", "output")),
        "adapt-projector": Verb(
            _adapt_projector,
            verbs.AdaptProjectorSettings,
            "make a baseline projector's weights a deformable one's",
            positional=("source", "output"),
        ),
    },
    presets_package="psalm.configs",
    legacy_flags={
        "--model_name_or_path": "model.language_model",
        "--vision_tower": "model.mask2former",
        "--pretrain_mm_mlp_adapter": "model.projector_weights",
        "--swin_type": "model.swin_type",
        "--mm_projector_type": "model.projector_type",
        "--mm_hidden_dim": "model.projector.hidden_dim",
        "--mm_n_heads": "model.projector.num_heads",
        "--mm_n_points": "model.projector.num_points",
        "--projector_outdim": "model.projector_outdim",
        "--model_max_length": "model.max_length",
        "--seg_task": "data.seg_task",
        "--cross_image_seg_task": "data.cross_image_seg_task",
        "--task_ratio": "data.mode_ratios",
        "--panoptic_json_path": "data.coco_root",
        "--ref_coco_path": "data.ref_coco",
        "--ref_coco_plus_path": "data.ref_coco_plus",
        "--ref_coco_g_path": "data.ref_coco_g",
        "--refcoco_image_folder": "data.refcoco_images",
        "--referring_json_path": "data.ref_coco",
        "--referring_image_folder": "data.refcoco_images",
        "--region_json_path": "data.region_json",
        "--region_image_folder": "data.region_images",
        "--region_mask_type": "data.region_mask_type",
        "--region_cross_json_path": "data.cross_image_json",
        "--region_cross_image_folder": "data.cross_image_images",
        "--ref_mode": "data.ref_mode",
        "--exclude_ref_eval_images": "data.exclude_ref_eval_images",
        "--mmconv_path": "data.mmconv_path",
        "--per_device_train_batch_size": "training.micro_batch_size",
        "--per_device_eval_batch_size": "evaluation.batch_size",
        "--gradient_accumulation_steps": "training.gradient_accumulation_steps",
        "--gradient_checkpointing": "training.gradient_checkpointing",
        "--learning_rate": "training.learning_rate",
        "--weight_decay": "training.weight_decay",
        "--warmup_ratio": "training.warmup",
        "--lr_scheduler_type": "training.scheduler",
        "--num_train_epochs": "training.num_epochs",
        "--max_steps": "training.max_steps",
        "--logging_steps": "training.log_every",
        "--save_steps": "training.save_every",
        "--save_total_limit": "training.keep_checkpoints",
        "--dataloader_num_workers": "training.num_workers",
        "--output_dir": "run_dir",
        "--deepspeed": "training.deepspeed_config",
        "--image_folder": None,
        "--version": None,
        "--mm_vision_select_layer": None,
        "--mm_use_im_start_end": None,
        "--mm_use_im_patch_token": None,
        "--evaluation_strategy": None,
        "--eval_strategy": None,
        "--save_strategy": None,
        "--lazy_preprocess": None,
        "--report_to": "training.report_to",
        "--tf32": None,
        "--fp16": None,
        "--bf16": "training.precision=bf16",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command_line(APPLICATION, argv)
