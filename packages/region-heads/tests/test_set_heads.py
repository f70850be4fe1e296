from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from region_heads import CountingHead, MultipleChoiceHead, count_log_probabilities

DIM = 6


def _head(kind: type) -> torch.nn.Module:
    torch.manual_seed(0)
    return kind(DIM, hidden_dim=8).double().eval()


def _inputs(num_regions: int, rows: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, num_regions, DIM, generator=generator, dtype=torch.float64)
    return features, torch.randn(rows, DIM, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_regions", [1, 2, 15, 40])
def test_shapes_for_any_number_of_regions(num_regions: int) -> None:  # T9
    features, question = _inputs(num_regions)
    choice = _head(MultipleChoiceHead)(features, None, question)
    counting = _head(CountingHead)(features, None, question)
    assert choice.logits.shape == counting.inclusion_logits.shape == (3, num_regions)
    assert counting.log_probabilities.shape == (3, 16)
    assert counting.expected_count.shape == (3,)
    one = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(counting.probabilities.sum(1), one)
    torch.testing.assert_close(choice.probabilities.sum(1), one)


@pytest.mark.parametrize(("num_regions", "max_count"), [(1, 3), (4, 6), (5, 2), (6, 6)])
def test_the_count_distribution_equals_an_enumeration(num_regions: int, max_count: int) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, num_regions, dtype=torch.float64)
    mask = torch.ones(2, num_regions, dtype=torch.bool)
    result = count_log_probabilities(logits, mask, max_count=max_count).exp()
    expected = torch.zeros(2, max_count + 1, dtype=torch.float64)
    for subset in product((0, 1), repeat=num_regions):
        inside = torch.tensor(subset, dtype=torch.float64)
        probability = (inside * logits.sigmoid() + (1 - inside) * (1 - logits.sigmoid())).prod(1)
        expected[:, min(sum(subset), max_count)] += probability
    torch.testing.assert_close(result, expected)


def test_a_count_worked_out_by_hand() -> None:
    # Inclusion probabilities 1/2 and 1/4: none 3/8, one 4/8, two 1/8.
    logits = torch.tensor([[0.0, -((3.0**0.5) ** 2)]]).double()
    logits[0, 1] = torch.log(torch.tensor(1 / 3).double())
    result = count_log_probabilities(logits, torch.ones(1, 2, dtype=torch.bool), max_count=3).exp()
    assert result[0].tolist() == pytest.approx([3 / 8, 4 / 8, 1 / 8, 0.0])


def test_confident_wrong_counts_keep_a_finite_loss() -> None:
    # Fifteen regions at p = e^-40: the probability of ten of them is far below float32's range.
    logits = torch.full((1, 15), -40.0, requires_grad=True)
    result = count_log_probabilities(logits, torch.ones(1, 15, dtype=torch.bool), max_count=15)
    assert result[0, 10].item() == pytest.approx(-400 + 8.00670, abs=1e-2)  # log of 3003 choices of ten
    (-result[0, 10]).backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-10 / 15] * 15, abs=1e-3)


@settings(max_examples=15, deadline=None)
@given(num_regions=st.integers(1, 6), seed=st.integers(0, 1000), data=st.data())
def test_choices_permute_and_counts_stay(num_regions: int, seed: int, data: st.DataObject) -> None:  # T21
    features, question = _inputs(num_regions, seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(num_regions))))
    choose, count = _head(MultipleChoiceHead), _head(CountingHead)
    torch.testing.assert_close(
        choose(features[:, order], None, question).logits, choose(features, None, question).logits[:, order]
    )
    permuted, plain = count(features[:, order], None, question), count(features, None, question)
    torch.testing.assert_close(permuted.log_probabilities, plain.log_probabilities)
    torch.testing.assert_close(permuted.expected_count, plain.expected_count)


@pytest.mark.parametrize("num_regions", [1, 3])
def test_padding_and_batching_change_nothing(num_regions: int) -> None:  # T7
    features, question = _inputs(num_regions)
    padded = torch.cat([features, torch.full((3, 2, DIM), 50.0, dtype=torch.float64)], dim=1)
    mask = torch.arange(num_regions + 2).expand(3, -1) < num_regions
    choose, count = _head(MultipleChoiceHead), _head(CountingHead)
    chosen, counted = choose(padded, mask, question), count(padded, mask, question)
    assert (chosen.logits[:, num_regions:] == torch.finfo(torch.float64).min).all()
    assert (chosen.probabilities[:, num_regions:] == 0).all()
    assert (counted.inclusion[:, num_regions:] == 0).all()
    for row in range(3):
        one, its_question = features[row : row + 1], question[row : row + 1]
        torch.testing.assert_close(chosen.logits[row : row + 1, :num_regions], choose(one, None, its_question).logits)
        alone = count(one, None, its_question)
        torch.testing.assert_close(counted.log_probabilities[row : row + 1], alone.log_probabilities)
        torch.testing.assert_close(counted.expected_count[row : row + 1], alone.expected_count)


def test_no_region_at_all_means_a_count_of_zero() -> None:
    features, question = _inputs(3)
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    counted = _head(CountingHead)(features, nothing, question)
    assert counted.probabilities[:, 0].tolist() == [1.0] * 3
    assert counted.expected_count.tolist() == [0.0] * 3
    assert _head(MultipleChoiceHead)(features, nothing, question).logits.isfinite().all()


def test_counts_above_the_number_of_regions_have_no_probability() -> None:
    # The k-th class does not belong to the k-th region: with three regions, counts 0..3 are all possible, 4 is not.
    features, question = _inputs(3)
    probabilities = _head(CountingHead)(features, None, question).probabilities
    assert (probabilities[:, :4] > 0).all()
    assert (probabilities[:, 4:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_answers_are_float32_whatever_goes_in(dtype: torch.dtype) -> None:
    features = torch.randn(2, 4, DIM).to(dtype)
    for parameters in (torch.float32, torch.bfloat16):
        assert MultipleChoiceHead(DIM).to(parameters)(features).logits.dtype == torch.float32
        assert CountingHead(DIM).to(parameters)(features).log_probabilities.dtype == torch.float32


def test_gradients() -> None:
    features, question = _inputs(4, rows=2)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    choose, count = _head(MultipleChoiceHead), _head(CountingHead)

    def answers(features: torch.Tensor, question: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            choose(features, mask, question).logits.log_softmax(1)[:, :2],
            count(features, mask, question).log_probabilities[:, :3],
        )

    assert torch.autograd.gradcheck(answers, (features.requires_grad_(), question.requires_grad_()))
    sum(answer.square().sum() for answer in answers(features, question)).backward()
    assert features.grad is not None
    assert (features.grad[1, 2:] == 0).all()
