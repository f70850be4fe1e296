"""Which rank sees which record, and when."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_training.batches import (
    CountingCollate,
    EpochData,
    FollowsEpoch,
    RankBatches,
    SeededPermutation,
    mean_counts,
)
from region_training.settings import ConfigError


def _batches(num_samples, size, world_size, epoch=0):
    sampler = SeededPermutation(num_samples, 3)
    sampler.set_epoch(epoch)
    return [list(RankBatches(sampler, size, rank, world_size)) for rank in range(world_size)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4))
def test_every_record_once_and_every_rank_equally_often(num_samples, size, world_size):
    if num_samples < world_size:
        with pytest.raises(ConfigError, match="at least one per rank"):
            _batches(num_samples, size, world_size)
        return
    per_rank = _batches(num_samples, size, world_size)
    lengths = {len(batches) for batches in per_rank}
    sampler = RankBatches(SeededPermutation(num_samples, 3), size, 0, world_size)
    assert lengths == {len(sampler)}
    seen = [index for batches in per_rank for batch in batches for index in batch]
    assert len(seen) == len(set(seen))
    # Left out are only those at the end that do not suffice for one per rank.
    assert num_samples - len(seen) < world_size
    assert all(1 <= len(batch) <= size for batches in per_rank for batch in batches)
    for step in zip(*per_rank, strict=True):
        assert max(map(len, step)) - min(map(len, step)) <= 1


def test_two_ranks_see_what_one_rank_sees_in_two_micro_steps():
    (alone,) = _batches(24, 2, 1)
    first, second = _batches(24, 2, 2)
    assert alone[0::2] == first
    assert alone[1::2] == second


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        sampler = SeededPermutation(50, seed)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            orders[seed, epoch] = tuple(sampler)
            assert sorted(sampler) == list(range(50))
            assert tuple(sampler) == orders[seed, epoch]
    assert len(set(orders.values())) == 4


def test_mean_counts_by_hand():
    counts = [{"a": 3, "b": 0}, {"a": 1}, {"a": 0, "b": 2}, {"a": 4, "b": 0}]
    assert mean_counts(counts, 4) == {"a": 2.0, "b": 0.5}
    assert mean_counts([], 4) == {}
    assert mean_counts([{"weights": 0.5}, {"weights": 0.25}], 2) == {"weights": 0.375}


def test_collate_counts_samples_and_guards_the_name():
    assert CountingCollate(lambda samples: {"x": samples})([1, 2]) == {"x": [1, 2], "num_samples": 2}
    with pytest.raises(ValueError, match="'num_samples' of its own"):
        CountingCollate(lambda samples: {"num_samples": 0})([1])


class Watched(torch.utils.data.Dataset):
    def __init__(self):
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index


def _data(dataset, sampler=None):
    return EpochData(
        dataset,
        sampler=sampler,
        collate=lambda samples: {"x": samples},
        micro_batch_size=4,
        seed=0,
        num_workers=0,
        rank=0,
        world_size=1,
        pin_memory=False,
    )


def test_an_epoch_reaches_dataset_and_order_and_leaves_the_global_generator():
    dataset = Watched()
    data = _data(dataset)
    before = torch.get_rng_state()
    epochs = []
    for epoch in (0, 1, 0):
        data.begin_epoch(epoch)
        epochs.append([batch["x"] for batch in data.loader])
    assert torch.equal(torch.get_rng_state(), before)
    assert epochs[0] == epochs[2] != epochs[1]
    assert dataset.epochs == [0, 0, 1, 0]
    assert isinstance(dataset, FollowsEpoch)


def test_the_jobs_own_sampler_is_used():
    sampler = torch.utils.data.SequentialSampler(range(8))
    assert [batch["x"] for batch in _data(Watched(), sampler).loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_data_without_length_is_refused():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield 0

    with pytest.raises(ConfigError, match="Endless has no length"):
        _data(Endless())
