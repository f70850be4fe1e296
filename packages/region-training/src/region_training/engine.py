"""Train a model: `train(job, settings, run_dir)`.

The job says what is trained (model, data, parts, evaluation), the settings say how. The same call works in a single
process, under torchrun and under DeepSpeed's launcher, on CPU and on CUDA, and continues a run that was killed: the
weights are then the same to the bit as those of a run that was not.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from region_training import checkpoints
from region_training.batches import EpochData
from region_training.callbacks import ProgressBar, RunCallback
from region_training.deepspeed_presets import deepspeed_config
from region_training.parts import ModelParts, parts_table, write_parts
from region_training.ranks import Ranks, choose_device, join_ranks
from region_training.settings import TrainingSettings
from region_training.stopping import StopRequest
from region_training.trainer import Evaluate, RegionTrainer, SavesPretrained, TrainerParts

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingJob:
    """What is trained.

    Attributes:
        build_model: Makes the model; called after the ranks have met, so that ZeRO-3 can partition weights at load, and
            with the seed set. Resuming calls it too.
        train_dataset: Samples by index; a sample must be a pure function of (seed, epoch, index). With a method
            `set_epoch(epoch)` it is told the epoch.
        collate: Turns samples into the keyword arguments of the model's forward. Two entries are for the trainer:
            "record_ids" (list of str, named when something goes wrong) and "loss_counts" (items per loss term of this
            batch; the model gets the mean over the step in its place).
        parts: Part name -> prefixes of parameter names; every parameter belongs to exactly one part.
        sampler: Order of an epoch, the same on every rank, a function of (seed, epoch); None is a seeded permutation.
        evaluate: Called with the model in evaluation mode and the step, on every rank, every `evaluate_every` steps and
            at the end. Rank 0's numbers are kept. Under ZeRO-3 every rank must run the model equally often.
        processor: Saved beside the weights.
        dataset_fingerprint: Tells this training data from other data; a checkpoint refuses to continue on other data.
        callbacks: Further HF callbacks.
        trainer_class: The trainer, or a subclass.
    """

    build_model: Callable[[], PreTrainedModel]
    train_dataset: Dataset
    collate: Callable[[list], dict]
    parts: Mapping[str, tuple[str, ...]]
    sampler: Sampler | None = None
    evaluate: Evaluate | None = None
    processor: SavesPretrained | None = None
    dataset_fingerprint: str = ""
    callbacks: Sequence[TrainerCallback] = ()
    trainer_class: type[RegionTrainer] = RegionTrainer


@dataclass(frozen=True)
class TrainingResult:
    """What is left after training.

    Attributes:
        model: The trained model without the engine around it. Under ZeRO-3 its weights stay partitioned: open
            `model_dir` instead.
        metrics: The last evaluation, under the names that it gave.
        global_step: Optimizer steps done.
        checkpoint: The newest checkpoint.
        model_dir: The exported HF folder; None when a signal ended the run before its last step.
        stopped_by_signal: Whether a signal ended the run early. The same command continues it.
        last_values: The last line of metrics.jsonl about training.
    """

    model: PreTrainedModel
    metrics: dict[str, float]
    global_step: int
    checkpoint: Path | None
    model_dir: Path | None
    stopped_by_signal: bool
    last_values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """Everything that a trainer is made of: `job.trainer_class(model, args, own)`.

    Attributes:
        model: The model, freshly built; a resumed checkpoint fills it later.
        args: HF's arguments.
        own: What HF does not know.
        resumed: The checkpoint that the run goes on from; None for a new one.
        steps_per_epoch: Optimizer steps in one pass over the data.
    """

    model: PreTrainedModel
    args: TrainingArguments
    own: TrainerParts
    resumed: checkpoints.Checkpoint | None
    steps_per_epoch: int


def train(job: TrainingJob, settings: TrainingSettings, run_dir: Path) -> TrainingResult:
    """Train a model, or continue its training.

    Args:
        job: What is trained.
        settings: How.
        run_dir: The run folder, the same for all ranks; made if absent. Written into it: `checkpoint-*/`, `model/`,
            `metrics.jsonl`, `parts.json`.

    Returns:
        The model, its last evaluation and where everything is.

    Raises:
        ConfigError: The settings do not fit the model, the data, the machine or the checkpoint.
        NonFiniteError: A loss or gradient is not finite.
        CheckpointError: A checkpoint that was asked for is damaged, or none can be written.
    """
    prepared = prepare(job, settings, run_dir)
    return run(job.trainer_class(prepared.model, prepared.args, prepared.own), job, prepared)


def prepare(job: TrainingJob, settings: TrainingSettings, run_dir: Path) -> Preparation:
    """The first half of `train`, for a trainer that is made by somebody else: meet the other ranks, build the model.

    Raises:
        ConfigError: As for `train`.
        CheckpointError: The checkpoint that was asked for is damaged.
    """
    device = choose_device(settings.device)
    ranks = join_ranks(device, settings.communication_timeout_s, num_workers=settings.num_workers)
    if ranks.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
        checkpoints.drop_staging(run_dir)
    precision = choose_precision(settings, device)
    data = _data(job, settings, ranks, device)
    conditions = _conditions(job, settings, ranks, precision)
    resumed, identity = _resume_point(run_dir, settings, ranks, conditions)
    steps_per_epoch = math.ceil(len(data.loader) / settings.gradient_accumulation_steps)
    max_steps = settings.max_steps if settings.max_steps > 0 else math.ceil(settings.num_epochs * steps_per_epoch)
    _quiet_libraries()
    # Before the model: ZeRO-3 partitions weights at load only if these arguments are alive.
    args = _training_arguments(settings, run_dir, device=device, precision=precision, max_steps=max_steps)
    set_seed(settings.seed)
    model = job.build_model()
    if settings.gradient_checkpointing:
        _enable_activation_checkpointing(model)
    parts = ModelParts(model, prefixes=job.parts, settings=settings)
    _report_parts(parts, run_dir, ranks)
    own = TrainerParts(run_dir, settings, conditions, identity, ranks, data, parts, job.evaluate)
    return Preparation(model, args, own, resumed, steps_per_epoch)


def run(trainer: RegionTrainer, job: TrainingJob, prepared: Preparation) -> TrainingResult:
    """The second half of `train`: run the trainer that was made of `prepared`, and export the model.

    Raises:
        NonFiniteError: A loss or gradient is not finite.
        CheckpointError: A checkpoint cannot be written.
    """
    try:
        return _run(trainer, job, prepared.resumed, prepared.steps_per_epoch)
    finally:
        # Else whatever is loaded next in this process would be partitioned as well.
        unset_hf_deepspeed_config()


def _run(
    trainer: RegionTrainer, job: TrainingJob, resumed: checkpoints.Checkpoint | None, steps_per_epoch: int
) -> TrainingResult:
    ranks = trainer.own.ranks
    trainer.remove_callback(PrinterCallback)
    bar = ProgressBar()
    trainer.metrics_file.keep_until(0 if resumed is None else resumed.step)
    if resumed is not None:
        trainer.resumed_step, trainer.last_checkpoint = resumed.step, resumed.path
    with StopRequest() as stop:
        steering = RunCallback(trainer, stop=stop, steps_per_epoch=steps_per_epoch)
        for callback in (steering, *job.callbacks, *((bar,) if ranks.is_first else ())):
            trainer.add_callback(callback)
        try:
            trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.path))
        finally:
            bar.close()
        step = trainer.state.global_step
        if steering.stopped_by_signal:
            if ranks.is_first:
                logger.warning("stopped at step %d of %d; run the same command to go on", step, trainer.state.max_steps)
            model_dir = None
        else:
            model_dir = trainer.export(job.processor)
            trainer.evaluate()
    if trainer.own.settings.zero_stage < 3:
        # Under stage 3 the engine's hooks are what makes the model callable.
        trainer.engine().destroy()
    return TrainingResult(
        model=trainer.network,
        metrics=trainer.last_evaluation,
        global_step=step,
        checkpoint=trainer.last_checkpoint,
        model_dir=model_dir,
        stopped_by_signal=steering.stopped_by_signal,
        last_values=trainer.last_values,
    )


def _data(job: TrainingJob, settings: TrainingSettings, ranks: Ranks, device: str) -> EpochData:
    return EpochData(
        job.train_dataset,
        sampler=job.sampler,
        collate=job.collate,
        micro_batch_size=settings.micro_batch_size,
        seed=settings.seed,
        num_workers=settings.num_workers,
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin_memory=device == "cuda",
    )


def _conditions(job: TrainingJob, settings: TrainingSettings, ranks: Ranks, precision: str) -> checkpoints.Conditions:
    return checkpoints.Conditions(
        world_size=ranks.world_size,
        seed=settings.seed,
        micro_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        zero_stage=settings.zero_stage,
        precision=precision,
        num_samples=len(job.train_dataset),  # ty: ignore[invalid-argument-type]  # EpochData has checked it
        dataset_fingerprint=job.dataset_fingerprint,
        frozen_parts=tuple(sorted(settings.frozen_parts)),
    )


def _resume_point(
    run_dir: Path, settings: TrainingSettings, ranks: Ranks, conditions: checkpoints.Conditions
) -> tuple[checkpoints.Checkpoint | None, str]:
    """Let rank 0 choose the checkpoint to continue from, and the identity of the run."""
    outcome: tuple[checkpoints.Checkpoint | None, str] | checkpoints.CheckpointError = (None, "")
    if ranks.is_first:
        try:
            outcome = _choose_checkpoint(run_dir, settings)
        except checkpoints.CheckpointError as error:
            outcome = error
    outcome = ranks.broadcast(outcome)
    if isinstance(outcome, checkpoints.CheckpointError):
        raise outcome
    found, identity = outcome
    if found is not None:
        checkpoints.check_conditions(found, conditions)
        if ranks.is_first:
            logger.info("continuing from %s", found.path)
    return found, identity


def _choose_checkpoint(run_dir: Path, settings: TrainingSettings) -> tuple[checkpoints.Checkpoint | None, str]:
    if settings.resume == "never":
        return None, checkpoints.run_id(run_dir, renew=True)
    identity = checkpoints.run_id(run_dir)
    if settings.resume != "auto":
        return checkpoints.read_checkpoint(Path(settings.resume)), identity
    search = checkpoints.find_checkpoint(run_dir, identity=identity)
    for name, reason in search.skipped.items():
        logger.warning("%s was not used: %s", run_dir / name, reason)
    return search.found, identity


def choose_precision(settings: TrainingSettings, device: str) -> str:
    """Return "bf16" or "fp32" for the setting `precision` on a device ("cpu" or "cuda")."""
    if settings.precision == "auto":
        return "bf16" if device == "cuda" else "fp32"
    return settings.precision


def _training_arguments(
    settings: TrainingSettings, run_dir: Path, *, device: str, precision: str, max_steps: int
) -> TrainingArguments:
    warmup_steps = round(settings.warmup * max_steps) if settings.warmup < 1 else int(settings.warmup)
    return TrainingArguments(
        output_dir=str(run_dir),
        use_cpu=device == "cpu",
        ddp_backend="gloo" if device == "cpu" else "nccl",
        ddp_timeout=math.ceil(settings.communication_timeout_s),
        bf16=precision == "bf16",
        deepspeed=deepspeed_config(settings),
        seed=settings.seed,
        max_steps=max_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        # Without partitioning the trainer clips, since DeepSpeed would not tell the norm.
        max_grad_norm=settings.max_grad_norm if settings.zero_stage > 0 else 0.0,
        lr_scheduler_type="constant_with_warmup" if settings.scheduler == "constant" else settings.scheduler,
        warmup_steps=warmup_steps,
        # RunCallback decides when to log, save and evaluate.
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_num_workers=settings.num_workers,
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        report_to=list(settings.report_to) or "none",
    )


def _enable_activation_checkpointing(model: PreTrainedModel) -> None:
    # transformers renamed it between the oldest and the newest supported version, and warns about the old name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _report_parts(parts: ModelParts, run_dir: Path, ranks: Ranks) -> None:
    if not ranks.is_first:
        return
    rows = parts.rows()
    write_parts(rows, run_dir / "parts.json")
    console = Console(width=110)
    with console.capture() as capture:
        console.print(parts_table(rows))
    logger.info("\n%s", capture.get().rstrip())


def _quiet_libraries() -> None:
    """Keep DeepSpeed's commentary out of the log; its warnings stay."""
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
