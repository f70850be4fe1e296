"""The command `sprc`: verbs, and the guide's own flags."""

import sys
from collections.abc import Sequence

from region_training.command_line import DEFAULT_PRESET, Application, Verb, resolve_settings
from region_training.command_line import main as run_command_line

from sprc import config, verbs


def _train(settings: config.Settings) -> None:
    from sprc.train import train

    train(settings)


def _evaluate(settings: verbs.EvaluateSettings) -> None:
    from sprc.evaluate_run import evaluate_run

    evaluate_run(settings)


def _predict(settings: verbs.PredictSettings) -> None:
    from sprc.predict import predict

    predict(settings)


def _submit(settings: verbs.SubmitSettings) -> None:
    from sprc.submit import submit

    submit(settings)


def _report(settings: verbs.ReportSettings) -> None:
    from pathlib import Path

    from region_training.run_folder import RunFolder

    from sprc.report import write_page

    sys.stdout.write(f"{write_page(RunFolder.open(Path(settings.run)))}\n")


def _make_data(settings: verbs.MakeDataSettings) -> None:
    from pathlib import Path

    from sprc.synthetic import write_world

    write_world(Path(settings.root), settings.world, dataset=settings.dataset)


def _check_data(settings: verbs.CheckDataSettings) -> int:
    from sprc.check_data import check_data

    named = settings.preset or DEFAULT_PRESET
    words = ["--config", settings.config] if settings.config is not None else ["--preset", named]
    training = resolve_settings(APPLICATION, "train", words)
    assert isinstance(training, config.Settings)
    return check_data(settings, training)


def _import_boxes(settings: verbs.ImportBoxesSettings) -> None:
    from sprc.import_boxes import import_boxes

    import_boxes(settings)


def _cache(settings: verbs.CacheSettings) -> None:
    from sprc.cache import cache

    cache(settings)


def _convert(settings: verbs.ConvertSettings) -> None:
    from sprc.convert import convert

    convert(settings)


APPLICATION = Application(
    name="sprc",
    description="Composed image retrieval: an image and a sentence about what shall be different find another image.",
    verbs={
        "train": Verb(_train, config.Settings, "train, evaluate and report", presets=True, run_key="run_dir"),
        "evaluate": Verb(_evaluate, verbs.EvaluateSettings, "evaluate a run's model", positional=("run",)),
        "predict": Verb(_predict, verbs.PredictSettings, "search a folder of images", positional=("model",)),
        "submit": Verb(_submit, verbs.SubmitSettings, "write files for CIRR's test server", positional=("run",)),
        "report": Verb(_report, verbs.ReportSettings, "write a run's report page again", positional=("run",)),
        "make-data": Verb(_make_data, verbs.MakeDataSettings, "write a synthetic world", positional=("root",)),
        "check-data": Verb(_check_data, verbs.CheckDataSettings, "read a data set end to end", positional=("root",)),
        "import-boxes": Verb(
            _import_boxes, verbs.ImportBoxesSettings, "make a box file", positional=("source", "output")
        ),
        "cache": Verb(_cache, verbs.CacheSettings, "keep the frozen tower's tokens", positional=("run", "folder")),
        "convert": Verb(_convert, verbs.ConvertSettings, "read or write weights", positional=("source", "output")),
    },
    presets_package="sprc.configs",
    legacy_flags={
        "--dataset": "data.dataset",
        "--blip-model-name": None,
        "--backbone": None,
        "--num-epochs": "training.num_epochs",
        "--num-workers": "training.num_workers",
        "--batch-size": "training.micro_batch_size",
        "--learning-rate": "training.learning_rate",
        "--save-training": None,
        "--save-best": "evaluation.save_best",
        "--box-file": "data.box_file",
        "--use-region-loss": "model.use_region_loss",
        "--loss-region": "model.loss_region",
        "--loss-align": "model.loss_align",
        "--loss-rtc": "model.loss_rtc",
        "--transform": "data.transform",
        "--output_dir": "run_dir",
        "--deepspeed": "training.deepspeed_config",
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_command_line(APPLICATION, argv)
