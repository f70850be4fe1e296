from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from region_heads import TaskBalancedSampler

TASKS = [0] * 49 + [2] * 22 + [3] * 15 + [1] * 14  # the warehouse set's mix in per cent
TASK_TYPES = [TASKS[(37 * index) % 100] for index in range(400)]


def _mix(indices: list[int]) -> Counter[int]:
    return Counter(TASK_TYPES[index] for index in indices)


def test_temperatures() -> None:  # T41
    natural = _mix(list(TaskBalancedSampler(TASK_TYPES, temperature=0.0)))
    assert natural == {0: 196, 2: 88, 3: 60, 1: 56}
    assert _mix(list(TaskBalancedSampler(TASK_TYPES, temperature=1.0))) == {0: 100, 1: 100, 2: 100, 3: 100}
    between = _mix(list(TaskBalancedSampler(TASK_TYPES, temperature=0.5)))
    # Shares go with the square roots 7, 4.69, 3.87, 3.74 of 49, 22, 15, 14.
    assert between == {0: 145, 2: 97, 3: 80, 1: 78}


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    first, again = TaskBalancedSampler(TASK_TYPES, seed=3), TaskBalancedSampler(TASK_TYPES, seed=3)
    orders = []
    for epoch in range(3):
        first.set_epoch(epoch)
        orders.append(list(first))
    again.set_epoch(2)
    assert list(again) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert list(TaskBalancedSampler(TASK_TYPES, seed=4)) != orders[0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 5), factor=st.integers(1, 5), offset=st.integers(0, 50))
def test_every_window_of_four_k_is_balanced(seed: int, epoch: int, factor: int, offset: int) -> None:  # T41
    sampler = TaskBalancedSampler(TASK_TYPES, seed=seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    aligned = order[4 * offset : 4 * (offset + factor)]
    assert set(_mix(aligned).values()) == {factor}
    shifted = order[offset : offset + 4 * factor]
    assert all(factor - 1 <= count <= factor + 1 for count in _mix(shifted).values())


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_windows_keep_the_mix_at_any_temperature(temperature: float) -> None:
    order = list(TaskBalancedSampler(TASK_TYPES, temperature=temperature))
    whole = _mix(order)
    for start in range(0, 400, 40):
        window = _mix(order[start : start + 40])
        assert all(abs(window[task] - whole[task] / 10) <= 2 for task in range(4))


def test_a_dealt_rank_sees_every_task() -> None:
    # Without the shuffle inside blocks, rank 0 of 4 would take the same task every time.
    for rank in range(4):
        seen = _mix(list(TaskBalancedSampler(TASK_TYPES, rank=rank, world_size=4)))
        assert set(seen) == {0, 1, 2, 3}
        assert max(seen.values()) < 50


def test_all_records_of_a_task_come_before_any_repeats_across_epochs() -> None:
    sampler = TaskBalancedSampler(TASK_TYPES)
    order = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        order += list(sampler)
    for task in range(4):
        stream = [index for index in order if TASK_TYPES[index] == task]
        size = TASK_TYPES.count(task)
        for start in range(0, len(stream) - size + 1, size):
            # Blocks are shuffled inside, which may move an item over the edge of a pass by at most one block.
            assert len(set(stream[start : start + size])) >= size - 1
        assert len(set(stream)) == size


def test_ranks_share_the_epoch() -> None:
    whole = list(TaskBalancedSampler(TASK_TYPES, num_samples=10))
    dealt = [list(TaskBalancedSampler(TASK_TYPES, num_samples=10, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(part) for part in dealt] == [3, 3, 3, 3]
    mixed = [dealt[index % 4][index // 4] for index in range(12)]
    assert mixed == whole + whole[:2]


def test_resuming_in_the_middle() -> None:
    sampler = TaskBalancedSampler(TASK_TYPES, seed=1)
    sampler.set_epoch(2)
    order = list(sampler)
    resumed = TaskBalancedSampler(TASK_TYPES, seed=1)
    resumed.load_state_dict(sampler.state_dict(100))
    resumed.set_epoch(2)
    assert len(resumed) == 300
    assert list(resumed) == order[100:]
    resumed.set_epoch(3)
    assert len(list(resumed)) == 400
    assert (
        list(TaskBalancedSampler(TASK_TYPES, seed=1, start=390)) == list(TaskBalancedSampler(TASK_TYPES, seed=1))[390:]
    )


def test_a_state_of_another_sampler_is_refused() -> None:
    state = TaskBalancedSampler(TASK_TYPES, seed=1).state_dict(5)
    with pytest.raises(ValueError, match="the saved sampler had seed 1, this one 2"):
        TaskBalancedSampler(TASK_TYPES, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="num_records 400, this one 399"):
        TaskBalancedSampler(TASK_TYPES[1:], seed=1, num_samples=400).load_state_dict(state)


def test_few_records_and_unknown_tasks() -> None:
    assert sorted(TaskBalancedSampler([-1, 0, 3])) == [0, 1, 2]
    assert sorted(TaskBalancedSampler([0, 0, 0, 1], temperature=1.0, num_samples=6)).count(3) == 3
    assert len(list(TaskBalancedSampler([0, 1, 2, 3], num_samples=2))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 1.5}, "temperature must lie in"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"rank": 2, "world_size": 2}, "got rank 2 of 2"),
        ({"start": -1}, "start must be at least 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskBalancedSampler([0, 1], **arguments)
    with pytest.raises(ValueError, match="no records"):
        TaskBalancedSampler([])
