"""Two ranks with unequal batches have the loss and the gradients of one process with all samples."""

import pytest
import torch
from region_core.distributed import all_reduce_sum
from region_training.testing import run_ranks

pytestmark = pytest.mark.slow  # the first forks after importing what a training imports

ROWS, OWNERS = 4, (0, 0, 1, 3)
SPLITS = {
    "three and one": ((0, 3), (3, 4)),
    "one and three": ((0, 1), (1, 4)),
}


def part_of(batch: dict, begin: int, end: int) -> dict:
    """Some rows of a batch, with the pairs that belong to them."""
    own = (batch["pair_owner"] >= begin) & (batch["pair_owner"] < end)
    part = {}
    for name, value in batch.items():
        if name == "pair_owner":
            part[name] = value[own] - begin
        elif name in ("reference_boxes", "target_boxes", "pair_weights"):
            part[name] = value[own]
        else:
            part[name] = value[begin:end]
    return part


def whole_batch(toy_model, owners=OWNERS) -> dict:
    batch = toy_model.batch(ROWS, owners=owners)
    # The first and the last row, of different ranks, ask for the same image.
    batch["target_images"][3], batch["target_ids"][3] = batch["target_images"][0], batch["target_ids"][0]
    return batch


def gradients_of(model) -> dict:
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("mode", ["qformer", "tokens"])
@pytest.mark.parametrize("owners", [OWNERS, (0, 2), ()], ids=["pairs on both", "pairs on one", "no pairs"])
def test_two_ranks_equal_one_process(toy_model, tmp_path, mode, owners):
    batch = whole_batch(toy_model, owners)
    alone = toy_model.model(region_mode=mode)
    output = alone(**batch)
    output.loss.backward()
    expected = gradients_of(alone)
    weights = batch["pair_weights"].sum().item()
    means = {"itc": ROWS / 2, "rtc": ROWS / 2, "align": ROWS / 2, "region": weights / 2}

    def one_rank(rank: int) -> tuple:
        model = toy_model.model(region_mode=mode)
        model(**part_of(batch, *SPLITS["three and one"][rank]), loss_counts=means).loss.backward()
        averaged = {name: all_reduce_sum(grad) / 2 for name, grad in gradients_of(model).items()}
        loss = model(**part_of(batch, *SPLITS["three and one"][rank]), loss_counts=means).loss
        return all_reduce_sum(loss).item() / 2, {name: grad.tolist() for name, grad in averaged.items()}

    for loss, gradients in run_ranks(one_rank, 2, tmp_path):
        assert loss == pytest.approx(output.loss.item(), rel=1e-5)
        for name, gradient in expected.items():
            torch.testing.assert_close(torch.tensor(gradients[name]), gradient, atol=2e-5, rtol=1e-3, msg=name)


def test_images_without_numbers_differ_on_all_ranks(toy_model, tmp_path):
    batch = whole_batch(toy_model)
    for name in ("reference_ids", "target_ids"):
        batch.pop(name)
    expected = toy_model.model()(**batch).losses

    def one_rank(rank: int) -> dict:
        losses = toy_model.model()(**part_of(batch, *SPLITS["one and three"][rank])).losses
        return {name: losses[name].total.item() for name in ("itc", "rtc", "region")}

    found = run_ranks(one_rank, 2, tmp_path)
    for name in ("itc", "rtc", "region"):
        assert sum(part[name] for part in found) == pytest.approx(expected[name].total.item(), rel=1e-5)
