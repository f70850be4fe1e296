"""A sampler that balances the tasks, spreads each evenly over an epoch, and is the same on every machine.

The order is a pure function of (seed, epoch). Every task has an endless stream of its records: one shuffled pass after
another, so no record comes a second time before all others of its task have come once, across epochs too. An epoch
takes the next part of each stream and interleaves them evenly, so that a micro-batch holds the tasks in the epoch's
proportions, not by luck but by construction.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_STREAM, _BLOCKS = 0, 1  # separate the random numbers of the two uses of a seed


class TaskBalancedSampler(Sampler[int]):
    """Indices of records, balanced over tasks.

    Args:
        task_types: Task number of every record; -1 (unknown) is a group like the others.
        temperature: 0 keeps the natural mix, 1 gives every task the same share; in between a task's share grows with
            `count ** (1 - temperature)`.
        seed: Start of all random numbers.
        num_samples: Length of an epoch over all ranks; `None` is the number of records.
        rank: This process, when the sampler itself deals to the ranks. With accelerate, which deals whole batches,
            leave `rank` and `world_size` alone.
        world_size: Number of processes. Ranks get equal numbers; the end is filled up from the epoch's start.
        start: Samples of the first epoch that this rank skips, to resume in its middle.
    """

    def __init__(
        self,
        task_types: Sequence[int],
        *,
        temperature: float = 1.0,
        seed: int = 0,
        num_samples: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        if len(task_types) == 0:
            raise ValueError("cannot sample from no records: task_types is empty")
        if not 0.0 <= temperature <= 1.0:
            raise ValueError(f"temperature must lie in [0, 1], got {temperature!r}")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples!r}")
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start!r}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..world_size - 1, got rank {rank} of {world_size}")
        tasks = np.asarray(task_types, dtype=np.int64)
        self.temperature = temperature
        self.seed = seed
        self.num_samples = num_samples or len(tasks)
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = start
        self._records = [np.flatnonzero(tasks == task) for task in np.unique(tasks)]
        self._quotas = _share([len(records) for records in self._records], self.num_samples, temperature)

    def __len__(self) -> int:
        """Samples that this rank still gets in this epoch."""
        return max(-(-self.num_samples // self.world_size) - self.start, 0)

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's indices of the epoch, from `start` on."""
        order = self.epoch_order()
        missing = -len(order) % self.world_size
        dealt = np.concatenate([order, np.resize(order, missing)])[self.rank :: self.world_size]
        yield from dealt[self.start :].tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; a new one starts at its beginning."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def state_dict(self, num_consumed: int) -> dict[str, int | float]:
        """Describe a position inside the epoch.

        Args:
            num_consumed: Samples of this epoch that this rank has trained on. The sampler cannot know: a data loader
                reads ahead.
        """
        return {
            "epoch": self.epoch,
            "start": num_consumed,
            "seed": self.seed,
            "temperature": self.temperature,
            "num_samples": self.num_samples,
            "num_records": sum(len(records) for records in self._records),
        }

    def load_state_dict(self, state: dict[str, int | float]) -> None:
        """Continue at a position that `state_dict` described.

        Raises:
            ValueError: The state belongs to a sampler with other records or settings, whose order was another one.
        """
        mine = self.state_dict(0)
        for key in ("seed", "temperature", "num_samples", "num_records"):
            if state[key] != mine[key]:
                raise ValueError(f"cannot resume: the saved sampler had {key} {state[key]!r}, this one {mine[key]!r}")
        self.epoch, self.start = int(state["epoch"]), int(state["start"])

    def epoch_order(self) -> np.ndarray:
        """The whole epoch's indices, before they are dealt to ranks."""
        picks = [
            self._stream(number, self.epoch * quota, quota) for number, quota in enumerate(self._quotas) if quota > 0
        ]
        # Item j of a task with quota q stands at (j + 1/2) / q of the epoch; sorting these positions interleaves the
        # tasks as evenly as whole numbers allow.
        positions = np.concatenate([(np.arange(len(pick)) + 0.5) / len(pick) for pick in picks])
        order = np.concatenate(picks)[positions.argsort(kind="stable")]
        # Shuffling inside blocks of one item per task breaks the fixed rhythm: otherwise a rank that takes every
        # fourth item would see one task only. Windows of whole blocks stay as balanced as before.
        blocks = np.arange(len(order)) // len(picks)
        generator = np.random.default_rng([self.seed, _BLOCKS, self.epoch])
        return order[np.lexsort((generator.random(len(order)), blocks))]

    def _stream(self, number: int, start: int, length: int) -> np.ndarray:
        """Part of a task's endless stream of shuffled passes."""
        records = self._records[number]
        first, last = start // len(records), (start + length - 1) // len(records)
        passes = [
            np.random.default_rng([self.seed, _STREAM, number, index]).permutation(records)
            for index in range(first, last + 1)
        ]
        offset = start - first * len(records)
        return np.concatenate(passes)[offset : offset + length]


def _share(counts: list[int], num_samples: int, temperature: float) -> list[int]:
    """Whole numbers proportional to `counts ** (1 - temperature)` that sum to `num_samples` (largest remainders)."""
    weights = np.asarray(counts, dtype=np.float64) ** (1.0 - temperature)
    exact = num_samples * weights / weights.sum()
    quotas = np.floor(exact).astype(np.int64)
    leftover = num_samples - int(quotas.sum())
    quotas[np.argsort(quotas - exact, kind="stable")[:leftover]] += 1
    return quotas.tolist()
