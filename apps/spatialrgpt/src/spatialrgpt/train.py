"""`spatialrgpt train`: data, model, training, held-out evaluation, pictures, report: one run folder."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

from region_heads.sampling import TaskBalancedSampler
from region_training.bad_records import BadRecordPolicy
from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.environment import collect_environment
from region_training.ranks import choose_device, join_ranks
from region_training.run_folder import HARMLESS_KEYS, RunFolder, write_folder_once
from region_training.safe_dataset import SafeDataset
from region_training.settings import TrainingSettings
from transformers import AutoProcessor, PreTrainedModel

from spatialrgpt.building import PARTS, build_model, build_processor
from spatialrgpt.collate import RegionDataCollator
from spatialrgpt.config import DataSettings, Settings
from spatialrgpt.data import RegionDataset, read_texts
from spatialrgpt.evaluate import Evaluation, evaluate
from spatialrgpt.model import SpatialRGPTForConditionalGeneration
from spatialrgpt.processing import SpatialRGPTProcessor
from spatialrgpt.report import finish_run
from spatialrgpt.synthetic import write_world

logger = logging.getLogger(__name__)


def train(settings: Settings) -> None:
    """Train and evaluate a model, or go on where an earlier run of the same command stopped."""
    run = RunFolder(Path(str(settings.run_dir)))
    device, training = choose_device(settings.training.device), settings.training
    ranks = join_ranks(device, training.communication_timeout_s, num_workers=training.num_workers)
    # A run folder may be moved or copied, and goes on where it is.
    if run.begin(settings, environment=collect_environment(), may_differ=HARMLESS_KEYS | {"run_dir"}) == "finished":
        logger.info("%s is finished; its report is %s", run.path, run.report_path)
        return
    if ranks.is_first:
        prepare_data(settings.data)
        prepare_processor(settings, run.path / "processor")
    ranks.barrier()
    processor = AutoProcessor.from_pretrained(run.path / "processor")
    root = Path(settings.data.root)
    train_data = RegionDataset(root, settings.data.train_split, processor, max_length=settings.data.max_length)
    held_out = RegionDataset(root, settings.data.eval_split, processor, with_answers=False)
    evaluations: dict[int, Evaluation] = {}

    def evaluate_now(model: PreTrainedModel, step: int) -> dict[str, float]:
        model = cast(SpatialRGPTForConditionalGeneration, model)
        evaluation = evaluate(model, held_out, settings.evaluation, train_dataset=train_data, ranks=ranks)
        evaluations[step] = evaluation
        return evaluation.scores["heads" if evaluation.heads is not None else "text"]

    job = make_job(settings, run, processor, train_data)
    job.evaluate = evaluate_now
    result = run_training(job, training_of(settings), run.path)
    if ranks.is_first and not result.stopped_by_signal:
        finish_run(run, settings, evaluations[result.global_step], held_out)


def make_job(
    settings: Settings, run: RunFolder, processor: SpatialRGPTProcessor, train_data: RegionDataset
) -> TrainingJob:
    """What the engine needs to know: model, data, order, parts."""
    policy = BadRecordPolicy(settings.data.on_error, settings.data.max_bad_fraction)
    data = SafeDataset(train_data, policy, counted_in=run.bad_records_path, name_of=train_data.where)
    model = settings.model
    heads = model.region_heads_cfg if model.enable_region_heads else None
    present = {
        "region_extractor": model.enable_region,
        "region_enhancer": model.enable_region and model.enable_region_enhancer,
        "region_heads": model.enable_region_heads,
    }
    return TrainingJob(
        build_model=lambda: build_model(model, processor.tokenizer),
        train_dataset=data,
        collate=RegionDataCollator(processor.tokenizer.pad_token_id, heads=heads),
        parts={part: prefixes for part, prefixes in PARTS.items() if present.get(part, True)},
        sampler=TaskBalancedSampler(
            train_data.task_types, temperature=settings.data.balance_tasks, seed=settings.training.seed
        ),
        processor=processor,
        dataset_fingerprint=hashlib.sha256(train_data.file.read_bytes()).hexdigest(),
    )


def training_of(settings: Settings) -> TrainingSettings:
    """The training settings, with the heads frozen where `tune_region_heads` is off."""
    model, training = settings.model, settings.training
    if not model.enable_region_heads or model.tune_region_heads or "region_heads" in training.frozen_parts:
        return training
    if model.checkpoint is None:
        logger.warning("model.tune_region_heads is off and there is no checkpoint: the heads stay random")
    return replace(training, frozen_parts=[*training.frozen_parts, "region_heads"])


def prepare_data(settings: DataSettings) -> None:
    """Write the synthetic world where one is asked for and not there yet."""
    if settings.synthetic is not None:
        splits = (settings.train_split, settings.eval_split)
        write_world(Path(settings.root), settings.synthetic, splits=splits)


def prepare_processor(settings: Settings, folder: Path) -> None:
    """Save the run's processor, once: a resumed run must not make another tokenizer."""

    def write(part: Path) -> None:
        texts = read_texts(Path(settings.data.root) / f"{settings.data.train_split}.json")
        build_processor(settings.model, texts).save_pretrained(part)

    write_folder_once(folder, write)
