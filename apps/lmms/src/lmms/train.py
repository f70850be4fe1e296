"""`lmms train`: data, model, training, held-out evaluation, pictures, report: one run folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from region_training.engine import TrainingJob
from region_training.engine import train as run_training
from region_training.environment import collect_environment
from region_training.ranks import Ranks, choose_device, join_ranks
from region_training.run_folder import HARMLESS_KEYS, RunFolder, write_folder_once
from transformers import AutoProcessor, PreTrainedModel, ProcessorMixin

from lmms.building import build_config, build_model, build_processor, parts_of
from lmms.causality import check_causality
from lmms.collate import VideoCollator
from lmms.config import DataSettings, Settings
from lmms.data import VideoDataset
from lmms.evaluate import Evaluation, evaluate
from lmms.families import Family, family_of
from lmms.model import VideoLMM
from lmms.preflight import check_before_training
from lmms.records import read_texts
from lmms.report import finish_run
from lmms.rows import read_rows
from lmms.stop import forget_process, record_process
from lmms.synthetic import write_world
from lmms.teachers import agree_on_teacher
from lmms.trainer import AutoregressiveTrainer
from lmms.training_data import training_samples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
        family: The model's family with the run's processor.
        train: Records to train on.
        held_out: Records to evaluate on, with answers.
    """

    family: Family
    train: VideoDataset
    held_out: VideoDataset


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
        record_process(run.path)
        prepare_data(settings.data)
        prepare_processor(settings, run.path / "processor")
    ranks.barrier()
    try:
        _train(settings, run, ranks)
    finally:
        if ranks.is_first:
            forget_process(run.path)


def _train(settings: Settings, run: RunFolder, ranks: Ranks) -> None:
    processor = AutoProcessor.from_pretrained(run.path / "processor")
    data = open_data(settings, processor)
    check_before_training(settings, processor, ranks)
    evaluations: dict[int, Evaluation] = {}

    def evaluate_now(model: PreTrainedModel, step: int) -> dict[str, float]:
        found = evaluate(
            cast(VideoLMM, model),
            data.held_out,
            settings.evaluation,
            train_records=data.train.readable_records(),
            ranks=ranks,
        )
        evaluations[step] = found
        return found.scores["model"]

    job = make_job(settings, run, processor, data, ranks)
    job.evaluate = evaluate_now
    result = run_training(job, settings.training, run.path)
    if ranks.is_first and not result.stopped_by_signal:
        finish_run(run, settings, evaluations[result.global_step], data.held_out, cast(VideoLMM, result.model))


def make_job(settings: Settings, run: RunFolder, processor: ProcessorMixin, data: Data, ranks: Ranks) -> TrainingJob:
    """What the engine needs to know: model, data, parts."""
    model, training = settings.model, settings.training

    def build() -> VideoLMM:
        built = build_model(model, processor, frozen_parts=training.frozen_parts)
        agree_on_teacher(built, run.path, ranks)
        if built.autoregressive_module is not None:
            check_causality(built, data.train)
        return built

    collate = VideoCollator(
        processor.tokenizer.pad_token_id,
        data.family,
        autoregressive=model.autoregressive_config if model.enable_autoregressive else None,
    )
    return TrainingJob(
        build_model=build,
        train_dataset=training_samples(data.train, counted_in=run.bad_records_path, seed=training.seed),
        collate=collate,
        parts=parts_of(build_config(model, processor)),
        processor=processor,
        dataset_fingerprint=data.train.rows.fingerprint,
        trainer_class=AutoregressiveTrainer,
    )


def open_data(settings: Settings, processor: ProcessorMixin) -> Data:
    """The run's records, read through its processor."""
    family = family_of(processor, settings.model.token_layout)
    # Its stream chooses the frames whether or not its loss is on, so that runs with and without it see the same.
    train_data, held_out = (
        VideoDataset.open(settings.data, files, family, autoregressive=settings.model.autoregressive_config)
        for files in (settings.data.train_files, settings.data.eval_files)
    )
    return Data(family, train_data, held_out)


def prepare_data(settings: DataSettings) -> None:
    """Write the synthetic world where one is asked for and not there yet."""
    if settings.synthetic is not None:
        write_world(Path(settings.root), settings.synthetic)


def prepare_processor(settings: Settings, folder: Path) -> None:
    """Save the run's processor, once: a resumed run must not make another tokenizer."""

    def write(part: Path) -> None:
        texts = read_texts(read_rows(Path(settings.data.root), settings.data.train_files))
        build_processor(settings.model, texts).save_pretrained(part)

    write_folder_once(folder, write)
