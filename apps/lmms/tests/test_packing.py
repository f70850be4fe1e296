"""Packs: planned once, the same everywhere, and no sample sees another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lmms.packing import PackedDataset, PackedSample, first_fit, plan_packs


class Lengths:
    """Records of which only the lengths are known; -1 is a bad one."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def longest(self, index, /):
        if self.lengths[index] < 0:
            raise ValueError("bad record")
        return self.lengths[index]


class Samples:
    """A dataset of ready samples that notes what it is told."""

    def __init__(self, samples):
        self.samples = samples
        self.epochs = []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index, /):
        return self.samples[index]

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def plan(lengths, max_length, seed=0):
    return plan_packs(Lengths(lengths), max_length=max_length, seed=seed, progress=list)


def test_first_fit_by_hand():
    assert first_fit([6, 5, 4, 2, 3, 9, 1], 10) == [[0, 2], [1, 3, 4], [5, 6]]
    assert first_fit([], 10) == []
    assert first_fit([12, 10, 1], 10) == [[0], [1], [2]]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_first_fit_places_each_item_in_the_first_bin_with_room(lengths, capacity):
    room, bins = [], []
    for position, length in enumerate(min(length, capacity) for length in lengths):
        place = next((place for place, left in enumerate(room) if left >= length), len(room))
        if place == len(room):
            room.append(capacity)
            bins.append([])
        room[place] -= length
        bins[place].append(position)
    assert first_fit(lengths, capacity) == bins


def test_a_plan_has_every_record_once_and_depends_on_the_seed_alone():
    lengths = [1 + (7 * index) % 13 for index in range(50)]
    packs = plan(lengths, 20)
    assert sorted(index for pack in packs for index in pack) == list(range(50))
    assert all(sum(lengths[index] for index in pack) <= 20 for pack in packs)
    torch.rand(3)
    assert plan(lengths, 20) == packs
    assert plan(lengths, 20, seed=1) != packs


def test_a_record_that_cannot_be_measured_is_alone():
    packs = plan([5, -1, 5], 10)
    assert sorted(map(sorted, packs)) == [[0, 2], [1]]


def test_packs_hold_their_samples_and_pass_epochs_on(toy):
    inside = Samples(toy.mixed())
    longest = max(len(sample.input_ids) for sample in inside.samples)
    packed = PackedDataset(inside, [[0, 5], [1], [4]], max_length=2 * longest)
    assert len(packed) == 3
    assert [sample.record_id for sample in packed[0].samples] == ["toy-0", "toy-5"]
    packed.set_epoch(3)
    assert inside.epochs == [3]
    PackedDataset(Samples.__new__(Samples), [], max_length=1)  # nothing is read ahead


def test_of_stand_ins_for_bad_records_those_stay_that_fit(toy):
    first, second = toy.sample((1,), seed=0), toy.sample((3,), seed=7)  # the second stands in for record 1
    assert (first.index, second.index) == (0, 7)
    room = len(first.input_ids) + len(second.input_ids)
    for max_length, kept in ((room, [0, 7]), (room - 1, [0])):
        pack = PackedDataset(Samples([first, second]), [[0, 1]], max_length=max_length)[0]
        assert [sample.index for sample in pack.samples] == kept


def test_a_record_that_is_longer_than_planned_is_an_error(toy):
    samples = [toy.sample((1,), seed=0), toy.sample((3,), seed=1)]
    packed = PackedDataset(Samples(samples), [[0, 1]], max_length=sum(len(s.input_ids) for s in samples) - 1)
    with pytest.raises(ValueError, match=r"toy-1: .* tokens do not fit"):
        packed[0]


@pytest.mark.parametrize("newline", ["one_token", "grid"])
def test_packed_logits_and_losses_are_those_of_the_samples_alone(toy, newline):
    layout = {"video_tokens": type(toy.settings().video_tokens)(newline=newline)}
    samples, model = toy.mixed(**layout), toy.model(**layout)
    packs = [PackedSample(tuple(samples[:4])), PackedSample(tuple(samples[4:]))]
    batch = toy.batch(packs)
    loss_of_packs = model(**batch)
    assert model.config.lmm.text_config._attn_implementation in ("sdpa", "eager")
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        for row, pack in enumerate(packs):
            start = 0
            for sample in pack.samples:
                alone = toy.batch([sample])
                alone.pop("labels")
                expected = model(**alone).logits[0]
                torch.testing.assert_close(logits[row, start : start + len(expected)], expected, atol=2e-5, rtol=1e-4)
                start += len(expected)
    unpacked = model(**toy.batch(samples))
    for name, term in unpacked.losses.items():
        torch.testing.assert_close(loss_of_packs.losses[name].total, term.total, atol=1e-4, rtol=1e-4)
        assert int(loss_of_packs.losses[name].count) == int(term.count)
    loss_of_packs.loss.backward()
    packed_gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    unpacked.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(packed_gradients[name], parameter.grad, atol=2e-4, rtol=1e-3, msg=name)
