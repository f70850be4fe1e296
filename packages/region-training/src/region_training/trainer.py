"""The HF Trainer with what it lacks: named loss terms, parts, exact accumulation and whole checkpoints.

The loop, the accumulation and the DeepSpeed engine stay HF's. What is added hangs on its public hooks: the batches of a
step are counted together over all ranks before the first forward, the loss terms are recorded in `compute_loss` and
merged into the log in `log`, and a checkpoint is written by HF into a staging folder that is then committed as a whole.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from region_core.losses import LossTerms
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import ModelOutput

from region_training import checkpoints
from region_training.batches import EpochData, mean_counts
from region_training.loss_log import LossLog, MetricsFile
from region_training.measures import Clock, peak_gib, random_states_kept
from region_training.parts import ModelParts
from region_training.ranks import Ranks
from region_training.settings import TrainingSettings
from region_training.stopping import MicroBatchTrace

logger = logging.getLogger(__name__)

Evaluate = Callable[[PreTrainedModel, int], Mapping[str, float]]

_BATCH_NOTES = ("record_ids", "num_samples")  # for the trainer, not for the model


@runtime_checkable
class Movable(Protocol):
    """Part of a batch that knows how to move itself to a device, as tensors do."""

    def to(self, device: torch.device) -> object:
        """Return this on the device."""


@runtime_checkable
class SavesPretrained(Protocol):
    """A processor or tokenizer in HF's sense."""

    def save_pretrained(self, save_directory: str) -> object:
        """Write its files into a folder."""


@runtime_checkable
class ZeroEngine(Protocol):
    """What is used of DeepSpeed's engine; its class cannot be named before the device is chosen.

    Attributes:
        skipped_steps: Steps left out because their gradient was not finite.
    """

    skipped_steps: int

    def get_global_grad_norm(self) -> float | None:
        """Return the gradient norm of the last step before clipping."""

    def destroy(self) -> None:
        """Take the hooks off the model."""


@dataclass(frozen=True)
class TrainerParts:
    """What a `RegionTrainer` works with beside the model and HF's arguments.

    Attributes:
        run_dir: The run folder, shared by all ranks.
        settings: The training settings.
        conditions: What a checkpoint must be continued under.
        identity: Identity of the run.
        ranks: The ranks.
        data: Training data.
        parts: The model's parts.
        evaluate: Called with the model and the step, on every rank; or None.
    """

    run_dir: Path
    settings: TrainingSettings
    conditions: checkpoints.Conditions
    identity: str
    ranks: Ranks
    data: EpochData
    parts: ModelParts
    evaluate: Evaluate | None


class RegionTrainer(Trainer):
    """Trains a model whose forward returns `loss` and `losses` (`LossTerms`).

    Args:
        model: The model.
        args: HF's arguments, made by `engine.train`.
        own: Everything that HF does not know.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, own: TrainerParts) -> None:
        self.own = own
        # HF would divide by a count of label tokens, which is wrong for a loss of several terms; with False it divides
        # by the accumulation steps of the group at hand, once, and DeepSpeed not again.
        super().__init__(model=model, args=args, train_dataset=own.data.loader.dataset)
        self.network = model
        self.model_accepts_loss_kwargs = False
        self.loss_log = LossLog(own.ranks)
        self.metrics_file = MetricsFile(own.run_dir / "metrics.jsonl", own.ranks.is_first)
        self.trace: list[MicroBatchTrace] = []
        self.learning_rates: dict[str, float] = {}
        self.last_values: dict[str, float] = {}
        self.last_evaluation: dict[str, float] = {}
        self.resumed_step = -1
        self.last_checkpoint: Path | None = None
        self._clock = Clock()
        self._plain_norm: float | None = None

    # Batches ------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Return this rank's batches; they are dealt out by `RankBatches`, not by accelerate."""
        return self.own.data.loader

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Fetch the micro-batches of one step and tell each how many items the whole step has per loss term."""
        if self.state.global_step >= self.state.max_steps:
            return [], None  # a checkpoint of the last step was resumed: nothing is left to do
        self._clock.begin_step()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._clock.data_arrived()
        self.trace = []
        counts = [batch.pop("loss_counts", None) for batch in batches]
        reports = self.own.ranks.gather((counts, sum(batch["num_samples"] for batch in batches)))
        if len({len(counts) for counts, _ in reports}) != 1:
            raise ValueError(f"micro-batches per rank differ in a step: {[len(counts) for counts, _ in reports]}")
        everywhere = [count for counts, _ in reports for count in counts]
        self._clock.num_samples += sum(num_samples for _, num_samples in reports)
        if any(count is not None for count in everywhere):
            if any(count is None for count in everywhere):
                raise ValueError("some batches of a step have 'loss_counts' and some do not; expected all or none")
            means = mean_counts(everywhere, len(everywhere))
            batches = [{**batch, "loss_counts": means} for batch in batches]
        return batches, None

    def _prepare_inputs(self, inputs: Mapping[str, object]) -> dict[str, object]:
        """Move a batch to the device, and leave its dtypes alone.

        HF casts every floating tensor to the engine's dtype. A box in bf16 is off by up to 1/512 of the image, so here
        inputs keep their precision; a model casts pixels where they enter a module (`pixels.to(self.dtype)`).
        """
        return {name: _to_device(value, self.args.device) for name, value in inputs.items()}

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, object],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """Run the model on one micro-batch and record its loss terms."""
        self.own.parts.hold_frozen()
        given = {name: value for name, value in inputs.items() if name not in _BATCH_NOTES}
        outputs = model(**given)
        terms = outputs["losses"]
        if not isinstance(terms, LossTerms):
            raise TypeError(
                f"{type(self.network).__name__}.forward returned losses of type {type(terms)}, not LossTerms"
            )
        self.loss_log.add(outputs["loss"], terms, cast("Mapping[str, float] | None", given.get("loss_counts")))
        record_ids = cast("Sequence[str]", inputs.get("record_ids", ()))
        self.trace.append(MicroBatchTrace.of(record_ids, outputs["loss"], terms))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def floating_point_ops(self, inputs: Mapping[str, object]) -> int:
        """Return 0: HF's guess counts text tokens only."""
        return 0

    # Optimizer ----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Make AdamW with the groups of the parts; frozen parameters are in none."""
        if self.optimizer is None:
            settings = self.own.settings
            self.optimizer = torch.optim.AdamW(
                self.own.parts.optimizer_groups(),
                lr=settings.learning_rate,
                betas=(settings.adam_beta1, settings.adam_beta2),
                eps=settings.adam_epsilon,
                fused=True,
            )
            if settings.zero_stage == 0:
                self.optimizer.register_step_pre_hook(self._clip_plain_gradients)
        return self.optimizer

    def _clip_plain_gradients(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        """Clip, and drop a gradient that is not finite: stage 0 has no gradient norm of DeepSpeed's to look at."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.own.settings.max_grad_norm or math.inf)
        self._plain_norm = norm.item()
        if not math.isfinite(self._plain_norm):
            optimizer.zero_grad(set_to_none=True)

    def grad_norm(self) -> float | None:
        """Return the global gradient norm of the last step before clipping, where it is known."""
        if self._plain_norm is not None:
            return self._plain_norm
        norm = self.engine().get_global_grad_norm()
        return None if norm is None else float(norm)

    def engine(self) -> ZeroEngine:
        """Return DeepSpeed's engine, which is around the model once training has begun."""
        return cast("ZeroEngine", self.model_wrapped)

    def skipped_steps(self) -> int:
        """Return how many steps DeepSpeed has left out because their gradient was not finite."""
        return self.engine().skipped_steps

    def note_learning_rates(self) -> None:
        """Keep the learning rates of the step that ends, before the schedule moves on."""
        groups = cast("torch.optim.Optimizer", self.optimizer).param_groups
        self.learning_rates = {f"lr/{group['part']}": float(group["lr"]) for group in groups}

    def note_step_end(self) -> None:
        """Stop the step's clock."""
        self._clock.end_step()

    # Logs ---------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Merge the loss terms into a step's log, and write the line."""
        if "loss" not in logs:
            super().log(logs)
            return
        values, surprises = self.loss_log.drain()
        for surprise in surprises if self.own.ranks.is_first else ():
            logger.warning("step %d: %s; its gradient is weighted accordingly", self.state.global_step, surprise)
        values |= self.learning_rates
        norm = self.grad_norm()
        if norm is not None:
            values["grad_norm"] = norm
        values |= self._clock.drain()
        values["memory/peak_gib"] = max(self.own.ranks.gather(peak_gib(self.args.device)))
        values["skipped_steps"] = float(self.skipped_steps())
        self.last_values = values
        self.metrics_file.append(self.state.global_step, self.state.epoch or 0.0, values)
        super().log({"loss": values["loss/total"], **values})

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: Sequence[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Call the job's evaluation without leaving a trace in the training: RNG states and modes are restored."""
        if self.own.evaluate is None:
            return {}
        step = self.state.global_step
        with random_states_kept(), torch.no_grad():
            self.network.eval()
            metrics = {name: float(value) for name, value in self.own.evaluate(self.network, step).items()}
            self.network.train()
            self.own.parts.hold_frozen()
        self.last_evaluation = metrics
        # A resumed run may evaluate its step again, or for the first time if it ended while it did.
        if step > self.resumed_step or not self.metrics_file.has_evaluation(step):
            values = {f"eval/{name}": value for name, value in metrics.items()}
            self.metrics_file.append(step, self.state.epoch or 0.0, values)
        super().log({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        # It also takes back the wish to evaluate, which the end of the epoch would grant a second time.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints --------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; into a checkpoint goes only its configuration.

        A checkpoint holds the weights once, in DeepSpeed's files. HF would store them, frozen ones included, a second
        time.
        """
        if _internal_call and output_dir is not None:
            if self.own.ranks.is_first:
                self.network.config.save_pretrained(output_dir)
            return
        super().save_model(output_dir)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object = None) -> None:
        """Let HF write the checkpoint into a staging folder, then commit it as a whole."""
        own, step = self.own, self.state.global_step
        name = checkpoints.checkpoint_name(step)
        staged = own.run_dir / checkpoints.STAGING / name
        self._on_first("the checkpoint cannot be begun", lambda: self._begin_checkpoint(name))
        output_dir = self.args.output_dir
        self.args.output_dir = str(staged.parent)
        try:
            super()._save_checkpoint(model, trial)
            own.ranks.barrier()
            mine = checkpoints.list_files(staged)[own.ranks.rank :: own.ranks.world_size]
            shares = own.ranks.gather(checkpoints.hash_files(staged, mine, flush=True))
        except (OSError, RuntimeError) as error:
            # Not agreed with the others: they may wait inside HF or DeepSpeed, and end when this process does.
            checkpoints.drop_staging(own.run_dir)
            raise checkpoints.CheckpointError(
                f"{name} could not be written: {error}. Earlier checkpoints are intact"
            ) from error
        finally:
            self.args.output_dir = output_dir
        files = {path: entry for share in shares for path, entry in share.items()}
        self._on_first("the checkpoint cannot be committed", lambda: self._commit(staged, files))
        self.last_checkpoint = own.run_dir / name

    def _begin_checkpoint(self, name: str) -> None:
        if self.last_checkpoint is not None and self.last_checkpoint.is_dir():
            needed = 2 * checkpoints.folder_bytes(self.last_checkpoint)
        else:
            rows = self.own.parts.rows()
            # Weights, and AdamW's fp32 master copy and two moments of what is trained.
            needed = sum(4 * row.num_parameters + 12 * row.num_trained for row in rows)
        checkpoints.check_free_space(self.own.run_dir, needed_bytes=needed)
        checkpoints.new_staging(self.own.run_dir, name)

    def _commit(self, staged: Path, files: dict[str, tuple[int, str]]) -> None:
        own = self.own
        checkpoints.commit(
            staged,
            own.run_dir / staged.name,
            files=files,
            step=self.state.global_step,
            identity=own.identity,
            conditions=own.conditions,
        )
        checkpoints.rotate(own.run_dir, identity=own.identity, keep=own.settings.keep_checkpoints)
        checkpoints.drop_staging(own.run_dir)

    def _on_first(self, what: str, action: Callable[[], None]) -> None:
        """Run something on rank 0; if it fails there, all ranks fail with its message."""
        problem: str | None = None
        if self.own.ranks.is_first:
            try:
                action()
            except (OSError, checkpoints.CheckpointError) as error:
                checkpoints.drop_staging(self.own.run_dir)
                problem = f"{what}: {error}"
        problem = self.own.ranks.broadcast(problem)
        if problem is not None:
            raise checkpoints.CheckpointError(problem)

    def export(self, processor: SavesPretrained | None = None) -> Path:
        """Write the model as an HF folder, `run_dir/model`, gathered from all ranks.

        Args:
            processor: Something with `save_pretrained`, stored beside the weights; or None.
        """
        folder = self.own.run_dir / "model"
        staged = self.own.run_dir / checkpoints.STAGING / folder.name
        self._on_first("the export cannot be begun", lambda: _begin_export(self.own.run_dir, folder.name))
        self.save_model(str(staged))
        self._on_first("the export cannot be finished", lambda: _finish_export(staged, folder, processor))
        return folder


def _begin_export(run_dir: Path, name: str) -> None:
    checkpoints.new_staging(run_dir, name)


def _finish_export(staged: Path, folder: Path, processor: SavesPretrained | None) -> None:
    # A pickle of the whole arguments object; nothing reads it, and it may hold tokens.
    (staged / "training_args.bin").unlink(missing_ok=True)
    if processor is not None:
        processor.save_pretrained(str(staged))
    checkpoints.hash_files(staged, checkpoints.list_files(staged), flush=True)
    checkpoints.publish(staged, folder)
    checkpoints.drop_staging(folder.parent)


def _to_device(value: object, device: torch.device) -> object:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _to_device(entry, device) for name, entry in value.items()}
    if isinstance(value, list):
        return [_to_device(entry, device) for entry in value]
    # A batch names hundreds of records, and asking a protocol takes longer than all else here.
    if not isinstance(value, str) and isinstance(value, Movable):
        return value.to(device)
    return value
