"""`spatialrgpt evaluate RUN`: answer a split with a run's model, and write its scores, pictures and report again.

Other data than the run's own, a part of them or fewer answers in words are another question: their answers go to
`RUN/evaluations/NAME/`, and the run's own results stay.
"""

from dataclasses import replace
from pathlib import Path

from region_training.ranks import choose_device
from region_training.run_folder import RunFolder, name_of_other
from transformers import AutoProcessor

from spatialrgpt.config import Settings
from spatialrgpt.data import RegionDataset
from spatialrgpt.evaluate import evaluate
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from spatialrgpt.predict import model_folder
from spatialrgpt.report import finish_run
from spatialrgpt.verbs import EvaluateSettings


def evaluate_run(settings: EvaluateSettings) -> None:
    """Evaluate a run's model on its own held-out split, or on another one."""
    run = RunFolder.open(settings.run)
    trained = run.load_settings(Settings)
    folder = model_folder(settings.run)
    processor = AutoProcessor.from_pretrained(folder)
    model = SpatialRGPTForConditionalGeneration.from_pretrained(folder)
    asked = asked_settings(trained, settings)
    held_out = RegionDataset(Path(asked.data.root), asked.data.eval_split, processor, with_answers=False)
    train_data = RegionDataset(Path(trained.data.root), trained.data.train_split, processor)
    model = model.to(choose_device(settings.device)).eval()
    found = evaluate(model, held_out, asked.evaluation, train_dataset=train_data)
    finish_run(run if is_own_question(trained, asked) else open_evaluation(run, trained, asked), asked, found, held_out)


def asked_settings(trained: Settings, settings: EvaluateSettings) -> Settings:
    """The run's settings with what the command names in their place."""
    data = replace(
        trained.data, root=settings.root or trained.data.root, eval_split=settings.split or trained.data.eval_split
    )
    evaluation = replace(
        trained.evaluation,
        batch_size=settings.batch_size,
        max_records=settings.max_records,
        generate_records=settings.generate_records,
    )
    return replace(trained, data=data, evaluation=evaluation)


def is_own_question(trained: Settings, asked: Settings) -> bool:
    """Whether the questions that the run is evaluated on, or all, are answered, and as many or all of them in words."""
    now, own = asked.evaluation, trained.evaluation
    texts = (-1, own.generate_records)
    return asked.data == trained.data and now.max_records in (0, own.max_records) and now.generate_records in texts


def open_evaluation(run: RunFolder, trained: Settings, asked: Settings) -> RunFolder:
    """The folder of an evaluation beside the run's own, named by its data and how many questions."""
    count = asked.evaluation.max_records
    other = name_of_other(asked.data.root, trained.data.root)
    return run.begin_evaluation(asked, *other, asked.data.eval_split, *([f"{count}-records"] if count else []))
