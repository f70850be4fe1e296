"""What happens to a record that cannot be read: stop and name it, or put a neighbour in its place and count it.

The neighbour is a function of the index alone, so workers, ranks and resumed runs all see the same data, and the
number of samples and their order never change. Bad records are counted over all workers and ranks through one file.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch.utils.data import Dataset

from region_training.bad_records import BadRecordPolicy
from region_training.records import read_records

Sample = TypeVar("Sample", covariant=True)


@runtime_checkable
class SizedDataset(Protocol[Sample]):
    """A map-style dataset of known length."""

    def __len__(self) -> int:
        """How many records there are."""
        ...

    def __getitem__(self, index: int, /) -> Sample:
        """The sample of one record; raises ValueError or OSError where the record is bad."""
        ...


@runtime_checkable
class KnowsEpochs(Protocol):
    """A dataset whose samples depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        ...


class SafeDataset(Dataset, Generic[Sample]):
    """A dataset around another that deals with bad records by a policy.

    A record is bad when reading it raises ValueError or OSError. Any other exception is a fault of the code: it is
    raised as it is, with the record's name added.

    Args:
        dataset: The dataset inside.
        policy: What to do.
        counted_in: The file that bad records are written to, one JSON object per line (`index`, `record`, `reason`);
            the run's `bad_records.jsonl`. Needed for the policy `skip`.
        name_of: Names a record by its index; the index itself by default.
    """

    def __init__(
        self,
        dataset: SizedDataset[Sample],
        policy: BadRecordPolicy,
        *,
        counted_in: Path | None = None,
        name_of: Callable[[int], str] = str,
    ) -> None:
        if policy.on_error == "skip" and counted_in is None:
            raise ValueError("SafeDataset: the policy is 'skip' and counted_in is None, expected a file to count in")
        self.dataset = dataset
        self.policy = policy
        self.counted_in = counted_in
        self.name_of = name_of
        self._noted: set[int] = set()

    def __len__(self) -> int:
        """How many records there are, bad ones included."""
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset inside, where it asks to be told."""
        if isinstance(self.dataset, KnowsEpochs):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`, or, by the policy `skip`, of the next record that can be read.

        Raises:
            BadRecordError: The record is bad and the policy is `raise`, or too many are.
        """
        length = len(self.dataset)
        if not -length <= index < length:
            raise IndexError(f"got index {index}, expected one of {length} records")
        for offset in range(length):
            position = (index + offset) % length
            try:
                return self.dataset[position]
            except (ValueError, OSError) as error:
                if self.policy.on_error == "raise" or self.counted_in is None:
                    name, text = self.name_of(position), str(error)
                    raise BadRecordError(text if text.startswith(name) else f"record {name}: {text}") from error
                self._note(position, error, self.counted_in)
            except Exception as error:
                error.add_note(f"while reading record {self.name_of(position)}")
                raise
        raise BadRecordError(f"none of the {length} records can be read; see {str(self.counted_in)!r}")

    def _note(self, position: int, error: Exception, counted_in: Path) -> None:
        """Write the bad record down once and stop when there are too many."""
        if position in self._noted:
            return
        self._noted.add(position)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        line = json.dumps({"index": position, "record": self.name_of(position), "reason": reason}) + "\n"
        # One write in append mode: lines of several processes do not mix.
        handle = os.open(counted_in, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)
        bad = count_bad_records(counted_in)
        allowed = self.policy.max_bad_fraction * len(self.dataset)
        if bad > allowed:
            raise TooManyBadRecordsError(
                f"{bad} of {len(self.dataset)} records cannot be read, expected at most {allowed:g} "
                f"(max_bad_fraction {self.policy.max_bad_fraction:g}); the last: record {self.name_of(position)}: "
                f"{reason}; all are listed in {str(counted_in)!r}"
            )


class BadRecordError(ValueError):
    """A record cannot be read; the message names it.

    Args:
        message: What is wrong. Torch's loading processes hand an error over as the text of its traceback; of that only
            the end, the message itself, is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip("\n"))


class TooManyBadRecordsError(BadRecordError):
    """More records are bad than the policy allows."""


def count_bad_records(counted_in: Path) -> int:
    """How many different records a `bad_records.jsonl` lists; workers and epochs may list one several times."""
    if not counted_in.is_file():
        return 0
    return len({line["index"] for line in read_records(counted_in)})
