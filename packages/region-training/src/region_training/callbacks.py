"""What happens at the edges of steps and epochs: epochs, agreement, decisions, and the bar that shows it all."""

import logging
import math
from collections.abc import Mapping

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from region_training.stopping import NonFiniteError, StopRequest, non_finite_report
from region_training.trainer import RegionTrainer

logger = logging.getLogger(__name__)


class RunCallback(TrainerCallback):
    """Steers a `RegionTrainer`: data of the epoch, agreement of the ranks, and when to log, evaluate, save and stop.

    Args:
        trainer: The trainer.
        stop: Notes signals.
        steps_per_epoch: Optimizer steps in one epoch.
    """

    def __init__(self, trainer: RegionTrainer, *, stop: StopRequest, steps_per_epoch: int) -> None:
        self.stopped_by_signal = False
        self._trainer = trainer
        self._stop = stop
        self._steps_per_epoch = steps_per_epoch

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Give each rank its own dropout; a resumed run then puts its stored states in place."""
        own = self._trainer.own
        set_seed((own.settings.seed * 1_000_003 + own.ranks.rank + 1) % 2**32)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Tell data and sampler which epoch begins."""
        self._trainer.own.data.begin_epoch(state.global_step // self._steps_per_epoch)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Keep the learning rates before the schedule moves on."""
        self._trainer.note_learning_rates()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Agree with the other ranks, then decide what this step is followed by.

        Raises:
            NonFiniteError: A loss or the gradient of this step is not finite, on any rank.
        """
        trainer, settings, step = self._trainer, self._trainer.own.settings, state.global_step
        norm = trainer.grad_norm()
        losses = torch.stack([micro_batch.loss for micro_batch in trainer.trace])
        # Precision is fp32 or bf16, without a loss scale to search: a step that DeepSpeed skips is never normal.
        broken = (
            trainer.skipped_steps() > 0
            or (norm is not None and not math.isfinite(norm))
            or not bool(losses.isfinite().all())
        )
        trainer.note_step_end()
        stop, any_broken = trainer.own.ranks.any_of([self._stop.received is not None, broken])
        if any_broken:
            self._raise_non_finite(step, norm)
        last = step >= state.max_steps
        self.stopped_by_signal = self.stopped_by_signal or (stop and not last)
        ends = last or stop
        control.should_save = ends or _is_due(step, settings.save_every)
        control.should_log = step == 1 or control.should_save or _is_due(step, settings.log_every)
        # The last evaluation comes after the export, which must not be lost with it.
        due = not ends and _is_due(step, settings.evaluate_every)
        control.should_evaluate = due and trainer.own.evaluate is not None
        control.should_training_stop = ends
        if stop and trainer.own.ranks.is_first:
            logger.warning("a signal asked to stop: saving step %d and leaving", step)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop when a checkpoint of the last step was resumed."""
        if state.global_step >= state.max_steps:
            control.should_training_stop = True

    def _raise_non_finite(self, step: int, norm: float | None) -> None:
        trace = self._trainer.trace
        complaints = [complaint for micro_batch in trace for complaint in micro_batch.complaints()]
        records = [record for micro_batch in trace for record in micro_batch.record_ids]
        raise NonFiniteError(non_finite_report(step, self._trainer.own.ranks.gather((complaints, records)), norm))


class ProgressBar(TrainerCallback):
    """A bar with the step, the loss and the time left, on standard error."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Show the bar."""
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, loss="")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Show the loss."""
        if self._task is not None and logs is not None and "loss" in logs:
            self._progress.update(self._task, loss=f"loss {logs['loss']:.4f}")

    def close(self) -> None:
        """Remove the bar, however the training ended."""
        self._progress.stop()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
