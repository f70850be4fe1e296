"""The command `spatialrgpt`: verbs, and the guides' own flags."""

import sys
from collections.abc import Sequence

from region_training.command_line import Application, Verb
from region_training.command_line import main as run_command_line

from spatialrgpt import config, verbs


def _train(settings: config.Settings) -> None:
    from spatialrgpt.train import train

    train(settings)


def _evaluate(settings: verbs.EvaluateSettings) -> None:
    from spatialrgpt.evaluate_run import evaluate_run

    evaluate_run(settings)


def _predict(settings: verbs.PredictSettings) -> None:
    from spatialrgpt.predict import predict

    predict(settings)


def _report(settings: verbs.ReportSettings) -> None:
    from pathlib import Path

    from region_training.run_folder import RunFolder

    from spatialrgpt.report import write_page

    sys.stdout.write(f"{write_page(RunFolder.open(Path(settings.run)))}\n")


def _make_data(settings: verbs.MakeDataSettings) -> None:
    from pathlib import Path

    from spatialrgpt.synthetic import write_world

    write_world(Path(settings.root), settings.world)


def _check_data(settings: verbs.CheckDataSettings) -> int:
    from spatialrgpt.check_data import check_data

    return check_data(settings)


APPLICATION = Application(
    name="spatialrgpt",
    description="Answers questions about regions of an image: distances, sides, choices and counts.",
    verbs={
        "train": Verb(_train, config.Settings, "train, evaluate and report", presets=True, run_key="run_dir"),
        "evaluate": Verb(_evaluate, verbs.EvaluateSettings, "evaluate a run's model", positional=("run",)),
        "predict": Verb(_predict, verbs.PredictSettings, "answer a question about an image", positional=("model",)),
        "report": Verb(_report, verbs.ReportSettings, "write a run's report page again", positional=("run",)),
        "make-data": Verb(_make_data, verbs.MakeDataSettings, "write a synthetic world", positional=("root",)),
        "check-data": Verb(_check_data, verbs.CheckDataSettings, "read a data set end to end", positional=("root",)),
    },
    presets_package="spatialrgpt.configs",
    legacy_flags={
        "--enable_region": "model.enable_region",
        "--enable_depth": "model.enable_depth",
        "--enable_region_enhancer": "model.enable_region_enhancer",
        "--region_enhancer_cfg": "model.region_enhancer_cfg",
        "--enable_region_heads": "model.enable_region_heads",
        "--tune_region_heads": "model.tune_region_heads",
        "--region_heads_cfg": "model.region_heads_cfg",
        "--model_name_or_path": "model.checkpoint",
        "--learning_rate": "training.learning_rate",
        "--num_train_epochs": "training.num_epochs",
        "--max_steps": "training.max_steps",
        "--per_device_train_batch_size": "training.micro_batch_size",
        "--gradient_accumulation_steps": "training.gradient_accumulation_steps",
        "--output_dir": "run_dir",
        "--deepspeed": "training.deepspeed_config",
        "--bf16": None,
        "--fp16": None,
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command_line(APPLICATION, argv)
