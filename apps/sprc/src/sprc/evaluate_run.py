"""`sprc evaluate RUN`: search a split with a run's model, and write its recalls, contact sheet and report again.

Other data than the run's own, or fewer rows beside the model's, are another question: their results go to
`RUN/evaluations/NAME/`, and the run's own stay.
"""

from dataclasses import replace

from region_training.run_folder import RunFolder, name_of_other

from sprc.config import Settings
from sprc.evaluate import evaluate
from sprc.loading import load_model
from sprc.no_region import beside_no_region_run, check_no_region_run
from sprc.opening import open_dataset
from sprc.report import finish_run
from sprc.verbs import EvaluateSettings


def evaluate_run(settings: EvaluateSettings) -> None:
    """Evaluate a run's model on its own held-out split, or on another one.

    Raises:
        ConfigError: The run to compare with does not fit (`check_no_region_run`).
    """
    run = RunFolder.open(settings.run)
    trained = run.load_settings(Settings)
    options = replace(
        trained.evaluation,
        batch_size=settings.batch_size,
        ablations=settings.ablations,
        no_region_run=settings.no_region_run or trained.evaluation.no_region_run,
    )
    if options.no_region_run is not None:
        check_no_region_run(options.no_region_run, trained)
    model, tokenizer = load_model(settings.run, settings.device)
    split = settings.split or trained.data.eval_split
    data = replace(trained.data, root=settings.root or trained.data.root, eval_split=split)
    asked = replace(trained, data=data, evaluation=options)
    held_out = open_dataset(data, model.config, split)
    found = evaluate(model, tokenizer, held_out, options)
    if trained.model.use_region_loss:
        found = beside_no_region_run(found, data=data, split=split, options=options, device=settings.device)
    is_own = data == trained.data and options.ablations >= trained.evaluation.ablations
    place = run if is_own else open_evaluation(run, trained, asked)
    finish_run(place, asked, found, held_out, model=model if model.use_region_loss else None)


def open_evaluation(run: RunFolder, trained: Settings, asked: Settings) -> RunFolder:
    """The folder of an evaluation beside the run's own, named by its data."""
    other = name_of_other(asked.data.root, trained.data.root)
    return run.begin_evaluation(asked, *other, asked.data.eval_split)
