"""`spatialrgpt evaluate RUN`: answer a split with a run's model, and write its scores, pictures and report again."""

from pathlib import Path

from region_training.ranks import choose_device
from region_training.run_folder import RunFolder
from transformers import AutoProcessor

from spatialrgpt.config import EvaluateSettings, EvaluationSettings, Settings
from spatialrgpt.data import RegionDataset
from spatialrgpt.evaluate import evaluate
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from spatialrgpt.predict import model_folder
from spatialrgpt.report import finish_run


def evaluate_run(settings: EvaluateSettings) -> None:
    """Evaluate a run's model on its own held-out split, or on another one."""
    run = RunFolder.open(settings.run)
    trained = run.load_settings(Settings)
    folder = model_folder(settings.run)
    processor = AutoProcessor.from_pretrained(folder)
    model = SpatialRGPTForConditionalGeneration.from_pretrained(folder)
    root = Path(settings.root or trained.data.root)
    held_out = RegionDataset(root, settings.split or trained.data.eval_split, processor, with_answers=False)
    train_data = RegionDataset(Path(trained.data.root), trained.data.train_split, processor)
    options = EvaluationSettings(
        batch_size=settings.batch_size,
        max_records=settings.max_records,
        generate_records=settings.generate_records,
        num_pictures=trained.evaluation.num_pictures,
    )
    model = model.to(choose_device(settings.device)).eval()
    finish_run(run, trained, evaluate(model, held_out, options, train_dataset=train_data), held_out)
