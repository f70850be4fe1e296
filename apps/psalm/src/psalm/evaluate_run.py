"""`psalm evaluate RUN`: answer a split with a run's model, and write its scores, predictions and report again.

Another split, other modes than the run's own, a part of the samples, fewer rows beside the model's or another choice of
a region's mask are another question: their answers go to `RUN/evaluations/NAME/`, and the run's own results stay.
"""

import logging
from dataclasses import replace

from region_training.run_folder import EVALUATIONS, RunFolder

from psalm.config import DataSettings, EvaluationSettings, Settings
from psalm.data import describe_shared, open_dataset
from psalm.evaluate import evaluate
from psalm.loading import load_model
from psalm.report import finish_run
from psalm.untrained import UNTRAINED_SCORES
from psalm.verbs import EvaluateSettings

logger = logging.getLogger(__name__)


def evaluate_run(settings: EvaluateSettings) -> None:
    """Evaluate a run's model on its own evaluation split, or on another one."""
    run = RunFolder.open(settings.run)
    trained = run.load_settings(Settings)
    data = asked_data(trained.data, settings)
    held_out = open_dataset(data, data.eval_split, training=False, seed=trained.training.seed)
    if (note := describe_shared(data)) is not None:
        logger.warning("%s", note)
    model, processor = load_model(run.path, settings.device)
    asked = replace(trained, data=data, evaluation=asked_evaluation(trained.evaluation, settings))
    is_own = is_own_question(trained, asked)
    untrained = (run.path if is_own else run.path / EVALUATIONS) / UNTRAINED_SCORES
    untrained.parent.mkdir(exist_ok=True)
    found = evaluate(
        model,
        processor,
        held_out,
        asked.evaluation,
        num_workers=trained.training.num_workers,
        main_mode=data.seg_task,
        untrained_cache=untrained,
    )
    folder = run if is_own else open_evaluation(run, trained, asked)
    finish_run(folder, asked, found, held_out, has_model=is_own)


def asked_data(trained: DataSettings, settings: EvaluateSettings) -> DataSettings:
    """The run's data as the command asks for them; modes that are named lift what `seg_task` left out."""
    data = replace(trained, eval_split=settings.split or trained.eval_split)
    if settings.modes is None or set(settings.modes) == set(trained.wanted_modes):
        return data
    return replace(data, modes=settings.modes, seg_task=None, cross_image_seg_task=None)


def asked_evaluation(trained: EvaluationSettings, settings: EvaluateSettings) -> EvaluationSettings:
    """How the run evaluates, with what the command names in its place."""
    agreement = trained.prompt_agreement if settings.prompt_agreement is None else settings.prompt_agreement
    return replace(
        trained,
        batch_size=settings.batch_size,
        max_samples=settings.max_samples,
        baselines=settings.baselines,
        prompt_agreement=agreement,
    )


def is_own_question(trained: Settings, asked: Settings) -> bool:
    """Whether the samples that the run is evaluated on, or all, are evaluated in its way, with all rows that it has."""
    now, own = asked.evaluation, trained.evaluation
    same_way = asked.data == trained.data and now.prompt_agreement == own.prompt_agreement
    return same_way and now.max_samples in (0, own.max_samples) and now.baselines >= own.baselines


def open_evaluation(run: RunFolder, trained: Settings, asked: Settings) -> RunFolder:
    """The folder of an evaluation beside the run's own, named by its split and whatever else differs from the run's."""
    words: list[str] = []
    if asked.data.wanted_modes != trained.data.wanted_modes:
        words.extend(asked.data.wanted_modes)
    if asked.evaluation.max_samples:
        words.append(f"{asked.evaluation.max_samples}-samples")
    if asked.evaluation.prompt_agreement != trained.evaluation.prompt_agreement:
        words.append("agreement" if asked.evaluation.prompt_agreement else "score-alone")
    return run.begin_evaluation(asked, asked.data.eval_split, *words)
