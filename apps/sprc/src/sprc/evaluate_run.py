"""`sprc evaluate RUN`: search a split with a run's model, and write its recalls, contact sheet and report again."""

from dataclasses import replace

from region_training.run_folder import RunFolder

from sprc.config import EvaluateSettings, Settings
from sprc.evaluate import evaluate
from sprc.loading import load_model
from sprc.opening import open_dataset
from sprc.report import finish_run


def evaluate_run(settings: EvaluateSettings) -> None:
    """Evaluate a run's model on its own held-out split, or on another one."""
    run = RunFolder.open(settings.run)
    trained = run.load_settings(Settings)
    model, tokenizer = load_model(settings.run, settings.device)
    data = replace(trained.data, root=settings.root or trained.data.root)
    held_out = open_dataset(data, model.config, settings.split or data.eval_split)
    options = replace(trained.evaluation, batch_size=settings.batch_size, ablations=settings.ablations)
    found = evaluate(model, tokenizer, held_out, options)
    finish_run(run, trained, found, held_out, model=model if model.use_region_loss else None)
