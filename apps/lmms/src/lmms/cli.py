"""The command `lmms`: verbs, and the guide's own configuration files."""

import sys
from collections.abc import Sequence

from region_training.command_line import Application, Verb
from region_training.command_line import main as run_command_line

from lmms import config, verbs
from lmms.guide_config import translate_config


def _train(settings: config.Settings) -> None:
    from lmms.train import train

    train(settings)


def _evaluate(settings: verbs.EvaluateSettings) -> None:
    from lmms.evaluate_run import evaluate_run

    evaluate_run(settings)


def _predict(settings: verbs.PredictSettings) -> None:
    from lmms.predict import predict

    predict(settings)


def _report(settings: verbs.ReportSettings) -> None:
    from pathlib import Path

    from region_training.run_folder import RunFolder

    from lmms.report import write_page

    sys.stdout.write(f"{write_page(RunFolder.open(Path(settings.run)))}\n")


def _make_data(settings: verbs.MakeDataSettings) -> None:
    from pathlib import Path

    from lmms.synthetic import write_world

    write_world(Path(settings.root), settings.world)


def _check_data(settings: verbs.CheckDataSettings) -> int:
    from lmms.check_data import check_data

    return check_data(settings)


def _convert(settings: verbs.ConvertSettings) -> None:
    from lmms.convert import convert

    convert(settings)


def _preflight(settings: config.Settings) -> int:
    from lmms.preflight import preflight

    return preflight(settings)


def _stop(settings: verbs.StopSettings) -> int:
    from lmms.stop import stop

    return stop(settings)


APPLICATION = Application(
    name="lmms",
    description="Trains video language models with the autoregressive reconstruction loss.",
    verbs={
        "train": Verb(_train, config.Settings, "train, evaluate and report", presets=True, run_key="run_dir"),
        "evaluate": Verb(_evaluate, verbs.EvaluateSettings, "evaluate a run's model", positional=("run",)),
        "predict": Verb(
            _predict,
            verbs.PredictSettings,
            "answer a question about a video",
            positional=("model", "video", "question"),
        ),
        "report": Verb(_report, verbs.ReportSettings, "write a run's report page again", positional=("run",)),
        "make-data": Verb(_make_data, verbs.MakeDataSettings, "write a synthetic world", positional=("root",)),
        "check-data": Verb(
            _check_data, verbs.CheckDataSettings, "decode every video of a data set", positional=("root",)
        ),
        "convert": Verb(
            _convert, verbs.ConvertSettings, "write the plain video language model", positional=("model", "output")
        ),
        "preflight": Verb(
            _preflight, config.Settings, "estimate memory and look at the machine", presets=True, run_key="run_dir"
        ),
        "stop": Verb(_stop, verbs.StopSettings, "let a training save a checkpoint and end", positional=("run",)),
    },
    presets_package="lmms.configs",
    legacy_flags={
        "--model_name_or_path": "model.pretrained",
        "--enable_autoregressive": "model.enable_autoregressive",
        "--autoregressive_config": "model.autoregressive_config",
        "--data_path": "data.train_files",
        "--data_folder": "data.root",
        "--frames_upbound": "data.max_frames",
        "--add_time_instruction": "data.time_instruction",
        "--mm_spatial_pool_stride": "model.video_tokens.pool_stride",
        "--mm_spatial_pool_mode": "model.video_tokens.pool_mode",
        "--mm_newline_position": "model.video_tokens.newline",
        "--learning_rate": "training.learning_rate",
        "--num_train_epochs": "training.num_epochs",
        "--max_steps": "training.max_steps",
        "--per_device_train_batch_size": "training.micro_batch_size",
        "--gradient_accumulation_steps": "training.gradient_accumulation_steps",
        "--output_dir": "run_dir",
        "--deepspeed": "training.deepspeed_config",
        "--bf16": None,
        "--force_sample": None,
    },
    translate_config=translate_config,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command_line(APPLICATION, argv)
