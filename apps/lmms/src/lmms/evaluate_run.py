"""`lmms evaluate RUN`: answer held-out questions with a run's model, and write its scores, pictures and report again.

Other records than the run's own are another question: their answers go to `RUN/evaluations/NAME/`, and the run's own
results stay.
"""

from dataclasses import replace

from region_training.run_folder import RunFolder

from lmms.config import DataSettings, EvaluateSettings, Settings
from lmms.data import VideoDataset
from lmms.evaluate import evaluate
from lmms.loading import load_model
from lmms.report import finish_run

EVALUATIONS = "evaluations"


def evaluate_run(settings: EvaluateSettings) -> None:
    """Evaluate a run's model on its own held-out records, or on others.

    Raises:
        ValueError: There is no such run, it has no model yet, or a record cannot be read.
    """
    run = RunFolder.open(settings.run)
    trained = run.load_settings(Settings)
    data = asked_data(trained.data, settings)
    asked = replace(
        trained,
        data=data,
        evaluation=replace(
            trained.evaluation,
            batch_size=settings.batch_size,
            max_records=settings.max_records,
            controls=settings.controls,
        ),
    )
    model, family = load_model(run.path, settings.device)
    module = trained.model.autoregressive_config
    held_out = VideoDataset.open(data, data.eval_files, family, autoregressive=module)
    train_data = VideoDataset.open(trained.data, trained.data.train_files, family, autoregressive=module)
    folder = run if data == trained.data else open_evaluation(run, asked)
    found = evaluate(
        model,
        held_out,
        asked.evaluation,
        train_records=train_data.readable_records(),
    )
    finish_run(folder, asked, found, held_out, model)


def asked_data(trained: DataSettings, settings: EvaluateSettings) -> DataSettings:
    """The run's data, with the records that the command names."""
    return replace(
        trained,
        root=settings.root or trained.root,
        eval_files=settings.files or trained.eval_files,
        # It speaks of files below the run's own folder.
        manifest=None if settings.root else trained.manifest,
    )


def open_evaluation(run: RunFolder, settings: Settings) -> RunFolder:
    """The folder of an evaluation beside the run's own, named by its record files; an earlier one is replaced."""
    names = "-".join(name.replace("/", "_").replace("*", "all") for name in settings.data.eval_files)
    folder = RunFolder(run.path / EVALUATIONS / names)
    # Without its results a folder may begin again, with whatever settings.
    folder.results_path.unlink(missing_ok=True)
    own = replace(settings, run_dir=str(folder.path))
    folder.begin(own, may_differ=tuple(vars(own)))
    return folder
