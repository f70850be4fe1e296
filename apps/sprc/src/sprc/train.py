"""`sprc train`: data, model, training, held-out retrieval, contact sheet, report: one run folder."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

from region_training.bad_records import BadRecordPolicy
from region_training.engine import TrainingJob, choose_precision
from region_training.engine import train as run_training
from region_training.environment import collect_environment
from region_training.ranks import Ranks, choose_device, join_ranks
from region_training.run_folder import HARMLESS_KEYS, RunFolder, write_folder_once
from region_training.safe_dataset import SafeDataset
from region_training.settings import TrainingSettings
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from sprc.best import BestModel
from sprc.building import PARTS, build_config, build_model, build_tokenizer, with_tower_dtype
from sprc.collate import TripletCollator
from sprc.config import DataSettings, Settings
from sprc.configuration import SPRCConfig
from sprc.data import TripletDataset
from sprc.evaluate import Evaluation, evaluate
from sprc.fingerprint import fingerprint
from sprc.loading import load_model, open_tokenizer
from sprc.model import SPRCModel
from sprc.no_region import beside_no_region_run, check_no_region_run
from sprc.opening import open_dataset, use_cached_tokens
from sprc.region_schedule import RegionSchedule
from sprc.report import finish_run
from sprc.synthetic import write_world

logger = logging.getLogger(__name__)


def train(settings: Settings) -> None:
    """Train and evaluate a model, or go on where an earlier run of the same command stopped."""
    run = RunFolder(Path(str(settings.run_dir)))
    device, training = choose_device(settings.training.device), settings.training
    ranks = join_ranks(device, training.communication_timeout_s, num_workers=training.num_workers)
    # A run folder may be moved or copied, and goes on where it is; the run beside it changes nothing that is learned.
    may_differ = HARMLESS_KEYS | {"run_dir", "evaluation.no_region_run"}
    if run.begin(settings, environment=collect_environment(), may_differ=may_differ) == "finished":
        logger.info("%s is finished; its report is %s", run.path, run.report_path)
        return
    if ranks.is_first:
        prepare_data(settings.data)
        prepare_tokenizer(settings, run.path / "processor")
    ranks.barrier()
    if settings.evaluation.no_region_run is not None:
        check_no_region_run(settings.evaluation.no_region_run, settings)
    settings = replace(settings, model=with_tower_dtype(settings.model, choose_precision(training, device)))
    tokenizer = open_tokenizer(run.path / "processor")
    train_data, held_out = open_splits(settings, build_config(settings.model, tokenizer))
    if settings.data.token_cache is not None:
        cache_tokens(settings, tokenizer, (held_out, train_data), ranks)
    evaluations: dict[int, Evaluation] = {}
    best = BestModel(run.path / "best") if settings.evaluation.save_best else None
    if best is not None and training.resume == "never" and ranks.is_first:
        best.forget()

    def evaluate_now(model: PreTrainedModel, step: int) -> dict[str, float]:
        found = evaluate(cast(SPRCModel, model), tokenizer, held_out, settings.evaluation, ranks=ranks)
        evaluations[step] = found
        if best is not None and ranks.is_first:
            best.offer(model, tokenizer, found.headline, step)
        return found.scores["model"]

    job = make_job(settings, run, tokenizer, train_data)
    job.evaluate = evaluate_now
    result = run_training(job, training_of(settings), run.path)
    if ranks.is_first and not result.stopped_by_signal:
        finish(settings, run, evaluations[result.global_step], held_out)


def finish(settings: Settings, run: RunFolder, found: Evaluation, held_out: TripletDataset) -> None:
    """Write what a trained run holds beside its weights; with the region loss, a run without it is put beside."""
    if settings.model.use_region_loss:
        found = beside_no_region_run(
            found,
            data=settings.data,
            split=settings.data.eval_split,
            options=settings.evaluation,
            device=settings.training.device,
        )
    finish_run(run, settings, found, held_out, model=region_model(settings, run))


def region_model(settings: Settings, run: RunFolder) -> SPRCModel | None:
    """The trained model, whole again after ZeRO, where its region embeddings mean something."""
    return load_model(run.model_path, settings.training.device)[0] if settings.model.use_region_loss else None


def open_splits(settings: Settings, config: SPRCConfig) -> tuple[TripletDataset, TripletDataset]:
    """The split to train on, with regions where they are used, and the one to evaluate on."""
    data = settings.data
    with_regions = settings.model.use_region_loss
    seed = settings.training.seed
    train_data = open_dataset(data, config, data.train_split, training=True, with_regions=with_regions, seed=seed)
    # Boxes of the held-out split are drawn on the contact sheet, where the file has them.
    return train_data, open_dataset(data, config, data.eval_split)


def make_job(
    settings: Settings, run: RunFolder, tokenizer: PreTrainedTokenizerBase, train_data: TripletDataset
) -> TrainingJob:
    """What the engine needs to know: model, data, parts, schedule."""
    model = settings.model
    policy = BadRecordPolicy(settings.data.on_error, settings.data.max_bad_fraction)
    data = SafeDataset(train_data, policy, counted_in=run.bad_records_path, name_of=train_data.where)
    return TrainingJob(
        build_model=lambda: build_model(model, tokenizer),
        train_dataset=data,
        collate=TripletCollator(tokenizer, max_length=model.max_caption_tokens, use_region_loss=model.use_region_loss),
        parts=PARTS,
        processor=tokenizer,
        dataset_fingerprint=fingerprint(train_data),
        callbacks=[RegionSchedule(model.region_loss, model.loss_region)],
    )


def training_of(settings: Settings) -> TrainingSettings:
    """The training settings; the vision tower is frozen, as published, and so is a region branch that is not used."""
    unused = () if settings.model.use_region_loss else ("region_branch",)
    wanted = dict.fromkeys((*settings.training.frozen_parts, "vision_tower", *unused))
    return replace(settings.training, frozen_parts=list(wanted))


def prepare_data(settings: DataSettings) -> None:
    """Write the synthetic world where one is asked for and not there yet."""
    if settings.synthetic is not None and settings.dataset != "OACIRR":
        write_world(Path(settings.root), settings.synthetic, dataset=settings.dataset)


def prepare_tokenizer(settings: Settings, folder: Path) -> None:
    """Save the run's tokenizer, once: a resumed run must not make another one."""
    write_folder_once(
        folder, lambda part: build_tokenizer(settings.model, training_captions(settings)).save_pretrained(part)
    )


def training_captions(settings: Settings) -> list[str]:
    """All captions of the training split, as the model reads them."""
    # Any size will do: no image is opened.
    dataset = open_dataset(settings.data, SPRCConfig(), settings.data.train_split, with_regions=False, training=True)
    return [dataset.evaluation_caption(triplet) for triplet in dataset.split.triplets]


def cache_tokens(
    settings: Settings, tokenizer: PreTrainedTokenizerBase, datasets: tuple[TripletDataset, ...], ranks: Ranks
) -> None:
    """Let both splits read the tower's tokens from the cache; the ranks make it together where it is not there."""
    # The engine seeds in the same way before it builds the model, so a random tower is the same one.
    set_seed(settings.training.seed)
    model = build_model(settings.model, tokenizer).eval().to(choose_device(settings.training.device))
    folder = Path(str(settings.data.token_cache))
    for dataset in datasets:
        use_cached_tokens(dataset, folder, model, batch_size=settings.evaluation.batch_size, ranks=ranks)
