"""When a run stops before its end: a signal, or a number that is not finite.

A signal only raises a flag. At the end of each step the ranks agree on their flags, so all of them save the same step
and leave together, whichever rank was told to stop. A loss or gradient that is not finite is agreed on in the same
exchange, and ends the run with what is needed to find its cause.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

from region_core.losses import LossTerms
from torch import Tensor

_SAME_PRESS_S = 1.0  # a launcher passes on the Ctrl-C that the terminal has sent to its processes already


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; the message names term, step, rank and records."""


class StopRequest:
    """Notes SIGTERM and SIGINT while the `with` block runs; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._first_interrupt_s: float | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        """Begin to listen."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back."""
        for number, previous in self._previous.items():
            # None: the handler was not set by Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)  # ty: ignore[invalid-argument-type]

    def _note(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._first_interrupt_s is None:
                self._first_interrupt_s = now
            elif now - self._first_interrupt_s > _SAME_PRESS_S:
                os._exit(128 + number)
        self.received = signal.Signals(number)


@dataclass(frozen=True)
class MicroBatchTrace:
    """What is kept of a micro-batch until its step has ended well.

    Attributes:
        record_ids: The samples' names, if the batch had them.
        loss: The loss, detached.
        terms: Detached totals by term name.
    """

    record_ids: Sequence[str]
    loss: Tensor
    terms: dict[str, Tensor]

    @staticmethod
    def of(record_ids: Sequence[str], loss: Tensor, terms: LossTerms) -> "MicroBatchTrace":
        """Take the detached numbers of a micro-batch."""
        return MicroBatchTrace(record_ids, loss.detach(), {name: term.total.detach() for name, term in terms.items()})

    def is_finite(self) -> bool:
        """Whether the loss is finite; waits for the device."""
        return bool(self.loss.isfinite())

    def complaints(self) -> list[str]:
        """Say which terms are not finite, and in which records."""
        if self.is_finite():
            return []
        bad = [f"loss term {name!r} is {total.item()}" for name, total in self.terms.items() if not total.isfinite()]
        where = f" in the records {list(self.record_ids)}" if self.record_ids else " (the batch names no records)"
        return [(", ".join(bad) or f"the weighted loss is {self.loss.item()}") + where]


def non_finite_report(
    step: int, by_rank: Sequence[tuple[Sequence[str], Sequence[str]]], grad_norm: float | None
) -> str:
    """Write the message of `NonFiniteError`.

    Args:
        step: The step that went wrong, counted from 1.
        by_rank: Every rank's complaints, and the records of its micro-batches of the step.
        grad_norm: Global gradient norm, where known.
    """
    lines = [f"step {step} is not finite; it was not kept, and the newest checkpoint is from before it"]
    lines += [f"  rank {rank}: {text}" for rank, (complaints, _) in enumerate(by_rank) for text in complaints]
    if len(lines) == 1:
        lines.append(f"  every loss is finite, but the gradient is not (its norm is {grad_norm}); the step had")
        lines += [f"  rank {rank}: the records {list(records)}" for rank, (_, records) in enumerate(by_rank)]
    return "\n".join(lines)
