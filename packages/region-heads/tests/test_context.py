import pytest
import torch
from region_heads.context import RegionContext, masked_log_softmax


def _context() -> tuple[RegionContext, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return RegionContext(6, hidden_dim=8).double().eval(), torch.randn(3, 4, 6).double(), torch.randn(3, 6).double()


def test_shapes_and_the_widths_error() -> None:
    context, features, question = _context()
    result = context(features, None, question)
    assert result.regions.shape == (3, 4, 8)
    assert result.question.shape == (3, 8)
    assert result.region_mask.all()
    with pytest.raises(ValueError, match=r"expected region features of width 6, got shape \(3, 4, 5\)"):
        context(features[..., :5])


def test_attention_equals_a_plain_loop() -> None:
    context, features, question = _context()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    regions = context.region_norm(context.region_projection(features))
    vector = context.question_norm(context.question_projection(question))
    anchors = context._attend(regions, vector, mask)
    for row in range(3):
        valid = regions[row, mask[row]]
        scores = torch.stack([context.key(region) @ context.query(vector[row]) / 8**0.5 for region in valid])
        torch.testing.assert_close(anchors[row], scores.softmax(0) @ valid)


def test_equivariance_and_padding() -> None:
    context, features, question = _context()
    whole = context(features, None, question).regions
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(context(features[:, order], None, question).regions, whole[:, order])
    padded = torch.cat([features, torch.full((3, 2, 6), 9.0).double()], dim=1)
    mask = torch.arange(6).expand(3, 6) < 4
    torch.testing.assert_close(context(padded, mask, question).regions[:, :4], whole)


def test_no_region_at_all_is_finite() -> None:
    context, features, question = _context()
    features.requires_grad_()
    context(features, torch.zeros(3, 4, dtype=torch.bool), question).regions.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_every_parameter_is_used_without_a_question() -> None:  # T38
    context, features, question = _context()
    for given in (None, question):
        context.zero_grad()
        context(features, None, given).regions.square().sum().backward()
        assert all(parameter.grad is not None for parameter in context.parameters())


def test_the_question_matters() -> None:  # T19
    context, features, question = _context()
    assert not torch.allclose(context(features, None, question).regions, context(features).regions)


def test_gradients() -> None:
    context, features, question = _context()
    mask = torch.tensor([[True, True, False, False]] * 3)
    inputs = (features.requires_grad_(), question.requires_grad_())
    assert torch.autograd.gradcheck(lambda f, q: context(f, mask, q).regions[:, :2], inputs)


def test_half_precision_is_widened_before_the_softmax() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.bfloat16)
    result = masked_log_softmax(logits, torch.tensor([[True, True, False]]))
    assert result.dtype == torch.float32
    assert result.exp()[0].tolist() == pytest.approx([0.880797, 0.119203, 0.0], abs=1e-6)
