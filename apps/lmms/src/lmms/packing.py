"""Several short samples in one sequence, which do not see each other.

A pack is one row of the batch. Positions start anew with every sample, and no attention mask is given: from such
positions transformers builds a mask that is block-diagonal. Which records share a row is planned once, from lengths
that are known without decoding a video, so the plan is the same in every process and after a resume.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from region_training.safe_dataset import KnowsEpochs, SizedDataset
from torch.utils.data import Dataset
from tqdm import tqdm

from lmms.sample import VideoSample


@dataclass(frozen=True)
class PackedSample:
    """Samples that share a row.

    Attributes:
        samples: At least one, in order.
    """

    samples: tuple[VideoSample, ...]


@runtime_checkable
class KnowsLengths(Protocol):
    """A dataset that can tell how long a sample will be at most, without its videos."""

    def __len__(self) -> int:
        """How many records there are."""
        ...

    def longest(self, index: int, /) -> int:
        """Most tokens that the sample of a record can have."""
        ...


class PackedDataset(Dataset):
    """Packs of another dataset's samples.

    Args:
        dataset: Gives the samples; it has dealt with bad records, and what stands in for one may be longer.
        plan: Per pack the indices of its records.
        max_length: Tokens of a row.
    """

    def __init__(self, dataset: SizedDataset[VideoSample], plan: Sequence[Sequence[int]], *, max_length: int) -> None:
        self.dataset = dataset
        self.plan = plan
        self.max_length = max_length

    def __len__(self) -> int:
        """Number of packs."""
        return len(self.plan)

    def set_epoch(self, epoch: int) -> None:
        """Tell the dataset inside, where it asks to be told."""
        if isinstance(self.dataset, KnowsEpochs):
            self.dataset.set_epoch(epoch)

    def __getitem__(self, index: int) -> PackedSample:
        """The samples of one pack; of stand-ins for bad records those that still fit.

        Raises:
            ValueError: A sample is longer than was planned.
        """
        samples: list[VideoSample] = []
        free = self.max_length
        for record in self.plan[index]:
            sample = self.dataset[record]
            length = len(sample.input_ids)
            if length <= free:
                samples.append(sample)
                free -= length
            elif sample.index == record:
                raise ValueError(
                    f"record {sample.record_id}: {length} tokens do not fit into a pack that has room for {free} of "
                    f"{self.max_length}, which was planned otherwise"
                )
        return PackedSample(tuple(samples))


def plan_packs(
    dataset: KnowsLengths, *, max_length: int, seed: int, progress: Callable[[range], Sequence[int]] | None = None
) -> list[list[int]]:
    """Which records share a row: a function of the records, `max_length` and `seed` alone.

    Args:
        dataset: Tells lengths. A record that cannot tell gets a row of its own, and is a bad record when it is read.
        max_length: Tokens of a row.
        seed: Of the order in which records are placed, so that the neighbours in a file do not all share a row.
        progress: Wraps the indices, to show how far it is; a progress bar by default.

    Returns:
        Per pack the indices of its records.
    """
    indices = range(len(dataset))
    lengths = [
        _length_of(dataset, index, max_length)
        for index in (tqdm(indices, desc="measuring records") if progress is None else progress(indices))
    ]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    packs = first_fit([lengths[index] for index in order], max_length)
    return [[order[place] for place in pack] for pack in packs]


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each item into the first bin with enough room left.

    Args:
        lengths: Of the items; what is longer than `capacity` has a bin of its own.
        capacity: Of a bin.

    Returns:
        Per bin the positions of its items.
    """
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    # A tree over the bins: a node has the most room that is left in any bin below it.
    room = [capacity] * (2 * leaves)
    bins: list[list[int]] = [[] for _ in range(leaves)]
    for position, length in enumerate(min(length, capacity) for length in lengths):
        node = 1
        while node < leaves:
            node *= 2
            node += room[node] < length
        bins[node - leaves].append(position)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [items for items in bins if items]


def _length_of(dataset: KnowsLengths, index: int, max_length: int) -> int:
    try:
        return dataset.longest(index)
    except (ValueError, OSError):
        return max_length
