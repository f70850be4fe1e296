import math

import pytest
import torch
from roi_region_loss import RegionCaptionLoss, RegionContrastiveLoss

BOXES = torch.tensor([[0.0, 0.0, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.6, 0.6]], dtype=torch.float64)


def regions(seed=0, num_hard=0):
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape):
        return torch.randn(*shape, 5, generator=generator, dtype=torch.float64)

    inputs = {
        "region_features": rows(3),
        "caption_features": rows(3),
        "boxes": BOXES,
        "owner": torch.tensor([0, 0, 1]),
        "image_ids": torch.tensor([7, 8]),
    }
    return inputs | ({"hard_negatives": rows(3, num_hard)} if num_hard else {})


def plain_loss(inputs, scale):
    """Sum over rows, as loops; no box here overlaps another of its image."""
    unit = {name: inputs[name] / inputs[name].norm(dim=-1, keepdim=True) for name in inputs if "features" in name}
    hard = inputs["hard_negatives"] / inputs["hard_negatives"].norm(dim=-1, keepdim=True)
    total = 0.0
    for row in range(3):
        forth = [unit["region_features"][row] @ caption for caption in unit["caption_features"]]
        wrong = [unit["region_features"][row] @ caption for caption in hard[row]]
        back = [unit["caption_features"][row] @ region for region in unit["region_features"]]
        for cosines in (forth + wrong, back):
            exponentials = [(scale * cosine).exp() for cosine in cosines]
            total = total - 0.5 * (exponentials[row] / sum(exponentials)).log()
    return total


def test_hard_negatives_are_columns_of_their_own_row_only():
    inputs = regions(num_hard=2)
    loss = RegionCaptionLoss().double()
    torch.testing.assert_close(loss(**inputs).total, plain_loss(inputs, loss.scale().detach()))


def test_without_hard_negatives_it_is_the_loss_between_regions():
    inputs = regions()
    between_regions = RegionContrastiveLoss().double()(
        inputs["region_features"],
        inputs["caption_features"],
        reference_boxes=BOXES,
        target_boxes=BOXES,
        pair_owner=inputs["owner"],
        reference_ids=inputs["image_ids"],
        target_ids=inputs["image_ids"] + 100,
    )
    torch.testing.assert_close(RegionCaptionLoss().double()(**inputs).total, between_regions.total)


def test_captions_of_the_same_image_in_another_record_are_no_negatives():
    same = torch.ones(3, 5)
    inputs = regions() | {"region_features": same, "caption_features": same, "boxes": BOXES.float()}
    loss = RegionCaptionLoss()
    assert loss(**inputs).mean.item() == pytest.approx(math.log(3))
    repeated = loss(**inputs | {"image_ids": torch.tensor([7, 7])})
    assert repeated.mean.item() == pytest.approx(2 / 3 * math.log(2))


def test_one_region_is_contrasted_with_its_hard_negatives():
    inputs = {name: value[:1] for name, value in regions(num_hard=2).items()}
    output = RegionCaptionLoss().double()(**inputs)
    assert output.total.item() > 0
    assert "hardest_negative" in output.monitors.means()


def test_gradients_and_an_empty_batch():
    inputs = regions(num_hard=2)
    loss = RegionCaptionLoss().double()
    tensors = [inputs[name].requires_grad_() for name in ("region_features", "caption_features", "hard_negatives")]

    def total(region, caption, hard):
        changed = {"region_features": region, "caption_features": caption, "hard_negatives": hard}
        return loss(**inputs | changed).total

    assert torch.autograd.gradcheck(total, tensors)
    empty = {name: value if name == "image_ids" else value[:0] for name, value in inputs.items()}
    output = loss(**empty)
    output.total.backward()
    assert output.total.item() == 0.0
    assert loss.scale.log_scale.grad is not None
    assert loss.scale.log_scale.grad.item() == 0.0


def test_weights():
    inputs = regions(num_hard=1)
    loss = RegionCaptionLoss().double()
    weighted = [loss(**inputs | {"weights": torch.eye(3, dtype=torch.float64)[row]}).total for row in range(3)]
    torch.testing.assert_close(sum(weighted), loss(**inputs).total)
