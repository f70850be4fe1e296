"""`lmms evaluate RUN`: answer held-out questions with a run's model, and write its scores, pictures and report again.

Other records than the run's own, a part of them or fewer rows beside the model's are another question: their answers go
to `RUN/evaluations/NAME/`, and the run's own results stay. So they do where the reconstruction can no longer be scored.
"""

import json
import logging
from dataclasses import replace

from region_training.run_folder import RunFolder, name_of_other
from transformers import set_seed
from video_autoregressive.teacher import Teacher

from lmms.building import build_model
from lmms.config import DataSettings, Settings
from lmms.data import VideoDataset
from lmms.evaluate import evaluate
from lmms.loading import load_model, open_processor
from lmms.report import finish_run
from lmms.teachers import TEACHER_FILE, check_teacher
from lmms.verbs import EvaluateSettings

logger = logging.getLogger(__name__)


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
    try:
        teacher, has_teacher = first_teacher(run, trained), True
    except (OSError, ValueError) as error:
        logger.warning("the reconstruction is not scored, since its teacher cannot be made again: %s", error)
        teacher, has_teacher = None, False
    model, family = load_model(run.path, settings.device, teacher=teacher)
    module = trained.model.autoregressive_config
    held_out = VideoDataset.open(data, data.eval_files, family, autoregressive=module)
    train_data = VideoDataset.open(trained.data, trained.data.train_files, family, autoregressive=module)
    found = evaluate(
        model,
        held_out,
        asked.evaluation,
        train_records=train_data.readable_records(),
    )
    is_own = has_teacher and is_own_question(trained, asked)
    finish_run(run if is_own else open_evaluation(run, trained, asked), asked, found, held_out, model)


def first_teacher(run: RunFolder, trained: Settings) -> Teacher | None:
    """The teacher that a run began with, made again as training made it: it lies in no checkpoint.

    Args:
        run: The run.
        trained: Its settings.

    Returns:
        The teacher; None where the model's own tower is it.

    Raises:
        OSError: What it was made of is gone.
        ValueError: What it was made of has changed.
    """
    path = run.path / TEACHER_FILE
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if recorded is None or recorded["kind"] == "shared":
        return None
    set_seed(trained.training.seed)  # a new model's first weights come from it
    processor = open_processor(run.path / "processor")
    model = build_model(trained.model, processor, frozen_parts=trained.training.frozen_parts)
    check_teacher(model.config, recorded)
    assert model.autoregressive_module is not None
    return model.autoregressive_module.teacher


def asked_data(trained: DataSettings, settings: EvaluateSettings) -> DataSettings:
    """The run's data, with the records that the command names."""
    return replace(
        trained,
        root=settings.root or trained.root,
        eval_files=settings.files or trained.eval_files,
        # It speaks of files below the run's own folder.
        manifest=None if settings.root else trained.manifest,
    )


def is_own_question(trained: Settings, asked: Settings) -> bool:
    """Whether the records that the run is evaluated on, or all, are evaluated, with all rows that it has."""
    now, own = asked.evaluation, trained.evaluation
    return asked.data == trained.data and now.max_records in (0, own.max_records) and now.controls >= own.controls


def open_evaluation(run: RunFolder, trained: Settings, asked: Settings) -> RunFolder:
    """The folder of an evaluation beside the run's own, named by its data and how many records."""
    count = asked.evaluation.max_records
    other = name_of_other(asked.data.root, trained.data.root)
    return run.begin_evaluation(asked, *other, *asked.data.eval_files, *([f"{count}-records"] if count else []))
