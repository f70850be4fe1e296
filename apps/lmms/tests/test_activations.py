"""The estimate of activations beside what autograd really keeps."""

import pytest
import torch
from lmms.activations import Workload, estimate_activations, kept_bytes
from lmms.config import DataSettings

EVERYTHING = ("vision_tower", "projector", "language_model", "autoregressive")


def _kept(model, batch):
    """Bytes that a forward keeps for its backward, weights and inputs not counted."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *batch["visuals"].values())}
    found = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            # Kept alive, or its address would be given out again.
            found[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(**batch).loss.backward()
    return sum(size for size, _ in found.values())


def _estimate(toy, samples, estimate=estimate_activations, **changes):
    config = toy.config()
    workload = Workload.of_samples(samples, len(samples), config)
    options = {"trained_parts": EVERYTHING, "value_bytes": 4, "checkpointing": False}
    return estimate(config, workload, **{**options, **changes})


@pytest.mark.parametrize("frozen", [(), ("vision_tower",), ("vision_tower", "projector", "language_model")])
def test_it_is_near_what_autograd_keeps(each, frozen):
    samples = [each.sample((8,), seed=seed) for seed in range(3)]
    model = each.model(frozen_parts=frozen).train()
    trained = [part for part in EVERYTHING if part not in frozen]
    ratio = _estimate(each, samples, kept_bytes, trained_parts=trained) / _kept(model, each.batch(samples))
    assert 0.8 < ratio < 1.25, ratio
    assert _estimate(each, samples, trained_parts=trained) > _estimate(each, samples, kept_bytes, trained_parts=trained)


def test_less_is_kept_of_frozen_parts_with_checkpointing_and_in_bf16(toy):
    samples = [toy.sample((8,))]
    whole = _estimate(toy, samples)
    frozen_tower = _estimate(toy, samples, trained_parts=EVERYTHING[1:])
    assert frozen_tower < whole
    assert _estimate(toy, samples, checkpointing=True) < whole
    assert whole / 2 < _estimate(toy, samples, value_bytes=2) < whole
    assert _estimate(toy, samples, trained_parts=("autoregressive",)) < frozen_tower


def test_a_workload_is_as_large_as_its_largest_sample(toy):
    samples = [toy.sample((2,)), toy.sample((5,), images=1, answer="3" * 9)]
    workload = Workload.of_samples(samples, 4, toy.config())
    largest = samples[1]
    assert workload.tokens == len(largest.input_ids)
    assert workload.rows == 4
    tiles = len(largest.visuals["image_tiles"])
    assert workload.patches == 4 * (5 + tiles) * 16
    assert workload.frame_tokens == 4 * 5 * 4
    assert workload.labels == 4 * int((largest.labels >= 0).sum())


def test_without_records_the_longest_sequence_counts(each):
    workload = Workload.worst(DataSettings(max_frames=6, max_length=100), 2, each.config())
    assert not workload.is_measured
    assert (workload.rows, workload.tokens) == (2, 100)
    assert workload.patches == (2 * 6 * 16 if each.model_type == "llava_onevision" else 2 * 100 * 4)
