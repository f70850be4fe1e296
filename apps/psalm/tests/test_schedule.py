"""The order of all sources: shares, coverage, blocks, ranks, resume."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psalm.schedule import ModeSchedule, source_ratios
from region_training.batches import RankBatches

LENGTHS = [10, 4, 26]


def epoch_of(schedule: ModeSchedule, epoch: int) -> list[int]:
    schedule.set_epoch(epoch)
    return list(schedule)


def sources_of(indices: list[int], lengths: list[int] = LENGTHS) -> list[int]:
    ends = [sum(lengths[: number + 1]) for number in range(len(lengths))]
    return [next(number for number, end in enumerate(ends) if index < end) for index in indices]


def test_an_epoch_is_as_long_as_all_sources_and_shared_by_the_ratios():
    schedule = ModeSchedule(LENGTHS, [1, 1, 2], seed=3)
    assert len(schedule) == 40
    for epoch in range(4):
        counts = Counter(sources_of(epoch_of(schedule, epoch)))
        assert counts == {0: 10, 1: 10, 2: 20}


def test_nothing_comes_twice_before_all_have_come_once():
    schedule = ModeSchedule(LENGTHS, [1, 1, 2], seed=3)
    seen = [index for epoch in range(7) for index in epoch_of(schedule, epoch)]
    first = 0
    for number, length in enumerate(LENGTHS):
        own = [index - first for index in seen if first <= index < first + length]
        rounds = [own[start : start + length] for start in range(0, len(own), length)]
        assert all(sorted(visited) == list(range(length)) for visited in rounds[:-1])
        assert len(set(rounds[-1])) == len(rounds[-1])
        assert len(rounds) < 3 or rounds[0] != rounds[1]
        first += length
        assert number < 3


def test_the_order_is_a_function_of_seed_and_epoch():
    schedule, other = (ModeSchedule(LENGTHS, [1, 1, 1], seed=seed) for seed in (0, 1))
    straight = [epoch_of(schedule, epoch) for epoch in range(3)]
    # A resumed run starts in the middle, with a sampler of its own.
    assert epoch_of(ModeSchedule(LENGTHS, [1, 1, 1], seed=0), 2) == straight[2]
    assert epoch_of(schedule, 1) == straight[1] != straight[0]
    assert epoch_of(other, 0) != straight[0]


def test_mixed_batches_hold_several_sources():
    indices = epoch_of(ModeSchedule([100, 100], [1, 1], seed=0), 0)
    batches = [set(sources_of(indices[start : start + 8], [100, 100])) for start in range(0, 200, 8)]
    assert sum(len(batch) == 2 for batch in batches) >= 23


@pytest.mark.parametrize(("world_size", "micro_batch", "accumulation"), [(1, 4, 1), (2, 2, 1), (2, 1, 2), (4, 1, 3)])
def test_single_gives_all_ranks_one_source_in_each_optimizer_step(world_size, micro_batch, accumulation):
    block = world_size * micro_batch * accumulation
    schedule = ModeSchedule(LENGTHS, [1, 1, 1], seed=5, batches="single", block_size=block)
    assert len(schedule) == -(-40 // block) * block
    for epoch in range(3):
        schedule.set_epoch(epoch)
        ranks = [list(RankBatches(schedule, micro_batch, rank, world_size)) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(schedule) // (world_size * micro_batch)}
        for step in range(len(schedule) // block):
            micro_steps = range(step * accumulation, (step + 1) * accumulation)
            indices = [index for batches in ranks for number in micro_steps for index in batches[number]]
            assert len(indices) == block
            assert len(set(sources_of(indices))) == 1


def test_ranks_together_see_what_one_rank_sees():
    schedule = ModeSchedule(LENGTHS, [1, 1, 1], seed=5)
    together = zip(*(RankBatches(schedule, 2, rank, 2) for rank in range(2)), strict=True)
    assert [first + second for first, second in together] == list(RankBatches(schedule, 4, 0, 1))


def test_a_source_whose_share_is_less_than_a_block_gets_one_now_and_then():
    schedule = ModeSchedule([1000, 10], [0.99, 0.01], seed=0, batches="single", block_size=101)
    blocks = [int(schedule.counts(epoch)[1]) for epoch in range(200)]
    assert set(blocks) == {0, 1}
    assert 8 <= sum(blocks) <= 35  # a tenth of a block in each of 200 epochs
    assert all(schedule.counts(epoch).sum() == 10 for epoch in range(200))


def test_a_ratio_of_zero_leaves_a_source_out():
    for ratios in ([0, 1, 1], [1, 0, 1], [1, 1, 0]):
        schedule = ModeSchedule(LENGTHS, ratios, seed=0)
        out = ratios.index(0)
        assert len(schedule) == 40 - LENGTHS[out]
        assert out not in sources_of(epoch_of(schedule, 0))


def test_an_empty_source_gets_no_share():
    assert Counter(sources_of(epoch_of(ModeSchedule([4, 0, 4], [1, 9, 1], seed=0), 0), [4, 0, 4])) == {0: 4, 2: 4}


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 5)), min_size=1, max_size=5),
    block_size=st.integers(1, 7),
    is_single=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_any_epoch_has_its_length_and_stays_in_range(sources, block_size, is_single, epoch):
    lengths, ratios = [length for length, _ in sources], [ratio for _, ratio in sources]
    if not any(length and ratio for length, ratio in sources):
        with pytest.raises(ValueError, match="no source has samples"):
            ModeSchedule(lengths, ratios, seed=0)
        return
    batches = "single" if is_single else "mixed"
    schedule = ModeSchedule(lengths, ratios, seed=0, batches=batches, block_size=block_size)
    indices = epoch_of(schedule, epoch)
    assert len(indices) == len(schedule)
    assert all(0 <= index < sum(lengths) for index in indices)
    weights = [ratio if length else 0 for length, ratio in sources]
    unit = block_size if is_single else 1
    found = Counter(sources_of(indices, lengths))
    for number, weight in enumerate(weights):
        exact = weight / sum(weights) * len(schedule)
        assert abs(found[number] - exact) < unit + 1e-6
        assert found[number] == 0 or weight > 0


def test_sources_of_one_mode_share_its_ratio():
    modes = ["panoptic", "referring", "referring"]
    assert source_ratios(modes, [50, 30, 10], {"referring": 2.0}) == [1.0, 1.5, 0.5]
    assert source_ratios(modes, [50, 0, 0], {}) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("lengths", "ratios", "block_size", "message"),
    [
        ([1, 2], [1], 1, "one ratio of 0 or more for each of 2 sources"),
        ([1], [-1], 1, r"got \[-1\]"),
        ([1], [float("nan")], 1, r"got \[nan\]"),
        ([1], [0], 1, "no source has samples and a ratio above 0"),
        ([0], [1], 1, "no source has samples"),
        ([1], [1], 0, "block_size is 0"),
    ],
)
def test_faulty_arguments(lengths, ratios, block_size, message):
    with pytest.raises(ValueError, match=message):
        ModeSchedule(lengths, ratios, seed=0, batches="single", block_size=block_size)
