"""Pooling, padding, projecting and comparing conditions of mixed kinds."""

import pytest
import torch
from psalm.conditions import PADDED_LOGIT, ConditionHeads, PaddedConditions, pad_conditions, pool_conditions
from psalm.modes import CONDITION_KINDS
from torch.nn import functional as F

CLASS_NAME, SENTENCE, REGION = range(3)


def heads(seed: int = 0) -> ConditionHeads:
    torch.manual_seed(seed)
    return ConditionHeads(language_dim=6, hidden_dim=4)


def test_the_kinds_are_in_the_order_that_the_heads_use():
    assert CONDITION_KINDS == ("class_name", "sentence", "region")


def test_pooling_is_the_mean_over_a_conditions_tokens():
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 4.0]], [[2.0, 2.0], [9.0, 9.0], [4.0, 6.0]]])
    index = torch.tensor([[0, 0, -1], [1, -1, 3]])
    pooled = pool_conditions(hidden, index, 4)
    # The third condition has no token.
    assert pooled.tolist() == [[2.0, 1.0], [2.0, 2.0], [0.0, 0.0], [4.0, 6.0]]


def test_pooling_is_float32_and_no_condition_is_legal():
    hidden = torch.full((1, 300, 2), 1.01).bfloat16()
    pooled = pool_conditions(hidden, torch.zeros(1, 300, dtype=torch.long), 1)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, hidden[0, :1].float())
    assert pool_conditions(hidden, torch.full((1, 300), -1), 0).shape == (0, 2)


def test_pooling_sends_gradients_to_the_tokens_of_conditions_alone():
    hidden = torch.randn(1, 4, 2, requires_grad=True)
    pool_conditions(hidden, torch.tensor([[0, -1, 0, 1]]), 2).sum().backward()
    assert hidden.grad[0, :, 0].tolist() == [0.5, 0.0, 0.5, 1.0]


def test_padding():
    rows = torch.arange(1.0, 5.0)[:, None]
    padded = pad_conditions(rows, torch.tensor([0, 2, 2, 2]), 4)
    assert padded.rows[:, :, 0].tolist() == [[1, 0, 0], [0, 0, 0], [2, 3, 4], [0, 0, 0]]
    assert padded.mask.sum(1).tolist() == [1, 0, 3, 0]
    empty = pad_conditions(rows[:0], torch.zeros(0, dtype=torch.long), 2)
    assert empty.rows.shape == (2, 0, 1)
    assert empty.mask.shape == (2, 0)


def test_the_names_are_those_of_published_weights():
    names = {name.removesuffix(".weight") for name in heads().state_dict() if name.endswith("weight")}
    assert names == {
        "class_name_projector",
        "SEG_token_projector",
        "region_projector",
        *(f"{head}_proj.layers.{layer}" for head in ("CLASS", "SEG", "REGION") for layer in (0, 1)),
    }


def test_every_row_takes_the_way_of_its_kind():
    module = heads()
    pooled, states = torch.randn(3, 6), torch.randn(3, 2, 4)
    kinds = torch.tensor([REGION, CLASS_NAME, SENTENCE])
    embedded = module.embed(pooled, kinds)
    conditions = PaddedConditions(embedded[:, None], torch.ones(3, 1, dtype=torch.bool))
    logits = module(states, conditions, kinds)
    ways = {
        CLASS_NAME: (module.class_name_projector, module.CLASS_proj),
        SENTENCE: (module.SEG_token_projector, module.SEG_proj),
        REGION: (module.region_projector, module.REGION_proj),
    }
    for row, kind in enumerate(kinds.tolist()):
        projector, head = ways[kind]
        expected = F.linear(pooled[row], projector.weight, projector.bias)
        torch.testing.assert_close(embedded[row], expected)
        first, second = head.layers
        projected = F.linear(F.relu(F.linear(states[row], first.weight, first.bias)), second.weight, second.bias)
        torch.testing.assert_close(logits[row, :, 0], projected @ expected)


def test_padded_columns_have_no_probability_and_stay_finite():
    module = heads()
    kinds = torch.tensor([CLASS_NAME, CLASS_NAME])
    conditions = PaddedConditions(torch.randn(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]]))
    logits = module(torch.randn(2, 5, 4), conditions, kinds)
    assert (logits[1, :, 1:] == PADDED_LOGIT).all()
    assert torch.equal(logits[1].softmax(-1), torch.tensor([1.0, 0, 0]).expand(5, -1))
    assert logits.half().isfinite().all()


@pytest.mark.parametrize("num_conditions", [0, 2])
def test_every_part_gets_a_gradient_whatever_is_in_the_batch(num_conditions):
    """A part without gradient on one rank hangs ZeRO-3: zeros, not None."""
    module = heads()
    kinds = torch.tensor([SENTENCE])
    owner = torch.zeros(num_conditions, dtype=torch.long)
    embedded = module.embed(torch.randn(num_conditions, 6), kinds[owner])
    logits = module(torch.randn(1, 3, 4), pad_conditions(embedded, owner, 1), kinds)
    assert logits.shape == (1, 3, num_conditions)
    logits.sum().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        used = num_conditions > 0 and name.startswith("SEG")
        assert bool(weight.grad.any()) == used, name


def test_bf16_weights_and_autocast_run_in_float32():
    module = heads().bfloat16()
    reference = heads()
    reference.load_state_dict(module.state_dict())
    kinds, pooled, states = torch.tensor([REGION]), torch.randn(1, 6), torch.randn(1, 3, 4)
    outcomes = []
    for one, autocast in ((module, True), (reference, False)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            embedded = one.embed(pooled, kinds)
            outcomes.append(one(states, pad_conditions(embedded, torch.tensor([0]), 1), kinds))
    assert outcomes[0].dtype == torch.float32
    assert torch.equal(*outcomes)
