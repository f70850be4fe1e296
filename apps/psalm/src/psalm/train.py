"""`psalm train`: data, model, training, held-out evaluation, pictures, report: one run folder."""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import cast

from deformable_projector import describe
from region_training.bad_records import BadRecordPolicy
from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.environment import collect_environment
from region_training.ranks import Ranks, choose_device, join_ranks
from region_training.run_folder import HARMLESS_KEYS, RunFolder, write_folder_once
from region_training.safe_dataset import SafeDataset
from region_training.settings import TrainingSettings
from transformers import PreTrainedModel

from psalm.building import build_config, build_model, build_processor, parts_of
from psalm.collate import SegmentationCollator
from psalm.config import Settings
from psalm.data import SceneSource, SegmentationDataset, describe_shared, open_dataset
from psalm.evaluate import Evaluation, evaluate
from psalm.loading import open_processor
from psalm.model import PSALMModel
from psalm.processing import PSALMProcessor
from psalm.report import finish_run
from psalm.schedule import ModeSchedule, source_ratios
from psalm.synthetic import write_world
from psalm.untrained import UNTRAINED_SCORES

OFFSETS, OFFSETS_RATE = "sampling_offsets", 0.1

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
    if ranks.is_first and settings.data.synthetic is not None:
        write_world(Path(settings.data.synthetic_root), settings.data.synthetic)
    ranks.barrier()
    train_data = open_dataset(settings.data, settings.data.train_split, training=True, seed=training.seed)
    if ranks.is_first:
        prepare_processor(settings, train_data, run.path / "processor")
    ranks.barrier()
    processor = open_processor(run.path / "processor")
    held_out = open_dataset(settings.data, settings.data.eval_split, training=False, seed=training.seed)
    if (note := describe_shared(settings.data)) is not None and ranks.is_first:
        logger.warning("%s", note)
    evaluations: dict[int, Evaluation] = {}

    def evaluate_now(model: PreTrainedModel, step: int) -> dict[str, float]:
        found = evaluate(
            cast(PSALMModel, model),
            processor,
            held_out,
            settings.evaluation,
            ranks=ranks,
            num_workers=training.num_workers,
            main_mode=settings.data.seg_task,
            untrained_cache=run.path / UNTRAINED_SCORES,
        )
        evaluations[step] = found
        return found.scores["model"]

    job = make_job(settings, run, processor, train_data, ranks)
    job.evaluate = evaluate_now
    result = run_training(job, training_of(settings, job.parts), run.path)
    if ranks.is_first and not result.stopped_by_signal:
        finish_run(run, settings, evaluations[result.global_step], held_out)


def make_job(
    settings: Settings, run: RunFolder, processor: PSALMProcessor, train_data: SegmentationDataset, ranks: Ranks
) -> TrainingJob:
    """What the engine needs to know: model, data, order, parts."""
    data, training = settings.data, settings.training
    modes, lengths = [source.mode for source in train_data.sources], [len(source) for source in train_data.sources]
    policy = BadRecordPolicy(data.on_error, data.max_bad_fraction)
    ratios = source_ratios(modes, lengths, data.mode_ratios)
    logger.info("training data: %s", ", ".join(map(_describe, train_data.sources, ratios)))

    def build() -> PSALMModel:
        model = build_model(settings.model, processor)
        for line in describe(model.projector):
            logger.info("%s", line)
        return model

    return TrainingJob(
        build_model=build,
        train_dataset=SafeDataset(train_data, policy, counted_in=run.bad_records_path, name_of=train_data.where),
        collate=SegmentationCollator(processor, settings.model),
        parts=parts_of(build_config(settings.model, processor.tokenizer, processor.image_size)),
        sampler=ModeSchedule(
            lengths,
            ratios,
            seed=training.seed,
            batches=data.batches,
            block_size=training.micro_batch_size * training.gradient_accumulation_steps * ranks.world_size,
        ),
        processor=processor,
        dataset_fingerprint=fingerprint(train_data),
    )


def _describe(source: SceneSource, ratio: float) -> str:
    name = source.mode if source.name == source.mode else f"{source.mode}/{source.name}"
    return f"{name} ({len(source)} samples{'' if ratio else ', left out'})"


def fingerprint(dataset: SegmentationDataset) -> str:
    """Tells this training data from other data: its sources, their records and their order."""
    digest = hashlib.sha256()
    for source in dataset.sources:
        digest.update(repr((source.mode, source.name, source.label_space, source.texts())).encode())
        for index in range(len(source)):
            digest.update(source.where(index).encode())
    return digest.hexdigest()


def training_of(settings: Settings, parts: Collection[str]) -> TrainingSettings:
    """The training settings of a model with these parts.

    The language model's head predicts no words here and is frozen; sampling offsets have a tenth of the learning rate,
    as in Deformable DETR, if they are given none of their own.
    """
    training = settings.training
    frozen = list(dict.fromkeys((*training.frozen_parts, *({"language_head"} & set(parts)))))
    rates = dict(training.part_learning_rates)
    if OFFSETS in parts and OFFSETS not in frozen:
        rates.setdefault(OFFSETS, OFFSETS_RATE * rates.get("projector", training.learning_rate))
    return replace(training, frozen_parts=frozen, part_learning_rates=rates)


def prepare_processor(settings: Settings, train_data: SegmentationDataset, folder: Path) -> None:
    """Save the run's processor, once: a resumed run must not make another tokenizer."""
    write_folder_once(
        folder,
        lambda part: build_processor(settings.model, settings.data, train_data.texts()).save_pretrained(part),
    )
