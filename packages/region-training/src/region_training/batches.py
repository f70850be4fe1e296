"""Which samples every rank sees in every micro-step: a pure function of (seed, epoch), so that resuming is exact.

An epoch shows every sample once. Global micro-batches are cut from one permutation and dealt to the ranks in turn, so
two ranks see exactly what one rank with twice the accumulation steps sees. The samples left at the end of an epoch form
one smaller global micro-batch, shared evenly; only when they are fewer than the ranks are they left out, since every
rank needs one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from region_training.settings import ConfigError

Batch = dict[str, object]


@runtime_checkable
class FollowsEpoch(Protocol):
    """A dataset or sampler that wants to know the epoch before it begins."""

    def set_epoch(self, epoch: int) -> None:
        """Take over the number of the epoch that begins."""


class SeededPermutation(Sampler[int]):
    """All indices in an order that depends on (seed, epoch) alone.

    Args:
        num_samples: Size of the dataset.
        seed: Seed of the run.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return the size of the dataset."""
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        """Yield every index once."""
        generator = torch.Generator().manual_seed(_mix(self._seed, self._epoch))
        return iter(torch.randperm(self._num_samples, generator=generator).tolist())


class RankBatches(BatchSampler):
    """This rank's micro-batches of one epoch.

    Args:
        sampler: Indices of the whole epoch; the same on every rank.
        micro_batch_size: Samples per rank and micro-step.
        rank: This rank.
        world_size: Number of ranks.

    Raises:
        ConfigError: The sampler has fewer samples than there are ranks.
    """

    def __init__(self, sampler: Sampler[int], micro_batch_size: int, rank: int, world_size: int) -> None:
        num_samples = _length(sampler)
        if num_samples < world_size:
            raise ConfigError(f"got {num_samples} training samples, expected at least one per rank ({world_size})")
        self.sampler = sampler
        # Public names of torch's BatchSampler: other code (accelerate) reads them.
        self.batch_size = micro_batch_size
        self.drop_last = False
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        """Return the number of micro-batches, which is the same on every rank."""
        full, rest = divmod(_length(self.sampler), self.batch_size * self._world_size)
        return full + (rest >= self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each of this rank's micro-batches."""
        size = self.batch_size * self._world_size
        gathered: list[int] = []
        for index in self.sampler:
            gathered.append(index)
            if len(gathered) == size:
                yield self._share(gathered)
                gathered = []
        if len(gathered) >= self._world_size:
            yield self._share(gathered)

    def _share(self, gathered: Sequence[int]) -> list[int]:
        base, extra = divmod(len(gathered), self._world_size)
        begin = self._rank * base + min(self._rank, extra)
        return list(gathered[begin : begin + base + (self._rank < extra)])


@dataclass(frozen=True)
class CountingCollate:
    """The application's collate function, with the number of samples written into the batch.

    Attributes:
        collate: Turns a list of samples into a batch.
    """

    collate: Callable[[list], dict]

    def __call__(self, samples: list) -> dict:
        """Collate `samples` and add their number as "num_samples"."""
        batch = dict(self.collate(samples))
        if "num_samples" in batch:
            raise ValueError("the collate function returned a 'num_samples' of its own; the name is taken")
        batch["num_samples"] = len(samples)
        return batch


class EpochData:
    """The training data of a run, told about the epoch before each one begins.

    Args:
        dataset: Samples by index.
        sampler: Order of an epoch; None is a seeded permutation.
        collate: Turns a list of samples into a batch.
        micro_batch_size: Samples per rank and micro-step.
        seed: Seed of the run.
        num_workers: Loading processes; 0 loads in this process.
        rank: This rank.
        world_size: Number of ranks.
        pin_memory: Whether batches go to page-locked memory, for copies to CUDA.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        sampler: Sampler | None,
        collate: Callable[[list], dict],
        micro_batch_size: int,
        seed: int,
        num_workers: int,
        rank: int,
        world_size: int,
        pin_memory: bool,
    ) -> None:
        self._dataset = dataset
        self._sampler = SeededPermutation(_length(dataset), seed) if sampler is None else sampler
        self._seed = seed
        self._generator = torch.Generator()
        self.loader = DataLoader(
            dataset,
            batch_sampler=RankBatches(self._sampler, micro_batch_size, rank, world_size),
            collate_fn=CountingCollate(collate),
            num_workers=num_workers,
            pin_memory=pin_memory,
            # A generator of its own: opening an epoch must not draw from the global one, or resuming is not exact.
            generator=self._generator,
        )
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Put the sampler, the dataset and the workers' seeds at the start of an epoch."""
        self._generator.manual_seed(_mix(self._seed, epoch))
        for part in (self._sampler, self._dataset):
            if isinstance(part, FollowsEpoch):
                part.set_epoch(epoch)


def mean_counts(group: Sequence[Mapping[str, int | float]], num_micro_batches: int) -> dict[str, float]:
    """Return every term's number of items (or sum of weights) per micro-batch, averaged over the optimizer step.

    Args:
        group: The "loss_counts" of the micro-batches of all ranks; a name may be absent from some of them.
        num_micro_batches: Micro-batches of the step, over all ranks.
    """
    totals: dict[str, float] = {}
    for counts in group:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0.0) + float(count)
    return {name: total / num_micro_batches for name, total in sorted(totals.items())}


def _mix(seed: int, epoch: int) -> int:
    """One 63-bit seed from two numbers, so that (0, 1) and (1, 0) have nothing in common."""
    return (seed * 6364136223846793005 + epoch * 1442695040888963407 + 1442695040888963407) % (1 << 63)


def _length(collection: object) -> int:
    """Length of a map-style dataset or of a sampler.

    Raises:
        ConfigError: It has none.
    """
    try:
        return len(collection)  # ty: ignore[invalid-argument-type]
    except TypeError:
        raise ConfigError(
            f"{type(collection).__name__} has no length; expected a map-style dataset or a sampler with __len__"
        ) from None
