"""In which order the samples of all sources are seen: a pure function of (seed, epoch), the same on every rank.

An epoch is as long as all sources together (those with a ratio above 0). Each source gets its share of the places by
its ratio, whatever its size, and goes through its samples in seeded permutations one after the other, across epochs:
none comes twice before all have come once. (Upstream counts samples inside each worker's copy of the dataset and takes
the index modulo a source's size, which holds only while all workers and ranks stay in lock-step.)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int64
from region_core.seeding import sample_rng
from torch.utils.data import Sampler

from psalm.modes import Mode

# Samples draw from (seed, epoch, index >= 0); what belongs to an epoch as a whole has numbers below.
_PHASE, _ORDER, _FIRST_SOURCE = -1, -2, -3


class ModeSchedule(Sampler[int]):
    """Indices into a dataset that has its sources one behind the other.

    Args:
        lengths: Samples of each source.
        ratios: How often each source is seen, against the others; 0 leaves it out.
        seed: Seed of the run.
        batches: `mixed` spreads all sources over the epoch. `single` gives blocks of one source each, so that an
            optimizer step has one mode; the last block is full too, with samples of the next round.
        block_size: Samples of an optimizer step: micro-batch x accumulation steps x ranks.

    Raises:
        ValueError: Lengths and ratios do not go together, or no sample would ever be seen.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        ratios: Sequence[float | int],
        *,
        seed: int,
        batches: Literal["mixed", "single"] = "mixed",
        block_size: int = 1,
    ) -> None:
        if len(lengths) != len(ratios) or not all(ratio >= 0 for ratio in ratios):
            raise ValueError(f"expected one ratio of 0 or more for each of {len(lengths)} sources, got {list(ratios)}")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}, expected 1 or more")
        weights = np.array([ratio if length else 0 for length, ratio in zip(lengths, ratios, strict=True)], dtype=float)
        if not weights.sum() > 0:
            raise ValueError(
                f"no source has samples and a ratio above 0: lengths {list(lengths)}, ratios {list(ratios)}"
            )
        self._lengths = list(lengths)
        self._starts = np.cumsum([0, *lengths])[:-1]
        self._seed = seed
        self._epoch = 0
        self._is_single = batches == "single"
        self._unit = block_size if self._is_single else 1
        total = sum(length for length, weight in zip(lengths, weights, strict=True) if weight)
        self._num_units = -(-total // self._unit)
        self._shares = np.cumsum(weights) / np.cumsum(weights)[-1]

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of samples in an epoch."""
        return self._num_units * self._unit

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of this epoch."""
        counts = self.counts(self._epoch)
        before = sum((self.counts(epoch) for epoch in range(self._epoch)), np.zeros_like(counts))
        streams = [
            self._stream(source, int(before[source]) * self._unit, int(count) * self._unit)
            for source, count in enumerate(counts)
        ]
        units = np.repeat(np.arange(len(counts)), counts)
        order = sample_rng(self._seed, self._epoch, _ORDER).permutation(units)
        indices = np.empty((self._num_units, self._unit), dtype=np.int64)
        for source, stream in enumerate(streams):
            indices[order == source] = stream.reshape(-1, self._unit)
        return iter(indices.ravel().tolist())

    def counts(self, epoch: int) -> Int64[np.ndarray, " sources"]:
        """Units of each source in an epoch: samples, or whole blocks with `single`.

        Every count is its exact share rounded up or down, by one draw per epoch, so that a source whose share is a
        tenth of a block has its block in one of ten epochs.
        """
        phase = sample_rng(self._seed, epoch, _PHASE).random()
        ends = np.floor(self._shares * self._num_units + phase).astype(np.int64)
        return np.diff(ends, prepend=0)

    def _stream(self, source: int, first: int, count: int) -> Int64[np.ndarray, " {count}"]:
        """A source's samples from its `first` on, counted over all epochs."""
        length = self._lengths[source]
        if not count:
            return np.empty(0, dtype=np.int64)
        rounds = range(first // length, (first + count - 1) // length + 1)
        permutations = [sample_rng(self._seed, number, _FIRST_SOURCE - source).permutation(length) for number in rounds]
        return np.concatenate(permutations)[first % length :][:count] + self._starts[source]


def source_ratios(modes: Sequence[Mode], lengths: Sequence[int], mode_ratios: Mapping[str, float | int]) -> list[float]:
    """Ratios of sources from ratios of modes: sources of one mode share its ratio by their sizes.

    Args:
        modes: Mode of each source.
        lengths: Samples of each source.
        mode_ratios: How often a mode is seen, against 1 for those not named.
    """
    totals = {mode: sum(length for own, length in zip(modes, lengths, strict=True) if own == mode) for mode in modes}
    return [
        mode_ratios.get(mode, 1.0) * length / totals[mode] if totals[mode] else 0.0
        for mode, length in zip(modes, lengths, strict=True)
    ]
