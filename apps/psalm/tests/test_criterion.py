"""The criterion: hand-worked numbers, equality with transformers, mixed batches, counts, gradients."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from psalm.config import CriterionConfig
from psalm.criterion import CONDITION_LOSSES, LOSS_DICE, LOSS_MASK, count_loss_items, segmentation_losses
from psalm.mask_decoder import DecodedMasks
from psalm.points import random_points
from psalm.targets import SegmentationTargets
from region_core.losses import LossTerms
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

CLASS_NAME, SENTENCE, REGION = range(3)
CLASS_TERM, SENTENCE_TERM, REGION_TERM = CONDITION_LOSSES.values()
CONFIG = CriterionConfig(num_points=64)
QUERIES, SIDE = 4, 16


def fixed_points(samples: Sequence[int], num_points: int, device: torch.device) -> torch.Tensor:
    """The same points for every map, whatever was drawn before."""
    generator = torch.Generator().manual_seed(num_points)
    return torch.rand(1, num_points, 2, generator=generator).expand(len(samples), -1, -1)


class Case:
    """One sample: random predictions of two layers, and targets.

    Args:
        kind: Of its conditions.
        conditions: How many there are; with class names, background included.
        belongs: Per target the conditions that it fulfils.
        seed: Of predictions and masks.
    """

    def __init__(
        self, kind: int, conditions: int, belongs: Sequence[Sequence[int]], seed: int, layers: int = 2
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kind, self.conditions = kind, conditions
        self.masks = torch.rand(len(belongs), SIDE, SIDE, generator=generator) < 0.5
        self.belongs = [[column in own for column in range(conditions)] for own in belongs]
        self.mask_logits = [torch.randn(QUERIES, 8, 8, generator=generator) for _ in range(layers)]
        self.logits = [torch.randn(QUERIES, conditions, generator=generator) for _ in range(layers)]


MIXED = (
    Case(CLASS_NAME, 4, [[0], [2], [2]], seed=1),
    Case(SENTENCE, 1, [], seed=2),
    Case(REGION, 3, [[0, 2], [1], [2], [2], [0]], seed=3),
    Case(CLASS_NAME, 3, [], seed=4),
    Case(SENTENCE, 1, [[0], [0]], seed=5),
    Case(REGION, 1, [[0]], seed=6),
)


class Batch:
    """Cases collated as the model and `collate` would."""

    def __init__(self, cases: Sequence[Case], *, requires_grad: bool = False) -> None:
        layers = range(len(cases[0].logits))
        width = max(case.conditions for case in cases)
        # Beyond a sample's conditions stands something that would cost, were it looked at.
        self.kinds = torch.tensor([case.kind for case in cases])
        self.mask_logits = [torch.stack([case.mask_logits[layer] for case in cases]) for layer in layers]
        padded = [
            [F.pad(case.logits[layer], (0, width - case.conditions), value=3.0) for case in cases] for layer in layers
        ]
        self.logits = [torch.stack(rows) for rows in padded]
        self.leaves = [*self.mask_logits, *self.logits]
        for leaf in self.leaves:
            leaf.requires_grad_(requires_grad)
        counts = torch.tensor([case.conditions for case in cases])
        self.condition_mask = torch.arange(width) < counts[:, None]
        self.condition_owner = torch.arange(len(cases)).repeat_interleave(counts)
        owner = torch.arange(len(cases)).repeat_interleave(torch.tensor([len(case.belongs) for case in cases]))
        belongs = [row + [False] * (width - len(row)) for case in cases for row in case.belongs]
        self.targets = SegmentationTargets(
            torch.cat([case.masks for case in cases]),
            owner,
            torch.tensor(belongs, dtype=torch.bool).reshape(len(belongs), width),
        )

    def losses(self, config: CriterionConfig = CONFIG, *, draw_points=fixed_points) -> LossTerms:
        decoded = DecodedMasks(tuple(self.mask_logits), ())
        return segmentation_losses(
            decoded, self.logits, self.kinds, self.condition_mask, self.targets, config, draw_points=draw_points
        )

    def counts(self) -> dict[str, float]:
        return count_loss_items(
            self.kinds, self.targets.owner, self.condition_owner, num_queries=QUERIES, config=CONFIG
        )


def single(kind: int, logits: list[list[float]], belongs: list[list[int]], matched_queries: list[int]) -> LossTerms:
    """One layer with these condition logits, whose masks match target k with query `matched_queries[k]` exactly."""
    width = len(logits[0])
    targets = torch.zeros(len(belongs), SIDE, SIDE, dtype=torch.bool)
    masks = torch.full((len(logits), SIDE, SIDE), -20.0)
    band = SIDE // max(len(belongs), 1)
    for target, query in enumerate(matched_queries):
        targets[target, target * band : (target + 1) * band] = True
        masks[query][targets[target]] = 20.0
    packed = SegmentationTargets(
        targets,
        torch.zeros(len(belongs), dtype=torch.long),
        torch.tensor([[column in own for column in range(width)] for own in belongs], dtype=torch.bool).reshape(
            len(belongs), width
        ),
    )
    return segmentation_losses(
        DecodedMasks((masks[None],), ()),
        [torch.tensor([logits])],
        torch.tensor([kind]),
        torch.ones(1, width, dtype=torch.bool),
        packed,
        CONFIG,
    )


def test_class_names_by_hand():
    """Query 1 has a target of class 0; queries 0 and 2 should say "background", each with weight 0.1."""
    losses = single(CLASS_NAME, [[0.0, 0.0, math.log(2)], [math.log(3), 0.0, 0.0], [0.0, 0.0, 0.0]], [[0]], [1])
    term = losses[CLASS_TERM]
    # Probabilities of the right candidate: 2/4, 3/5 and 1/3.
    expected = -0.1 * math.log(2 / 4) - math.log(3 / 5) - 0.1 * math.log(1 / 3)
    assert term.total.item() == pytest.approx(expected, rel=1e-5)
    assert term.count == pytest.approx(1.2)
    assert term.weight == 2.0
    assert losses[SENTENCE_TERM].count == losses[REGION_TERM].count == 0


def test_a_sentence_by_hand():
    """Two of four queries are wanted: each side weighs (4 - 2) / 2 = 1."""
    losses = single(SENTENCE, [[0.0], [math.log(3)], [0.0], [math.log(3)]], [[0], [0]], [1, 2])
    # -log of: 1 - 1/2, 3/4, 1/2, 1 - 3/4.
    expected = (math.log(2) - math.log(3 / 4) + math.log(2) + math.log(4)) / 4
    assert losses[SENTENCE_TERM].total.item() == pytest.approx(expected, rel=1e-5)
    assert losses[SENTENCE_TERM].count == 1


def test_a_sentence_about_nothing_by_hand():
    losses = single(SENTENCE, [[0.0], [math.log(3)]], [], [])
    assert losses[SENTENCE_TERM].total.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-5)
    assert losses[LOSS_MASK].count == losses[LOSS_DICE].count == 0


def test_regions_by_hand_each_with_its_own_balance():
    """Region 0: one of four queries wanted, weight 3. Region 1: two, weight 1. Region 2: none."""
    logits = [[math.log(3), 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, math.log(3), 0.0], [0.0, 0.0, math.log(3)]]
    losses = single(REGION, logits, [[0, 1], [1]], [0, 1])
    half = math.log(2)
    first = (-3 * math.log(3 / 4) + 3 * half) / 4
    second = (half + half + math.log(4) + half) / 4
    third = (3 * half + math.log(4)) / 4
    assert losses[REGION_TERM].total.item() == pytest.approx(first + second + third, rel=1e-5)
    assert losses[REGION_TERM].count == 3


def test_a_condition_that_all_queries_fulfil_is_still_learned():
    """(Q - m) / m would be 0."""
    losses = single(SENTENCE, [[0.0], [0.0]], [[0], [0]], [0, 1])
    assert losses[SENTENCE_TERM].total.item() == pytest.approx(math.log(2) / 2, rel=1e-5)


def test_masks_by_hand():
    """A logit of 0 everywhere against a full mask: cross-entropy log 2; dice 1 - (P + 1) / (1.5 P + 1)."""
    targets = SegmentationTargets(
        torch.ones(1, SIDE, SIDE, dtype=torch.bool),
        torch.zeros(1, dtype=torch.long),
        torch.ones(1, 1, dtype=torch.bool),
    )
    inputs = (torch.tensor([SENTENCE]), torch.ones(1, 1, dtype=torch.bool), targets, CONFIG)
    decoded = DecodedMasks((torch.zeros(1, 2, 8, 8),), ())

    def inner_points(samples, num_points, device):
        # Away from the edge, beyond which a mask is zero.
        return 0.25 + 0.5 * torch.rand(len(samples), num_points, 2)

    losses = segmentation_losses(decoded, [torch.zeros(1, 2, 1)], *inputs, draw_points=inner_points)
    assert losses[LOSS_MASK].total.item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses[LOSS_DICE].total.item() == pytest.approx(1 - 65 / (1.5 * 64 + 1), rel=1e-5)
    assert (losses[LOSS_MASK].weight, losses[LOSS_DICE].weight) == (5.0, 5.0)


def test_one_layer_equals_transformers():
    cases = [Case(CLASS_NAME, 4, [[0], [2], [2]], seed=1, layers=1), Case(CLASS_NAME, 4, [[1]], seed=2, layers=1)]
    batch = Batch(cases)
    config = Mask2FormerConfig(num_labels=3, train_num_points=64)
    library = Mask2FormerLoss(config, {})
    labels = [torch.tensor([0, 2, 2]), torch.tensor([1])]
    torch.manual_seed(7)
    expected = library(batch.mask_logits[0], batch.logits[0], [case.masks.float() for case in cases], labels)
    torch.manual_seed(7)
    losses = batch.losses(draw_points=random_points)
    means = {name: losses.mean(name) for name in losses}
    torch.testing.assert_close(means[CLASS_TERM], expected["loss_cross_entropy"], atol=1e-5, rtol=0)
    torch.testing.assert_close(means[LOSS_MASK], expected["loss_mask"], atol=1e-5, rtol=0)
    torch.testing.assert_close(means[LOSS_DICE], expected["loss_dice"], atol=1e-5, rtol=0)


def test_layers_add_up_with_their_own_matching():
    """Deep supervision: totals of all layers, items of one."""
    both = Batch(MIXED)
    whole = both.losses()
    parts = []
    for layer in range(2):
        one = Batch(MIXED)
        one.mask_logits, one.logits = [both.mask_logits[layer]], [both.logits[layer]]
        parts.append(one.losses())
    for name, term in whole.items():
        torch.testing.assert_close(term.total, parts[0][name].total + parts[1][name].total)
        assert term.count == parts[0][name].count


def test_a_mixed_batch_is_its_samples_one_by_one():
    whole = Batch(MIXED).losses()
    alone = [Batch([case]).losses() for case in MIXED]
    assert list(whole) == [LOSS_MASK, LOSS_DICE, CLASS_TERM, SENTENCE_TERM, REGION_TERM]
    for name, term in whole.items():
        torch.testing.assert_close(term.total, torch.stack([losses[name].total for losses in alone]).sum())
        assert term.count == pytest.approx(sum(losses[name].count for losses in alone))


def test_counts_are_known_before_the_model_runs():
    batch = Batch(MIXED)
    counts = batch.counts()
    assert counts == pytest.approx({name: term.count for name, term in batch.losses().items()})
    # Matched are 3 + 0 + min(5, 4) + 0 + 2 + 1 targets; class names count 3 + 0.1 and 4 times 0.1; regions 3 + 1.
    expected = {LOSS_MASK: 10, LOSS_DICE: 10, CLASS_TERM: 3.5, SENTENCE_TERM: 2, REGION_TERM: 4}
    assert counts == pytest.approx(expected)


def test_two_micro_batches_have_the_gradient_of_one():
    def gradients(parts: list[Sequence[Case]]) -> list[torch.Tensor]:
        batches = [Batch(part, requires_grad=True) for part in parts]
        all_counts = [batch.counts() for batch in batches]
        mean_counts = {name: sum(counts[name] for counts in all_counts) / len(parts) for name in all_counts[0]}
        for batch in batches:
            (batch.losses().weighted_total(mean_counts) / len(parts)).backward()
        return [torch.cat([batch.mask_logits[layer].grad for batch in batches]) for layer in range(2)]

    for whole, split in zip(gradients([MIXED]), gradients([MIXED[:1], MIXED[1:]]), strict=True):
        torch.testing.assert_close(whole, split)
        assert whole.abs().sum() > 0


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_every_prediction_gets_a_gradient_whatever_is_in_the_batch(number):
    """Zeros, not None: a module without gradient on one rank hangs ZeRO-3."""
    batch = Batch([MIXED[number]], requires_grad=True)
    batch.losses().weighted_total().backward()
    for leaf in batch.leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    if not MIXED[number].belongs:
        assert not any(logits.grad.any() for logits in batch.mask_logits)


def test_a_batch_without_any_condition_is_legal():
    batch = Batch([Case(REGION, 0, [], seed=0)], requires_grad=True)
    losses = batch.losses()
    assert losses.means() == {}
    losses.weighted_total().backward()
    assert all(leaf.grad is not None for leaf in batch.leaves)


def test_padded_conditions_get_no_gradient():
    batch = Batch(MIXED, requires_grad=True)
    batch.losses().weighted_total().backward()
    for logits in batch.logits:
        assert not logits.grad.transpose(1, 2)[~batch.condition_mask].any()


def test_better_predictions_cost_less():
    batch = Batch(MIXED, requires_grad=True)
    before = batch.losses().weighted_total()
    before.backward()
    with torch.no_grad():
        for leaf in batch.leaves:
            leaf -= 0.1 * leaf.grad
    assert batch.losses().weighted_total() < before


def test_bf16_predictions_under_autocast_are_judged_in_float32():
    wide, narrow = Batch(MIXED), Batch(MIXED)
    narrow.mask_logits = [logits.bfloat16() for logits in narrow.mask_logits]
    narrow.logits = [logits.bfloat16() for logits in narrow.logits]
    wide.mask_logits = [logits.float() for logits in narrow.mask_logits]
    wide.logits = [logits.float() for logits in narrow.logits]
    expected = wide.losses()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = narrow.losses()
    for name in found:
        assert found[name].total.dtype == torch.float32
        torch.testing.assert_close(found[name].total, expected[name].total)


def test_a_broken_prediction_shows_in_the_loss():
    """The matching survives; the trainer stops at the term and names the records."""
    batch = Batch(MIXED)
    batch.mask_logits[1][0] = torch.nan
    batch.logits[1][0] = torch.nan
    losses = batch.losses()
    assert losses[LOSS_MASK].total.isnan()
    assert losses[CLASS_TERM].total.isnan()
    assert losses[SENTENCE_TERM].total.isfinite()


def test_a_layer_without_its_logits_is_an_error():
    batch = Batch(MIXED)
    batch.logits = batch.logits[:1]
    with pytest.raises(ValueError, match="shorter"):
        batch.losses()


def test_the_points_come_from_torchs_generator_by_default():
    """Which the engine seeds: the same seed is the same loss."""
    batch = Batch(MIXED)
    inputs = (batch.logits, batch.kinds, batch.condition_mask, batch.targets, replace(CONFIG, num_points=20))
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(segmentation_losses(DecodedMasks(tuple(batch.mask_logits), ()), *inputs).weighted_total())
    assert values[0] == values[1] != values[2]
