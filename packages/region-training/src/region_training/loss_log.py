"""The numbers of a run: every loss term by its own count, and one line of metrics.jsonl per log step.

Between two log steps sums stay on the device, detached; nothing waits for the accelerator. At a log step the ranks add
up their sums and counts, so a term's value is its mean over all items since the last line, on whatever rank and in
whatever micro-batch they were. A term without items is absent from the line, not zero and not stale.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from region_core.losses import LossTerms
from torch import Tensor

from region_training.ranks import Ranks


class LossLog:
    """Accumulates loss terms between two log steps.

    Args:
        ranks: The ranks to add up with.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int | float] = {}
        self._expected: dict[str, float] = {}
        self._loss: Tensor | None = None
        self._num_micro_batches = 0

    def add(self, loss: Tensor, terms: LossTerms, expected: Mapping[str, float] | None) -> None:
        """Add one micro-batch.

        Args:
            loss: The loss of this micro-batch as it goes to backward, before the division by accumulation steps.
            terms: Its terms.
            expected: The mean counts that scaled it; None when each micro-batch was scaled by its own counts.
        """
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss
        self._num_micro_batches += 1
        for name, term in terms.items():
            total = term.total.detach().double()
            count = term.count.detach() if isinstance(term.count, Tensor) else term.count
            # An item-less total is a graph keeper, whatever number it holds.
            total = torch.where(torch.as_tensor(count, device=total.device) > 0, total, 0.0)
            self._totals[name] = self._totals[name] + total if name in self._totals else total
            self._counts[name] = self._counts.get(name, 0) + count
        for name, count in (expected or {}).items():
            self._expected[name] = self._expected.get(name, 0.0) + count

    def drain(self) -> tuple[dict[str, float], list[str]]:
        """Add up over the ranks and start anew; every rank must call it.

        Returns:
            "loss/total" and one "loss/<term>" per term that had items; and one sentence for each term whose number of
            items was not the one that the collate function announced, which makes its gradient wrongly weighted.
        """
        mine = {name: (total.item(), float(self._counts[name])) for name, total in self._totals.items()}
        loss = 0.0 if self._loss is None else self._loss.item()
        reports = self._ranks.gather((loss, self._num_micro_batches, mine, self._expected))
        self._totals, self._counts, self._expected = {}, {}, {}
        self._loss, self._num_micro_batches = None, 0
        num_micro_batches = sum(num for _, num, _, _ in reports)
        if num_micro_batches == 0:
            return {}, []
        values = {"loss/total": sum(loss for loss, _, _, _ in reports) / num_micro_batches}
        names = sorted({name for _, _, terms, _ in reports for name in terms})
        surprises: list[str] = []
        for name in names:
            total = sum(terms[name][0] for _, _, terms, _ in reports if name in terms)
            count = sum(terms[name][1] for _, _, terms, _ in reports if name in terms)
            if count > 0:
                values[f"loss/{name}"] = total / count
            announced = [expected[name] for _, _, _, expected in reports if name in expected]
            if announced and not math.isclose(sum(announced), count, rel_tol=1e-6, abs_tol=1e-6):
                surprises.append(f"loss term {name!r}: loss_counts announced {sum(announced):g} items, got {count:g}")
        return values, surprises


class MetricsFile:
    """metrics.jsonl: one JSON object per line, with its "step"; rank 0 alone writes.

    Args:
        path: The file; its folder exists.
        writes: Whether this rank writes.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self._path = path
        self._writes = writes

    def append(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Append a line. A value that is not finite is written as null, since JSON has no such number."""
        if not self._writes:
            return
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, "epoch": round(epoch, 6), **numbers}, allow_nan=False)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def has_evaluation(self, step: int) -> bool:
        """Whether a line of this step holds an evaluation; False on ranks that do not write."""
        if not self._writes or not self._path.exists():
            return False
        lines = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
        return any(line["step"] == step and any(name.startswith("eval/") for name in line) for line in lines)

    def keep_until(self, step: int) -> None:
        """Drop the lines after `step`, and a last line that a killed process left unfinished."""
        if not self._writes or not self._path.exists():
            return
        kept: list[str] = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                belongs = json.loads(line)["step"] <= step
            except (json.JSONDecodeError, KeyError, TypeError):
                belongs = False
            if belongs:
                kept.append(line + "\n")
        staged = self._path.with_suffix(".staged")
        staged.write_text("".join(kept), encoding="utf-8")
        staged.replace(self._path)
